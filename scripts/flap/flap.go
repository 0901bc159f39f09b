// SPDX-License-Identifier: Apache-2.0

// Package flap takes away what a capture hangs on, as Android's netd and drivers do, and tells when the capture has it back.
package flap

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Patience is how long a Flapper waits for filters.
const Patience = 20 * time.Second

// Flapper changes interfaces of one network namespace. It belongs to one goroutine.
type Flapper struct {
	Made   time.Time // when the kernel answered the last Make: from then on the interface was there
	handle *netlink.Handle
	events *nl.NetlinkSocket
}

// Open makes a Flapper for a namespace; netns.None() is that of the calling thread.
func Open(ns netns.NsHandle) (*Flapper, error) {
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	events, err := nl.SubscribeAt(ns, netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("listen to changes of filters: %w", err)
	}
	f := &Flapper{handle: handle, events: events}
	limit := unix.NsecToTimeval(int64(Patience))
	err = errors.Join(events.SetReceiveTimeout(&limit), events.SetReceiveBufferSize(4<<20, true))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("listen to changes of filters: %w", err)
	}
	return f, nil
}

// Close ends it.
func (f *Flapper) Close() {
	f.events.Close()
	f.handle.Close()
}

// Index returns the ifindex of a name.
func (f *Flapper) Index(name string) (int, error) {
	l, err := f.handle.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("look up %s: %w", name, err)
	}
	return l.Attrs().Index, nil
}

// Peer is the name of the other end of what Make makes.
const Peer = "flapped"

// Make makes a veth interface that is up, and Peer, which is not, and returns its ifindex, which is a new one.
func (f *Flapper) Make(name string) (int, error) {
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Flags: unix.IFF_UP}, PeerName: Peer}
	// The kernel brings it up in the same request, so that there is one change to see.
	if err := f.handle.LinkAdd(l); err != nil {
		return 0, fmt.Errorf("make interface %s: %w", name, err)
	}
	f.Made = time.Now()
	return f.Index(name)
}

// Delete deletes an interface.
func (f *Flapper) Delete(index int) error {
	if err := f.handle.LinkDel(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}); err != nil {
		return fmt.Errorf("delete interface %d: %w", index, err)
	}
	return nil
}

// Clsact deletes the clsact of an interface, makes it again where nobody has by then, and waits until a bpf filter is in both
// directions. It returns the time from the kernel's answer to the deletion to its message of the second filter.
func (f *Flapper) Clsact(index int) (time.Duration, error) {
	clsact := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := f.handle.QdiscDel(clsact); err != nil {
		return 0, fmt.Errorf("delete clsact: %w", err)
	}
	deleted := time.Now()
	// As netd does: with EXCL, and content with one that is there.
	if err := f.handle.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
		return 0, fmt.Errorf("make clsact: %w", err)
	}
	err := f.await(index, unix.RTM_DELQDISC)
	return time.Since(deleted), err
}

// AwaitFilters waits until a bpf filter is in both directions of an interface that was made by Make.
func (f *Flapper) AwaitFilters(index int) error { return f.await(index, 0) }

// await reads messages until there were those of both filters, after one of another type if one is given.
func (f *Flapper) await(index int, after uint16) error {
	var in, out bool
	for begun := after == 0; !in || !out; {
		messages, from, err := f.events.Receive()
		if err != nil {
			return fmt.Errorf("wait for filters (ingress %v, egress %v): %w", in, out, err)
		}
		if from.Pid != 0 {
			continue
		}
		for _, m := range messages {
			if len(m.Data) < nl.SizeofTcMsg {
				continue
			}
			tc := nl.DeserializeTcMsg(m.Data)
			switch {
			case int(tc.Ifindex) != index:
			case m.Header.Type == after && tc.Parent == netlink.HANDLE_CLSACT:
				begun = true
			case begun && m.Header.Type == unix.RTM_NEWTFILTER:
				in = in || tc.Parent == netlink.HANDLE_MIN_INGRESS
				out = out || tc.Parent == netlink.HANDLE_MIN_EGRESS
			}
		}
	}
	return nil
}

// Filters returns how many bpf filters are at ingress and egress of an interface.
func (f *Flapper) Filters(index int) (in, out int, err error) {
	for n, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		l := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
		all, err := f.handle.FilterList(l, parent)
		if err != nil {
			return 0, 0, fmt.Errorf("list filters: %w", err)
		}
		for _, one := range all {
			switch b, ok := one.(*netlink.BpfFilter); {
			case !ok || b.Handle == 0:
			case n == 0:
				in++
			default:
				out++
			}
		}
	}
	return in, out, nil
}
