// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
	"droidtap/scripts/nettest"
)

// BenchmarkFind costs a known flow, a flow that is new each time, and one of nobody's.
func BenchmarkFind(b *testing.B) {
	nettest.Require(b)
	s := nettest.NewSpace(b)
	f := openIn(b, s, mapsOf(b))
	_, at := datagrams(b, s, firstUID, "127.0.0.1:0")
	flow := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: at, Remote: netip.MustParseAddrPort("127.0.0.1:9")}
	none := flow
	none.Local = netip.AddrPortFrom(at.Addr(), 1)
	for _, c := range []struct {
		of   string
		flow sockdiag.Flow
		next bool
	}{{"known", flow, false}, {"new", flow, true}, {"nobody", none, false}} {
		b.Run(c.of, func(b *testing.B) {
			b.ReportAllocs()
			q := Question{Packet: packetOf(c.flow, 0)}
			for n := uint32(0); b.Loop(); n++ {
				if c.next {
					be.PutUint16(q.Packet[20:], uint16(n))
					be.PutUint16(q.Packet[14:], uint16(n>>16))
				}
				f.Find(q)
			}
		})
	}
}

// BenchmarkHandover tells how often a port that is closed and bound again at once has its next owner before the programs
// hear of the first one's end, and how long they believe it.
func BenchmarkHandover(b *testing.B) {
	nettest.Require(b)
	s := nettest.NewSpace(b)
	maps := mapsOf(b)
	f := openIn(b, s, maps)
	late, most, all := 0, int64(0), 0
	err := s.Do(firstUID, func() error {
		for b.Loop() {
			all++
			first, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				return err
			}
			at := first.LocalAddr().(*net.UDPAddr)
			begin := f.now()
			if err := first.Close(); err != nil {
				return err
			}
			second, err := net.ListenUDP("udp4", at)
			if err != nil {
				return err
			}
			bound := f.now()
			var closed uint64
			for int64(closed) < begin {
				if err := maps.closed.Lookup(uint32(at.Port), &closed); err != nil {
					return err
				}
			}
			if by := f.now() - bound; int64(closed) > bound {
				late, most = late+1, max(most, by)
			}
			if err := second.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(100*float64(late)/float64(all), "%late")
	b.ReportMetric(float64(most)/1000, "µs-most")
}
