// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/owner"
	"droidtap/agent/pcapng"
)

const (
	// mostConnections is how many are known at once: the one that was heard of the longest ago is forgotten. As many secrets are
	// repeated in each file.
	mostConnections = 4096
	// mostSecrets bounds what is kept of a connection, in bytes: a process can call its library's function as often as it likes.
	mostSecrets = 8 << 10
	// linger is how long after its end a connection's packets may still come, in the time of packets: retransmissions.
	linger = int64(10 * time.Second)
)

// flow names the packets of a connection of TCP or UDP, both ways.
type flow struct {
	low, high netip.AddrPort
	protocol  uint8
}

func flowOf(a, b netip.AddrPort, protocol uint8) flow {
	if a.Compare(b) > 0 {
		a, b = b, a
	}
	return flow{a, b, protocol}
}

// connection is a TLS connection of which a ClientHello was seen, or a secret.
type connection struct {
	random
	place   *list.Element // in connections.order
	hello   bool          // was seen
	flow    flow          // of the hello
	client  netip.AddrPort
	closed  [2]bool   // there was a FIN, by whether it came from the low end
	ended   bool      // it is in connections.ended
	behind  time.Time // when the server's first encrypted packet came; zero: none has
	secrets []byte    // lines of a key log
}

// end is when a connection ended, by the time of its last packet.
type end struct {
	*connection
	at int64
}

// connections brings together the handshakes that are captured and the secrets that processes derive. It may be used by
// several goroutines at once.
type connections struct {
	emit func(pcapng.Block) // does not wait
	now  func() time.Time

	mu     sync.Mutex
	of     map[random]*connection
	order  list.List // of *connection, that which was heard of last is at the back
	flows  map[flow]*connection
	before map[flow]bool // those that began before the capture did; true: encrypted packets of it were seen
	ended  []end         // in the order in which they ended
	tally  tally
}

// tally is what there is to say at the end.
type tally struct {
	handshakes uint64 // ClientHellos, each random once
	decrypted  uint64 // of those: with secrets
	keyed      uint64 // connections with secrets, seen or not
	lines      uint64 // secrets that were written
	late       uint64 // of those: behind packets that need them
	early      uint64 // connections from before the capture whose encrypted packets were captured
	excess     uint64 // secrets that were not kept, because a connection had too many
}

func newConnections(emit func(pcapng.Block)) *connections {
	return &connections{emit: emit, now: time.Now, of: map[random]*connection{}, flows: map[flow]*connection{}, before: map[flow]bool{}}
}

// began adds a connection from before the capture.
func (c *connections) began(local, remote netip.AddrPort, protocol uint8) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.before[flowOf(local, remote, protocol)] = false
}

// add has a secret written ahead of the packets that wait, and tells whether it was new. line ends with a newline.
func (c *connections) add(r random, line []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.know(r)
	if bytes.Contains(one.secrets, line) {
		return false
	}
	if len(one.secrets)+len(line) > mostSecrets {
		c.tally.excess++
		return false
	}
	if first(line) && !one.behind.IsZero() && c.now().Sub(one.behind) > lead {
		c.tally.late++
	}
	if len(one.secrets) == 0 {
		c.tally.keyed++
		if one.hello {
			c.tally.decrypted++
		}
	}
	c.tally.lines++
	one.secrets = append(one.secrets, line...)
	c.emit(&pcapng.Secrets{Key: string(r[:]), Type: pcapng.TLSKeyLog, Data: one.secrets[:len(one.secrets):len(one.secrets)]})
	return true
}

// first tells whether a line has a secret without which no encrypted packet of its connection can be read.
func first(line []byte) bool {
	label, _, _ := bytes.Cut(line, []byte{' '})
	return string(label) == "CLIENT_RANDOM" || bytes.HasSuffix(label, []byte("_HANDSHAKE_TRAFFIC_SECRET"))
}

// know returns the connection of a random.
func (c *connections) know(r random) *connection {
	if one := c.of[r]; one != nil {
		c.order.MoveToBack(one.place)
		return one
	}
	if len(c.of) == mostConnections {
		c.forget(c.order.Front().Value.(*connection))
	}
	one := &connection{random: r}
	one.place = c.order.PushBack(one)
	c.of[r] = one
	return one
}

// forget has the secrets of a connection repeated no more.
func (c *connections) forget(one *connection) {
	if len(one.secrets) > 0 {
		c.emit(&pcapng.Secrets{Key: string(one.random[:]), Type: pcapng.TLSKeyLog})
	}
	c.order.Remove(one.place)
	delete(c.of, one.random)
	if c.flows[one.flow] == one {
		delete(c.flows, one.flow)
	}
}

// follow learns from a packet, and returns the random of the ClientHello in it. early is true for the first encrypted packet of a
// connection from before the capture.
func (c *connections) follow(p *pcapng.Packet, l2 bool) (r random, hello, early bool) {
	s, ok := owner.ParseSegment(p.Data, l2)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep(p.Time)
	if s.Protocol == unix.IPPROTO_UDP {
		return r, false, c.quic(s)
	}
	if len(s.Payload) > 0 {
		r, hello, early = c.look(s)
	}
	c.ends(s, p.Time)
	return
}

// ends notes the end of a TCP connection, and that another one takes its place.
func (c *connections) ends(s owner.Segment, at int64) {
	const fin, syn, rst, ack = 1, 2, 4, 0x10
	if s.Flags&(fin|syn|rst) == 0 {
		return
	}
	f := flowOf(s.Src, s.Dst, s.Protocol)
	one := c.flows[f]
	switch {
	case s.Flags&(syn|ack) == syn:
		delete(c.before, f)
		if one != nil {
			c.forget(one)
		}
	case one == nil:
	case s.Flags&fin != 0:
		way := 0
		if s.Src == f.low {
			way = 1
		}
		one.closed[way] = true
		c.end(one, at, one.closed[1-way])
	default:
		c.end(one, at, true)
	}
}

// look looks into a segment of a TCP connection.
func (c *connections) look(s owner.Segment) (r random, hello, early bool) {
	switch {
	case s.Payload[0] == handshake:
		if r, hello = clientHello(s.Payload); !hello {
			return
		}
		f := flowOf(s.Src, s.Dst, s.Protocol)
		delete(c.before, f) // TLS begins only now
		one := c.know(r)
		if !one.hello {
			one.hello = true
			c.tally.handshakes++
			if len(one.secrets) > 0 {
				c.tally.decrypted++
			}
		}
		one.flow, one.client, c.flows[f] = f, s.Src, one
	case s.Payload[0] == applicationData && encrypted(s.Payload):
		f := flowOf(s.Src, s.Dst, s.Protocol)
		early = c.early(f)
		if one := c.flows[f]; one != nil && one.behind.IsZero() && s.Src != one.client {
			one.behind = c.now()
		}
	}
	return
}

// quic tells whether a datagram is the first packet of a QUIC connection from before the capture: one with a short header
// (RFC 9000, 17.3), on the port of HTTP.
func (c *connections) quic(s owner.Segment) bool {
	const form, fixed, https = 0x80, 0x40, 443
	if len(c.before) == 0 || len(s.Payload) == 0 || s.Payload[0]&(form|fixed) != fixed || s.Src.Port() != https && s.Dst.Port() != https {
		return false
	}
	return c.early(flowOf(s.Src, s.Dst, s.Protocol))
}

func (c *connections) early(f flow) bool {
	seen, is := c.before[f]
	if !is || seen {
		return false
	}
	c.before[f] = true
	c.tally.early++
	return true
}

// end notes the end of a connection once, if it is whole.
func (c *connections) end(one *connection, at int64, whole bool) {
	if whole && !one.ended {
		one.ended = true
		c.ended = append(c.ended, end{one, at})
	}
}

// sweep forgets the connections that ended long enough before a packet.
func (c *connections) sweep(now int64) {
	for len(c.ended) > 0 && now-c.ended[0].at > linger {
		one := c.ended[0].connection
		c.ended = c.ended[1:]
		if c.of[one.random] == one {
			c.forget(one)
		}
	}
}

// count returns the tally as it is.
func (c *connections) count() tally {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tally
}
