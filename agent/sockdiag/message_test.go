// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// message is one of the kernel's, padded to where the next begins.
func message(kind uint16, seq uint32, body []byte) []byte {
	b := ne.AppendUint32(nil, uint32(sizeHeader+len(body)))
	b = ne.AppendUint16(b, kind)
	b = ne.AppendUint16(b, 0)
	b = ne.AppendUint32(b, seq)
	b = ne.AppendUint32(b, 4242)
	b = append(b, body...)
	return append(b, make([]byte, -len(b)&3)...)
}

// found is the answer with that socket.
func found(seq uint32, s Socket) []byte {
	body := make([]byte, sizeSocket)
	body[0], body[1] = unix.AF_INET, s.State
	be.PutUint16(body[4:], s.Local.Port())
	be.PutUint16(body[6:], s.Remote.Port())
	copy(body[8:], s.Local.Addr().AsSlice())
	copy(body[24:], s.Remote.Addr().AsSlice())
	ne.PutUint32(body[40:], s.Ifindex)
	ne.PutUint32(body[64:], s.UID)
	ne.PutUint32(body[68:], s.Inode)
	body = append(body, 8, 0, 8, 0, 1, 2, 3, 4) // INET_DIAG_SHUTDOWN, longer than it is
	body = append(body, 5, 0, attrProtocol, 0, s.Protocol, 0, 0, 0)
	body = append(body, 12, 0, attrCgroup, 0)
	body = ne.AppendUint64(body, s.Cgroup)
	return message(unix.SOCK_DIAG_BY_FAMILY, seq, body)
}

func refused(kind uint16, seq uint32, n unix.Errno) []byte {
	return message(kind, seq, ne.AppendUint32(nil, uint32(-int32(n))))
}

func TestParse(t *testing.T) {
	one := Socket{
		Protocol: unix.IPPROTO_UDP, State: 1,
		Local: netip.MustParseAddrPort(a4 + ":5353"), Remote: netip.MustParseAddrPort(b4 + ":443"),
		Ifindex: 9, UID: 10123, Inode: 77, Cgroup: 1<<32 | 45,
	}
	shortAttr := found(7, one)
	shortAttr = shortAttr[:len(shortAttr)-8]
	ne.PutUint32(shortAttr, uint32(len(shortAttr)))
	bare := one
	bare.Cgroup = 0
	huge := found(7, one)
	ne.PutUint32(huge, uint32(len(huge)+1))
	for _, c := range []struct {
		rule  string
		bytes []byte
		want  Socket
		err   error // nil and not a socket: any
	}{
		{"a socket", found(7, one), one, nil},
		{"one behind an answer to another request", slices.Concat(refused(unix.NLMSG_ERROR, 6, unix.EINVAL), found(7, one)), one, nil},
		{"one behind a message of odd size", slices.Concat(message(unix.NLMSG_NOOP, 6, []byte{1}), found(7, one)), one, nil},
		{"one whose last attribute is cut", shortAttr, bare, nil},
		{"no socket", refused(unix.NLMSG_ERROR, 7, unix.ENOENT), Socket{}, unix.ENOENT},
		{"an error at the end of a dump", refused(unix.NLMSG_DONE, 7, unix.ENOENT), Socket{}, unix.ENOENT},
		{"of another request only", found(6, one), Socket{}, errOther},
		{"nothing", nil, Socket{}, errOther},
		{"less than a header", found(7, one)[:15], Socket{}, errOther},
		{"a message that is cut", found(7, one)[:80], Socket{}, nil},
		{"a message longer than what came", huge, Socket{}, nil},
		{"a size of 0", make([]byte, 64), Socket{}, nil},
		{"a short socket", message(unix.SOCK_DIAG_BY_FAMILY, 7, make([]byte, sizeSocket-1)), Socket{}, nil},
		{"an error without a number", message(unix.NLMSG_ERROR, 7, []byte{1, 2, 3}), Socket{}, nil},
		{"an unknown type", message(99, 7, make([]byte, 200)), Socket{}, nil},
	} {
		t.Run(c.rule, func(t *testing.T) {
			got, err := parse(c.bytes, 7)
			if got != c.want || (err == nil) != (c.want != Socket{}) || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("parse = %+v, %v, want %+v, %v", got, err, c.want, c.err)
			}
		})
	}
	if got, err := parse(refused(unix.NLMSG_DONE, 7, 0), 7); got != (Socket{}) || err != nil {
		t.Errorf("the end of an empty dump is %+v, %v", got, err)
	}
}

func TestSocketOwner(t *testing.T) {
	const finWait2, timeWait, listen = 5, 6, 10
	for _, c := range []struct {
		rule       string
		s          Socket
		known      bool
		unaccepted bool
	}{
		{"an app's", Socket{State: Established, UID: 10123, Inode: 77}, true, false},
		{"root's", Socket{State: Established, UID: 0, Inode: 77}, true, false},
		{"closed by its process", Socket{State: finWait2, UID: 0, Inode: 0}, false, false},
		{"closed by its process, from 6.17 on", Socket{State: finWait2, UID: 10123, Inode: 0}, true, false},
		{"in TIME_WAIT", Socket{State: timeWait, UID: 0, Inode: 0}, false, false},
		{"in a handshake", Socket{State: stateSynRecv, UID: 0, Inode: 0}, false, true},
		{"not accepted yet", Socket{State: Established, UID: 0, Inode: 0}, false, true},
		{"not accepted yet, from 6.17 on", Socket{State: Established, UID: 10123, Inode: 0}, true, false},
		{"not accepted before the other side closed", Socket{State: stateCloseWait, UID: 0, Inode: 0}, false, true},
		{"root's listener", Socket{State: listen, UID: 0, Inode: 77}, true, false},
		{"of another user namespace", Socket{State: Established, UID: overflowUID, Inode: 77}, false, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			uid, known := c.s.owner()
			if known != c.known || known && uid != c.s.UID || !known && uid != 0 {
				t.Errorf("owner of %+v is %d, %v", c.s, uid, known)
			}
			if got := c.s.unaccepted(); got != c.unaccepted {
				t.Errorf("%+v unaccepted: %v", c.s, got)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	f := flow(unix.IPPROTO_TCP, "[fd00::1]:258", "[fd00::2]:772")
	f.Ifindex = 9
	b := request(f, 7, 0, 0xfff)
	local, remote := f.Local.Addr().As16(), f.Remote.Addr().As16()
	want := slices.Concat([]byte{unix.AF_INET6, unix.IPPROTO_TCP, 0, 0}, ne.AppendUint32(nil, 0xfff), []byte{1, 2, 3, 4},
		local[:], remote[:], ne.AppendUint32(nil, 9), bytes.Repeat([]byte{0xff}, 8))
	if !bytes.Equal(b[sizeHeader:], want) {
		t.Errorf("request:\n%x, want\n%x", b[sizeHeader:], want)
	}
	f.Protocol = unix.IPPROTO_UDP
	b = request(f, 7, 0, 0xfff)
	if !bytes.Equal(b[sizeHeader+8:][:4], []byte{3, 4, 1, 2}) || !bytes.Equal(b[sizeHeader+12:][:16], remote[:]) {
		t.Errorf("the ends of a UDP flow are not the other way round: %x", b[sizeHeader:])
	}
}

func FuzzParse(f *testing.F) {
	f.Add(found(7, Socket{State: 1, UID: 10123, Inode: 77}), uint32(7))
	f.Add(slices.Concat(message(unix.NLMSG_NOOP, 6, []byte{1}), refused(unix.NLMSG_ERROR, 7, unix.ENOENT)), uint32(7))
	f.Fuzz(func(t *testing.T, b []byte, seq uint32) {
		if s, err := parse(b, seq); err != nil && s != (Socket{}) {
			t.Errorf("parse = %+v, %v", s, err)
		}
	})
}
