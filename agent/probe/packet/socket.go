// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"droidtap/agent/afpacket"
	"droidtap/agent/hook"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
)

const (
	// How long a packet may wait in a block of a socket's ring: as a rule, where each is to be written at once, and where its
	// owner is to be asked for while there is one. A block that is handed over early is lost to the ring until it was read.
	retire      = 50 * time.Millisecond
	retireSoon  = 15 * time.Millisecond
	retireOwner = 2 * time.Millisecond
	// leastRing is what a socket's ring has of a buffer that many interfaces share, in bytes: 16 packets of the largest size.
	leastRing = 2 << 20
	// ownerHead is how many bytes of a packet hold what names its flow.
	ownerHead = 256
)

// prepareSockets leaves the programs of packet sockets only.
func (s *source) prepareSockets(spec *ebpf.CollectionSpec, t plugin.Target) error {
	n := needs{}
	for _, ifc := range s.chosen {
		n.add(s.sockets.filters.wires[ifc.Index], socket)
	}
	if err := s.prepare(&s.sockets, n, spec, t, s.socketSnaplen()); err != nil {
		return err
	}
	s.sockets.decoder = newDecoder(wallClock(), s.snaplen, s.chosen, s.sockets.filters)
	return nil
}

// socketSnaplen returns how many bytes of a packet come from a socket.
func (s *source) socketSnaplen() uint32 {
	if len(s.uids) > 0 {
		return max(s.snaplen, ownerHead)
	}
	return s.snaplen
}

// socketPrograms are the programs of packet sockets, loaded when the first one is needed.
type socketPrograms struct{ *source }

// Prepare is the source's own for a plan that has nothing but packet sockets.
func (p socketPrograms) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	return p.prepareSockets(spec, t)
}

// attachSocket opens a packet socket on an interface.
func (s *source) attachSocket(a *attachment, coll *ebpf.Collection, t plugin.Target, ifc android.Interface) error {
	f := &s.sockets.filters
	name := f.program(f.wires[ifc.Index], socket)
	if coll.Programs[name] == nil {
		if err := t.Load(socketPrograms{s}); err != nil {
			return fmt.Errorf("attach %s to %s: %w", plan.Packet, ifc.Name, err)
		}
	}
	options := afpacket.Options{
		Ifindex: ifc.Index,
		Name:    ifc.Name,
		Buffer:  max(t.Buffer/len(s.chosen), min(t.Buffer, leastRing)),
		Snaplen: min(int(s.socketSnaplen()), largest(ifc)),
		Retire:  retire,
	}
	switch {
	case len(s.uids) > 0:
		options.Retire = retireOwner
	case t.Wakeup == 0:
		options.Retire = retireSoon
	}
	if !f.exact() {
		options.Snaplen = largest(ifc)
	}
	r := &ring{ifc: ifc, decoder: s.sockets.decoder}
	if len(s.uids) > 0 {
		o, err := newOwners(s.uids, ifc, t.Log)
		if err != nil {
			return err
		}
		r.owners, r.decoder.admits = o, o.admits
	}
	var err error
	if r.Socket, err = afpacket.Open(options, coll.Programs[name]); err != nil {
		return errors.Join(err, r.owners.Close())
	}
	if seen, err := hook.Look(ifc); err == nil && len(seen.Outgoing()) > 0 {
		t.Log.Warn(fmt.Sprintf("a packet socket on %s sees what leaves after all filters there: %s may hide packets",
			ifc.Name, strings.Join(seen.Outgoing(), ", ")))
	}
	a.closers = append(a.closers, stopper{r})
	s.open = append(s.open, r)
	s.hooked = append(s.hooked, hooked{stopper{r}, ifc, socket, coll.Programs[name]})
	return nil
}

// largest returns the most bytes that a packet of an interface has: a block of the ring must hold one, and should hold many.
func largest(ifc android.Interface) int {
	const heads = 128 // of the link layer, more than there are
	size := uint32(1<<16) + heads
	if l, err := netlink.LinkByIndex(ifc.Index); err == nil {
		a := l.Attrs()
		// More than 64 KiB only where somebody has set it so (BIG TCP, 5.19).
		size = max(size, uint32(a.MTU)+heads, a.GSOMaxSize+heads, a.GROMaxSize+heads, a.GSOIPv4MaxSize+heads, a.GROIPv4MaxSize+heads)
	}
	return int(min(size, maxSnaplen))
}

// Streams returns the packet sockets.
func (s *source) Streams() []plugin.Stream {
	var all []plugin.Stream
	for _, r := range s.open {
		all = append(all, plugin.Stream{Ring: r, Decode: r.decoder.block})
	}
	return all
}

// stopper is a packet socket as an attachment: to detach it is not to close it, for its ring is read to the end.
type stopper struct{ *ring }

// Close lets no more packets into the ring.
func (s stopper) Close() error { return s.Stop() }

// Warning is "": what there is to say was said when the socket was opened.
func (s stopper) Warning() string { return "" }

// ring makes records, as those of a classifier, of the packets of a socket.
type ring struct {
	*afpacket.Socket
	ifc     android.Interface
	decoder decoder
	owners  *owners // nil: nobody asked
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
		UID:       UIDUnknown,
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

// Close frees the ring.
func (r *ring) Close() error { return errors.Join(r.Socket.Close(), r.owners.Close()) }
