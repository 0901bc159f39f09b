// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

func TestSockets(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	const sockets = 400 // more than one datagram of the dump
	keep := func(c interface{ Close() error }, err error) error {
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return err
	}
	as := func(uid int, f func() error) {
		t.Helper()
		if err := s.Do(uid, f); err != nil {
			t.Fatal(err)
		}
	}
	as(10001, func() error {
		for range sockets {
			if err := keep(net.ListenPacket("udp6", "[::1]:0")); err != nil {
				return err
			}
		}
		return keep(net.ListenPacket("udp4", "127.0.0.1:0"))
	})
	var l net.Listener
	as(0, func() (err error) { l, err = net.Listen("tcp6", "[::1]:0"); return keep(l, err) })
	as(10002, func() error { return keep(net.Dial("tcp6", l.Addr().String())) })
	as(10003, func() error {
		c, err := net.Dial("tcp6", l.Addr().String())
		if err != nil {
			return err
		}
		return c.Close() // in FIN_WAIT, with no process
	})
	type key struct {
		protocol uint8
		uid      uint32
	}
	open := map[key]int{}
	s.Must(t, func() error {
		return Sockets(func(s Socket) {
			if s.Inode != 0 {
				open[key{s.Protocol, s.UID}]++
			}
		})
	})
	for k, want := range map[key]int{{unix.IPPROTO_UDP, 10001}: sockets + 1, {unix.IPPROTO_TCP, 0}: 1, {unix.IPPROTO_TCP, 10002}: 1} {
		if open[k] != want {
			t.Errorf("%d open sockets of %+v, want %d", open[k], k, want)
		}
		delete(open, k)
	}
	if len(open) > 0 {
		t.Errorf("others are open: %v", open)
	}
}

// counted is the message of a socket with a struct tcp_info.
func counted(seq uint32, uid, inode uint32, acked, received uint64) []byte {
	body := make([]byte, sizeSocket+4+136)
	ne.PutUint32(body[sizeSocket-8:], uid)
	ne.PutUint32(body[sizeSocket-4:], inode)
	a := body[sizeSocket:]
	ne.PutUint16(a, 4+136)
	ne.PutUint16(a[2:], attrInfo)
	ne.PutUint64(a[4+120:], acked)
	ne.PutUint64(a[4+128:], received)
	return message(unix.SOCK_DIAG_BY_FAMILY, seq, body)
}

// listed is what is compared of a socket.
type listed struct {
	protocol       uint8
	uid            uint32
	open           bool
	sent, received uint64
}

func parseAll(b []byte, protocol uint8) (all []listed, done bool, err error) {
	done, err = parseDump(b, 7, protocol, func(s Socket) {
		all = append(all, listed{s.Protocol, s.UID, s.Inode != 0, s.Sent, s.Received})
	})
	return all, done, err
}

func TestParseDump(t *testing.T) {
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	one := counted(7, 10123, 5, 1000, 77)
	end := message(unix.NLMSG_DONE, 7, make([]byte, 4))
	for _, c := range []struct {
		rule     string
		b        []byte
		protocol uint8
		want     []listed
		done     bool
		err      error
	}{
		{"several", slices.Concat(one, counted(7, 0, 5, 0, 0)), tcp, []listed{{tcp, 10123, true, 1000, 77}, {tcp, 0, true, 0, 0}}, false, nil},
		{"the last", slices.Concat(one, end), tcp, []listed{{tcp, 10123, true, 1000, 77}}, true, nil},
		{"UDP counts no bytes", one, udp, []listed{{udp, 10123, true, 0, 0}}, false, nil},
		{"a closed one", counted(7, 10123, 0, 1, 2), tcp, []listed{{tcp, 10123, false, 1, 2}}, false, nil},
		{"a closed one of nobody knows whom", counted(7, 0, 0, 1, 2), tcp, nil, false, nil},
		{"one of another user namespace", counted(7, overflowUID, 5, 1, 2), tcp, nil, false, nil},
		{"an answer to another question", counted(6, 10123, 5, 1, 2), tcp, nil, false, nil},
		{"the kernel has none of this protocol", refused(unix.NLMSG_ERROR, 7, unix.ENOENT), tcp, nil, true, unix.ENOENT},
	} {
		all, done, err := parseAll(c.b, c.protocol)
		if !slices.Equal(all, c.want) || done != c.done || err != c.err {
			t.Errorf("%s: %+v, %v, %v, want %+v, %v, %v", c.rule, all, done, err, c.want, c.done, c.err)
		}
	}
}

func FuzzParseDump(f *testing.F) {
	f.Add(slices.Concat(counted(7, 10123, 5, 1000, 77), message(unix.NLMSG_DONE, 7, make([]byte, 4))))
	f.Add(refused(unix.NLMSG_ERROR, 7, unix.ENOENT))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, _, _ := parseAll(b, unix.IPPROTO_TCP)
		if len(all) > len(b)/(sizeHeader+sizeSocket) {
			t.Errorf("%d sockets in %d bytes", len(all), len(b))
		}
	})
}
