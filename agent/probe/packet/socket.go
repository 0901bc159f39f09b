// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"droidtap/agent/afpacket"
	"droidtap/agent/hook"
	"droidtap/agent/pcapng"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

const (
	// How long a packet may wait in a block of a socket's ring: as a rule, where each is to be written at once, and where its
	// owner is to be asked for while there is one. The kernel's timer runs as often, packets or not, and wakes a processor
	// each time: as a rule it is what tcpdump takes (tcpdump.c, timeout). A block that is handed over early is lost to the
	// ring until it was read.
	retire      = time.Second
	retireSoon  = 15 * time.Millisecond
	retireOwner = 2 * time.Millisecond
	// leastRing is what a socket's ring has of a buffer that many interfaces share, in bytes: 16 packets of the largest size.
	leastRing = 2 << 20
)

// attachSocket opens a packet socket on an interface.
func (k *keeper) attachSocket(t *tap) error {
	ifc := t.ifc
	prog, err := k.program(&k.sockets, t.wire, socket)
	if err != nil {
		return fmt.Errorf("attach %s to %s: %w", plan.Packet, ifc.Name, err)
	}
	r := &ring{source: k.source, port: t.port, ifc: ifc, decoder: k.sockets.decoder}
	if r.Socket, err = afpacket.Open(k.socketOptions(t), prog); err != nil {
		return err
	}
	if seen, err := hook.Look(ifc); err == nil && len(seen.Outgoing()) > 0 {
		k.warn(ifc.Name, fmt.Sprintf("a packet socket on %s sees what leaves after all filters there: %s may hide packets",
			ifc.Name, strings.Join(seen.Outgoing(), ", ")))
	}
	t.port.rings[r] = true
	t.at = plan.Packet
	t.hooked = append(t.hooked, hooked{stopper{r}, socket, prog})
	stream := plugin.Stream{Ring: r, Decode: r.decoder.block}
	if k.owners != nil {
		stream.Settler = newSettler(k.owners)
	}
	k.target.Stream(stream)
	return nil
}

// socketOptions says how the socket of an interface is opened.
func (k *keeper) socketOptions(t *tap) afpacket.Options {
	sharers := max(1, len(k.chosen), len(k.taps))
	options := afpacket.Options{
		Ifindex: t.ifc.Index,
		Name:    t.name,
		Buffer:  max(k.target.Buffer/sharers, min(k.target.Buffer, leastRing)),
		Snaplen: min(int(k.recorded()), largest(t.ifc)),
		Retire:  retire,
	}
	switch {
	case k.filtering():
		options.Retire = retireOwner
	case k.target.Each:
		options.Retire = retireSoon
	}
	if !k.sockets.filters.of[t.wire].exact() {
		options.Snaplen = largest(t.ifc)
	}
	return options
}

// largest returns the most bytes that a packet of an interface has: a block of the ring must hold one, and should hold many.
func largest(ifc android.Interface) int {
	const heads = 128 // of the link layer, more than there are
	size := uint32(1<<16) + heads
	if d, err := rtnl.Get(ifc.Index); err == nil {
		// More than 64 KiB only where somebody has set it so (BIG TCP, 5.19).
		size = max(size, d.Largest+heads)
	}
	return int(min(size, maxSnaplen))
}

// stopper is a packet socket as an attachment: to detach it is not to close it, for its ring is read to the end.
type stopper struct{ *ring }

// Close lets no more packets into the ring, and its reader come to the end.
func (s stopper) Close() error { return errors.Join(s.Stop(), s.Flush()) }

// Check tells whether the socket is on its interface.
func (s stopper) Check() error {
	bound, err := s.Bound()
	if err == nil && !bound {
		err = hook.ErrLost
	}
	return err
}

// Warning is "": what there is to say was said when the socket was opened.
func (s stopper) Warning() string { return "" }

// ring makes records, as those of a classifier, of the packets of a socket.
type ring struct {
	*afpacket.Socket
	source  *source
	port    *port
	ifc     android.Interface
	decoder decoder
}

// Next returns the next packet behind an event, whose time is that of the wall clock.
func (r *ring) Next(buf []byte, deadline time.Time) ([]byte, error) {
	p, err := r.Socket.Next(deadline)
	if errors.Is(err, afpacket.ErrFlushed) {
		return nil, plugin.ErrFlushed
	}
	if err != nil {
		return nil, err
	}
	e := event{
		Time:      uint64(p.Time),
		Ifindex:   uint32(r.ifc.Index),
		Len:       p.Length,
		Caplen:    uint32(len(p.Data)),
		UID:       pcapng.UIDUnknown,
		Direction: recordIngress,
	}
	if p.Outgoing {
		e.Direction = recordEgress
	}
	if p.Vlan {
		e.VlanTCI = p.VlanTCI
		binary.BigEndian.PutUint16(e.VlanProto[:], p.VlanProto)
	}
	if size := eventSize + len(p.Data); cap(buf) < size {
		buf = make([]byte, size)
	} else {
		buf = buf[:size]
	}
	e.put(buf)
	copy(buf[eventSize:], p.Data)
	return buf, nil
}

// counts returns what is counted outside of the socket's program.
func (r *ring) counts() (counts, error) {
	dropped, err := r.Dropped()
	if err != nil {
		return counts{}, fmt.Errorf("read the counters of the packet socket on %s: %w", r.ifc.Name, err)
	}
	return counts{Dropped: dropped}, nil
}

// Close frees the ring, and keeps what was counted.
func (r *ring) Close() error {
	r.source.mu.Lock()
	defer r.source.mu.Unlock()
	if !r.port.rings[r] {
		return nil
	}
	c, err := r.counts()
	r.port.gone = r.port.gone.plus(c)
	delete(r.port.rings, r)
	return errors.Join(err, r.Socket.Close())
}
