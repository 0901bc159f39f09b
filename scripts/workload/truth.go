// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
)

// Truth is what is known of a packet.
type Truth struct {
	Case     Case
	Version  int    // 4, 6, or 0
	Protocol string // "tcp", "udp", "icmp", or "other"
	Out      bool
	UID      int // or None
	// Comm is the name of the process that has the socket, and has made it but for Chowned.
	Comm string
	// Shared says that RunComm had it, too, for a moment at least.
	Shared bool
	// Key is the frame without the checksum of its transport header, which is not yet there where programs at egress see it.
	Key string
}

// Classifier says whose packets are, in their order.
type Classifier struct {
	net       Net
	fragments map[fragment]*packet
	opened    map[flow]*opening // of TCPReuse
}

type fragment struct {
	src, dst netip.Addr
	id       uint32
}

type flow struct {
	remote     netip.Addr
	port, near int
}

// opening counts the connections that one flow has been.
type opening struct {
	seq uint32
	n   int
}

// NewClassifier makes one.
func NewClassifier(n Net) *Classifier {
	return &Classifier{n, map[fragment]*packet{}, map[flow]*opening{}}
}

var be = binary.BigEndian

// packet is the parsed part of one.
type packet struct {
	version  int
	protocol int
	src, dst netip.Addr
	l4       []byte // of the first fragment only
	fragment *fragment
	later    bool
}

// parse takes an IP packet, which a quoting ICMP error may have cut.
func parse(b []byte) (p packet, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.version, p.protocol = 4, int(b[9])
		p.src, p.dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		if f := be.Uint16(b[6:]); f&0x3fff != 0 {
			p.fragment, p.later = &fragment{p.src, p.dst, uint32(be.Uint16(b[4:]))}, f&0x1fff != 0
		}
		p.l4 = b[min(len(b), int(b[0]&15)*4):]
		return p, true
	case len(b) >= 40 && b[0]>>4 == 6:
		p.version, p.protocol = 6, int(b[6])
		p.src, p.dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		p.l4 = b[40:]
		return p, p.extensions()
	}
	return p, false
}

// extensions goes to the transport header.
func (p *packet) extensions() bool {
	for {
		size := 8
		switch p.protocol {
		case 0, 43, 60: // hop-by-hop, routing, destination
			if len(p.l4) < 2 {
				return false
			}
			size = int(p.l4[1])*8 + 8
		case 44:
			if len(p.l4) < 8 {
				return false
			}
			p.fragment = &fragment{p.src, p.dst, be.Uint32(p.l4[4:])}
			p.later = p.later || be.Uint16(p.l4[2:])&0xfff8 != 0
		default:
			return true
		}
		if len(p.l4) < size {
			return false
		}
		p.protocol, p.l4 = int(p.l4[0]), p.l4[size:]
		if p.later {
			return true
		}
	}
}

func (p *packet) name() string {
	switch p.protocol {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 1, 58:
		return "icmp"
	}
	return "other"
}

// checksum is the offset of the one in the transport header, 0 where there is none.
func (p *packet) checksum() int {
	return map[int]int{6: 16, 17: 6}[p.protocol]
}

// Key is the frame without the checksum of its transport header.
func Key(frame []byte) string {
	frame = bytes.Clone(frame)
	if len(frame) >= 14 {
		if p, ok := parse(frame[14:]); ok {
			if at := p.checksum(); at > 0 && !p.later && len(p.l4) >= at+2 {
				p.l4[at], p.l4[at+1] = 0, 0
			}
		}
	}
	return string(frame)
}

// Classify takes an Ethernet frame.
func (c *Classifier) Classify(frame []byte) (Truth, error) {
	t := Truth{Case: Kernel, Protocol: "other", UID: None, Key: Key(frame)}
	if len(frame) < 14 {
		return t, fmt.Errorf("frame of %d bytes", len(frame))
	}
	p, ok := parse(frame[14:])
	if kind := be.Uint16(frame[12:]); !ok || kind != 0x0800 && kind != 0x86dd {
		return t, nil
	}
	t.Version, t.Protocol = p.version, p.name()
	if err := c.assemble(&p); err != nil {
		return t, err
	}
	behind := p.src == c.net.Behind4 || p.src == c.net.Behind6
	t.Out = behind || p.src == c.net.Near4 || p.src == c.net.Near6
	switch {
	case p.dst.IsMulticast() || p.src.IsLinkLocalUnicast() || p.dst.IsLinkLocalUnicast() || p.version == 6 && p.protocol == 58 && len(p.l4) > 0 && p.l4[0] >= 133:
		return t, nil
	case behind || !t.Out && p.dst != c.net.Near4 && p.dst != c.net.Near6:
		t.Case = Forwarded
		return t, nil
	}
	return t, c.own(&t, &p)
}

// assemble gives a later fragment the ports of the first.
func (c *Classifier) assemble(p *packet) error {
	if p.fragment == nil {
		return nil
	}
	if !p.later {
		first := *p
		first.l4 = bytes.Clone(p.l4[:min(len(p.l4), 64)])
		c.fragments[*p.fragment] = &first
		return nil
	}
	first := c.fragments[*p.fragment]
	if first == nil {
		return fmt.Errorf("fragment %v without its first", *p.fragment)
	}
	p.l4 = first.l4
	return nil
}

// own finds the owner of a packet that is not forwarded.
func (c *Classifier) own(t *Truth, p *packet) error {
	if len(p.l4) < 8 {
		return fmt.Errorf("transport header of %d bytes", len(p.l4))
	}
	if t.Protocol != "icmp" {
		src, dst := int(be.Uint16(p.l4)), int(be.Uint16(p.l4[2:]))
		if t.Out {
			return c.name(t, p, src, dst, p.dst, p.l4)
		}
		return c.name(t, p, dst, src, p.src, p.l4)
	}
	request, reply := 8, 0
	if p.version == 6 {
		request, reply = 128, 129
	}
	switch kind, id := int(p.l4[0]), int(be.Uint16(p.l4[4:])); {
	case kind == request && !t.Out, kind == reply && t.Out:
		t.Case = Echoed
		return nil
	case kind == request, kind == reply:
		return c.name(t, p, id, 0, netip.Addr{}, p.l4)
	default:
		return c.quoted(t, p)
	}
}

// quoted finds the owner of the packet that an ICMP error quotes.
func (c *Classifier) quoted(t *Truth, p *packet) error {
	q, ok := parse(p.l4[8:])
	if !ok || len(q.l4) < 4 {
		return fmt.Errorf("ICMP type %d that quotes no packet", p.l4[0])
	}
	near := q.src == c.net.Near4 || q.src == c.net.Near6
	if t.Out {
		near = q.dst == c.net.Near4 || q.dst == c.net.Near6
	}
	if !near {
		t.Case = Forwarded
		return nil
	}
	src, dst := int(be.Uint16(q.l4)), int(be.Uint16(q.l4[2:]))
	if t.Out {
		return c.name(t, &q, dst, src, q.src, nil)
	}
	return c.name(t, &q, src, dst, q.dst, nil)
}

// name fills in what the near port, or the id of an echo, says.
func (c *Classifier) name(t *Truth, p *packet, near, far int, remote netip.Addr, l4 []byte) error {
	uid, kind, ok := caseOf(near)
	if !ok {
		return fmt.Errorf("near port %d is no case's", near)
	}
	t.UID, t.Case = uid, kind
	switch kind {
	case Closed:
		return nil
	case UDPReuse, UDPReuseNow:
		t.Comm = ReuseComm
		return spoken(t, l4)
	case TCPReuse:
		t.Comm = ReuseComm
		return c.count(t, flow{remote, far, near}, l4)
	}
	t.Comm, t.Shared = Comm(uid), kind == Handed || kind == Chowned || kind == TCPLoss
	return nil
}

// spoken reads the uid that the payload tells.
func spoken(t *Truth, udp []byte) (err error) {
	if len(udp) < 14 {
		return fmt.Errorf("no payload that tells the uid")
	}
	t.UID, err = strconv.Atoi(string(bytes.TrimLeft(udp[8:14], "0 ")))
	return err
}

// count tells the uid by how many connections the flow has been: each has the next user.
func (c *Classifier) count(t *Truth, f flow, tcp []byte) error {
	o := c.opened[f]
	if tcp[13]&0x12 == 2 && (o == nil || o.seq != be.Uint32(tcp[4:])) { // a SYN that is not sent again
		if o == nil {
			o = &opening{}
			c.opened[f] = o
		}
		o.seq, o.n = be.Uint32(tcp[4:]), o.n+1
	}
	if o == nil {
		return fmt.Errorf("%v has no beginning", f)
	}
	t.UID = Reuser(o.n - 1)
	return nil
}

// Reuser is the user whose the n-th socket at a reused port is.
func Reuser(n int) int { return []int{10123, 10124, 10125}[n%3] }
