// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
	"droidtap/agent/pcapng"
	"droidtap/agent/sockdiag"
	"droidtap/scripts/nettest"
)

const (
	firstUID  = 10001
	secondUID = 10002
)

// mapsOf makes the maps of bpf/src/owner.h.
func mapsOf(t testing.TB) shared {
	t.Helper()
	made := func(kind ebpf.MapType, key, value, entries uint32) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: kind, KeySize: key, ValueSize: value, MaxEntries: entries})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		return m
	}
	return shared{
		flows:     made(ebpf.LRUHash, 40, 32, 16384),
		fragments: made(ebpf.LRUHash, 40, 16, 1024),
		closed:    made(ebpf.Array, 4, 8, 1<<16),
	}
}

func openIn(t testing.TB, s nettest.Space, maps shared) *Finder {
	t.Helper()
	var f *Finder
	s.Must(t, func() (err error) {
		f, err = Open(Options{Flows: maps.flows, Fragments: maps.fragments, Closed: maps.closed, Now: func() int64 { return int64(boottime.Now()) }})
		return err
	})
	t.Cleanup(func() {
		if f.failures > 0 {
			t.Errorf("%d failures: %v", f.failures, f.failure)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if f.sockets.conn == nil || f.sockets.conn.Missing() != nil {
		t.Skip("this kernel cannot be asked")
	}
	return f
}

// socket is closed with the test if not before.
func socket[S interface{ Close() error }](t testing.TB, s nettest.Space, uid int, open func() (S, error)) (made S) {
	t.Helper()
	err := s.Do(uid, func() (err error) {
		made, err = open()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = made.Close() })
	return made
}

func datagrams(t testing.TB, s nettest.Space, uid int, at string) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c := socket(t, s, uid, func() (*net.UDPConn, error) {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at)))
	})
	return c, netip.MustParseAddrPort(c.LocalAddr().String())
}

func dial(t testing.TB, s nettest.Space, uid int, network string, to netip.AddrPort) (net.Conn, sockdiag.Flow) {
	t.Helper()
	c := socket(t, s, uid, func() (net.Conn, error) { return net.DialTimeout(network, to.String(), nettest.Patience) })
	protocol := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}[network]
	return c, sockdiag.Flow{Protocol: protocol, Local: netip.MustParseAddrPort(c.LocalAddr().String()), Remote: to}
}

// packetOf returns a packet of a flow that comes in.
func packetOf(f sockdiag.Flow, flags byte) []byte {
	payload := nettest.UDP(f.Remote.Port(), f.Local.Port(), nil)
	if f.Protocol == unix.IPPROTO_TCP {
		payload = nettest.Reset(f.Remote.Port(), f.Local.Port(), nil)
		payload[13] = flags
	}
	if f.Local.Addr().Is4() {
		return nettest.IPv4(f.Remote.Addr().String(), f.Local.Addr().String(), f.Protocol, 0, nil, payload)
	}
	return nettest.IPv6(f.Remote.Addr().String(), f.Local.Addr().String(), f.Protocol, payload)
}

func check(t testing.TB, f *Finder, q Question, want uint32) Answer {
	t.Helper()
	a := f.Find(q)
	if a.UID != want {
		t.Errorf("%+v, want %d", a, want)
	}
	return a
}

// await turns round until it is so.
func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(nettest.Patience); !so(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%s never comes", what)
		}
	}
}

func TestLiveFind(t *testing.T) {
	nettest.Require(t)
	near, _ := nettest.Pair(t)
	maps := mapsOf(t)
	f := openIn(t, near, maps)
	for _, c := range []struct{ any, near, far string }{
		{"0.0.0.0:0", nettest.Near4, nettest.Far4}, {"[::]:0", nettest.Near6, nettest.Far6}, {"[::]:0", nettest.Near4, nettest.Far4},
	} {
		t.Run(c.any+" "+c.near, func(t *testing.T) {
			remote := netip.AddrPortFrom(netip.MustParseAddr(c.far), 4242)
			_, at := datagrams(t, near, firstUID, c.any)
			l := socket(t, near, secondUID, func() (net.Listener, error) { return net.Listen("tcp", c.any) })
			udp := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: netip.AddrPortFrom(netip.MustParseAddr(c.near), at.Port()), Remote: remote}
			tcp := sockdiag.Flow{Protocol: unix.IPPROTO_TCP, Remote: remote,
				Local: netip.AddrPortFrom(netip.MustParseAddr(c.near), netip.MustParseAddrPort(l.Addr().String()).Port())}
			for flow, uid := range map[sockdiag.Flow]uint32{udp: firstUID, tcp: secondUID} {
				for _, flags := range []byte{2, 0x10} {
					a := check(t, f, Question{Packet: packetOf(flow, flags)}, uid)
					if got, found, err := maps.learnt(flow); !found || err != nil || got.uid != uid || got.cgroup != a.Cgroup {
						t.Errorf("of %+v the programs know %+v, %v, %v", flow, got, found, err)
					}
					// A SYN of now would begin a connection after that of the socket.
					if a.Inode == 0 || f.Inode(Question{Packet: packetOf(flow, flags), Age: time.Second}, a.UID) != a.Inode {
						t.Errorf("the inode of %+v is %d", flow, a.Inode)
					}
				}
				out := flow
				out.Local, out.Remote = flow.Remote, flow.Local
				check(t, f, Question{Packet: packetOf(out, 0x10), Outgoing: true}, uid)
				// The port is the same, the machine is not.
				forwarded := flow
				forwarded.Local = netip.AddrPortFrom(netip.MustParseAddr(c.far), flow.Local.Port())
				check(t, f, Question{Packet: packetOf(forwarded, 2)}, pcapng.UIDNone)
				nobodys := flow
				nobodys.Local = netip.AddrPortFrom(flow.Local.Addr(), 1)
				check(t, f, Question{Packet: packetOf(nobodys, 2)}, pcapng.UIDUnknown)
			}
		})
	}
}

func TestLiveSeed(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	maps := mapsOf(t)
	want := map[sockdiag.Flow]uint32{}
	for _, any := range []string{"127.0.0.1:0", "[::1]:0"} {
		l := socket(t, s, firstUID, func() (net.Listener, error) { return net.Listen("tcp", any) })
		for network, uid := range map[string]int{"tcp": secondUID, "udp": 0} {
			_, flow := dial(t, s, uid, network, netip.MustParseAddrPort(l.Addr().String()))
			want[flow] = uint32(uid)
		}
		_, newer := dial(t, s, secondUID, "udp", netip.MustParseAddrPort(l.Addr().String()))
		if err := maps.learn(newer, learnt{uid: 7, seen: 1}, false); err != nil {
			t.Fatal(err)
		}
		want[newer] = 7
		c, closed := dial(t, s, secondUID, "tcp", netip.MustParseAddrPort(l.Addr().String()))
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		want[closed] = pcapng.UIDNone
	}
	openIn(t, s, maps)
	for flow, uid := range want {
		got, found, err := maps.learnt(flow)
		if !found {
			got.uid = pcapng.UIDNone
		}
		// From 6.17 on the kernel knows whose a socket is until TIME_WAIT.
		if err != nil || got.uid != uid && !(uid == pcapng.UIDNone && got.uid == secondUID) {
			t.Errorf("of %+v the programs know %+v, %v, want %d", flow, got, err, uid)
		}
	}
}

func TestLivePortChangesHands(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	for _, with := range []shared{mapsOf(t), {}} {
		t.Run(fmt.Sprint("maps ", with.flows != nil), func(t *testing.T) {
			f := openIn(t, s, with)
			for range 20 {
				first, at := datagrams(t, s, firstUID, "127.0.0.1:0")
				flow := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: at, Remote: netip.MustParseAddrPort("127.0.0.1:9")}
				q := Question{Packet: packetOf(flow, 0)}
				check(t, f, q, firstUID)
				before := f.now()
				if err := first.Close(); err != nil {
					t.Fatal(err)
				}
				await(t, "the close", func() bool {
					f.mu.Lock()
					defer f.mu.Unlock()
					return f.closes.last[at.Port()] > before
				})
				second, _ := datagrams(t, s, secondUID, at.String())
				check(t, f, q, secondUID)
				if with.flows != nil {
					if got, _, err := with.learnt(flow); got.uid != secondUID || err != nil {
						t.Errorf("the programs know %+v, %v", got, err)
					}
				}
				if err := second.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestLiveClosedIsTold(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	maps := mapsOf(t)
	f := openIn(t, s, maps)
	c, flow := dial(t, s, firstUID, "udp", netip.MustParseAddrPort("127.0.0.1:9"))
	other := flow
	other.Remote = netip.MustParseAddrPort("127.0.0.1:10")
	tcp := flow
	tcp.Protocol = unix.IPPROTO_TCP
	for _, of := range []sockdiag.Flow{flow, other, tcp} {
		if err := maps.learn(of, learnt{uid: firstUID, seen: f.now()}, false); err != nil {
			t.Fatal(err)
		}
	}
	before := f.now()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	var closed uint64
	await(t, "the close", func() bool {
		return maps.closed.Lookup(uint32(flow.Local.Port()), &closed) == nil && closed != 0
	})
	if int64(closed) < before || int64(closed) > f.now() {
		t.Errorf("closed at %d, not between %d and %d", closed, before, f.now())
	}
	await(t, "the end of the flow", func() bool {
		_, found, err := maps.learnt(flow)
		return !found && err == nil
	})
	for _, of := range []sockdiag.Flow{other, tcp} {
		if _, found, err := maps.learnt(of); !found || err != nil {
			t.Errorf("%+v is forgotten, %v", of, err)
		}
	}
	// The kernel could not tell which.
	if err := f.forget(maps, nil, true); err != nil {
		t.Fatal(err)
	}
	for of, want := range map[sockdiag.Flow]bool{other: false, tcp: true} {
		if _, found, err := maps.learnt(of); found != want || err != nil {
			t.Errorf("%+v is learnt: %v, %v", of, found, err)
		}
	}
}

func TestForgetUDPOfMany(t *testing.T) {
	nettest.Require(t)
	maps := mapsOf(t)
	flow := sockdiag.Flow{Local: netip.MustParseAddrPort("10.0.0.1:1"), Remote: netip.MustParseAddrPort("10.0.0.2:2")}
	count := 0
	for i := range 8000 {
		flow.Protocol = []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP}[i%2]
		flow.Local = netip.AddrPortFrom(flow.Local.Addr(), uint16(i))
		if err := maps.learn(flow, learnt{uid: 1, seen: 1}, false); err != nil {
			t.Fatal(err)
		}
	}
	if err := maps.forgetUDP(); err != nil {
		t.Fatal(err)
	}
	var key [40]byte
	var value [32]byte
	all := maps.flows.Iterate()
	for all.Next(&key, &value) {
		if count++; key[36] == unix.IPPROTO_UDP {
			t.Fatalf("%x is left", key)
		}
	}
	if err := all.Err(); err != nil || count != 4000 {
		t.Errorf("%d flows are left, %v, want 4000", count, err)
	}
}

func TestLiveTogether(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	f := openIn(t, s, mapsOf(t))
	_, at := datagrams(t, s, firstUID, "127.0.0.1:0")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range 200 {
				remote := netip.AddrPortFrom(at.Addr(), uint16(1+i*200+n))
				flow := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: at, Remote: remote}
				q := Question{Packet: packetOf(flow, 0)}
				if a := f.Find(q); a.UID != firstUID || f.Inode(q, firstUID) != a.Inode {
					t.Errorf("%+v", a)
				}
			}
		})
	}
	for range 50 {
		c, _ := datagrams(t, s, secondUID, "127.0.0.1:0")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
}

func TestLivePing(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	s.Run(t, "sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")
	f := openIn(t, s, shared{})
	const id = 0x1234
	for _, c := range []struct {
		family, protocol int
		at               unix.Sockaddr
		request, reply   []byte
	}{
		{unix.AF_INET, unix.IPPROTO_ICMP, &unix.SockaddrInet4{Port: id},
			nettest.IPv4("127.0.0.1", "127.0.0.2", unix.IPPROTO_ICMP, 0, nil, []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}),
			nettest.IPv4("127.0.0.2", "127.0.0.1", unix.IPPROTO_ICMP, 0, nil, []byte{0, 0, 0, 0, 0x12, 0x34, 0, 1})},
		{unix.AF_INET6, unix.IPPROTO_ICMPV6, &unix.SockaddrInet6{Port: id},
			nettest.IPv6("::1", "::1", unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0x12, 0x34, 0, 1}),
			nettest.IPv6("::1", "::1", unix.IPPROTO_ICMPV6, []byte{129, 0, 0, 0, 0x12, 0x34, 0, 1})},
	} {
		fd := -1
		if err := s.Do(firstUID, func() (err error) {
			if fd, err = unix.Socket(c.family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, c.protocol); err != nil {
				return err
			}
			return unix.Bind(fd, c.at)
		}); err != nil {
			t.Fatal(err)
		}
		a := check(t, f, Question{Packet: c.request, Outgoing: true}, firstUID)
		var st unix.Stat_t
		inode := f.Inode(Question{Packet: c.reply}, firstUID)
		if err := unix.Fstat(fd, &st); err != nil || a.Inode != uint32(st.Ino) || inode != a.Inode {
			t.Errorf("%+v, %v, want inode %d", a, err, st.Ino)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		check(t, f, Question{Packet: c.reply}, firstUID)
		c.request[len(c.request)-4]++ // another identifier
		check(t, f, Question{Packet: c.request, Outgoing: true}, pcapng.UIDUnknown)
	}
}
