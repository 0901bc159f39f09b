// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"bytes"
	"errors"
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
func found(seq uint32, s socket) []byte {
	body := make([]byte, sizeSocket+8) // and an attribute
	body[1] = s.state
	ne.PutUint32(body[64:], s.uid)
	ne.PutUint32(body[68:], s.inode)
	return message(unix.SOCK_DIAG_BY_FAMILY, seq, body)
}

func refused(kind uint16, seq uint32, n unix.Errno) []byte {
	return message(kind, seq, ne.AppendUint32(nil, uint32(-int32(n))))
}

func TestParse(t *testing.T) {
	one := socket{state: 1, uid: 10123, inode: 77}
	huge := found(7, one)
	ne.PutUint32(huge, uint32(len(huge)+1))
	for _, c := range []struct {
		rule  string
		bytes []byte
		want  socket
		err   error // nil and not a socket: any
	}{
		{"a socket", found(7, one), one, nil},
		{"one behind an answer to another request", slices.Concat(refused(unix.NLMSG_ERROR, 6, unix.EINVAL), found(7, one)), one, nil},
		{"one behind a message of odd size", slices.Concat(message(unix.NLMSG_NOOP, 6, []byte{1}), found(7, one)), one, nil},
		{"no socket", refused(unix.NLMSG_ERROR, 7, unix.ENOENT), socket{}, unix.ENOENT},
		{"an error at the end of a dump", refused(unix.NLMSG_DONE, 7, unix.ENOENT), socket{}, unix.ENOENT},
		{"of another request only", found(6, one), socket{}, errOther},
		{"nothing", nil, socket{}, errOther},
		{"less than a header", found(7, one)[:15], socket{}, errOther},
		{"a message that is cut", found(7, one)[:80], socket{}, nil},
		{"a message longer than what came", huge, socket{}, nil},
		{"a size of 0", make([]byte, 64), socket{}, nil},
		{"a short socket", message(unix.SOCK_DIAG_BY_FAMILY, 7, make([]byte, sizeSocket-1)), socket{}, nil},
		{"an error without a number", message(unix.NLMSG_ERROR, 7, []byte{1, 2, 3}), socket{}, nil},
		{"an unknown type", message(99, 7, make([]byte, 200)), socket{}, nil},
	} {
		t.Run(c.rule, func(t *testing.T) {
			got, err := parse(c.bytes, 7)
			if got != c.want || (err == nil) != (c.want != socket{}) || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("parse = %+v, %v, want %+v, %v", got, err, c.want, c.err)
			}
		})
	}
	if got, err := parse(refused(unix.NLMSG_DONE, 7, 0), 7); got != (socket{}) || err != nil {
		t.Errorf("the end of an empty dump is %+v, %v", got, err)
	}
}

func TestSocketOwner(t *testing.T) {
	const finWait2, timeWait, listen = 5, 6, 10
	for _, c := range []struct {
		rule       string
		s          socket
		known      bool
		unaccepted bool
	}{
		{"an app's", socket{stateEstablished, 10123, 77}, true, false},
		{"root's", socket{stateEstablished, 0, 77}, true, false},
		{"closed by its process", socket{finWait2, 0, 0}, false, false},
		{"closed by its process, from 6.17 on", socket{finWait2, 10123, 0}, true, false},
		{"in TIME_WAIT", socket{timeWait, 0, 0}, false, false},
		{"in a handshake", socket{stateSynRecv, 0, 0}, false, true},
		{"not accepted yet", socket{stateEstablished, 0, 0}, false, true},
		{"not accepted yet, from 6.17 on", socket{stateEstablished, 10123, 0}, true, false},
		{"not accepted before the other side closed", socket{stateCloseWait, 0, 0}, false, true},
		{"root's listener", socket{listen, 0, 77}, true, false},
		{"of another user namespace", socket{stateEstablished, overflowUID, 77}, false, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			uid, known := c.s.owner()
			if known != c.known || known && uid != c.s.uid || !known && uid != 0 {
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
	f.Add(found(7, socket{1, 10123, 77}), uint32(7))
	f.Add(slices.Concat(message(unix.NLMSG_NOOP, 6, []byte{1}), refused(unix.NLMSG_ERROR, 7, unix.ENOENT)), uint32(7))
	f.Fuzz(func(t *testing.T, b []byte, seq uint32) {
		if s, err := parse(b, seq); err != nil && s != (socket{}) {
			t.Errorf("parse = %+v, %v", s, err)
		}
	})
}
