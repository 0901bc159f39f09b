// SPDX-License-Identifier: Apache-2.0

// Package owner finds whose a packet is where the programs in the kernel could not tell: by the flows that they learnt, by
// the kernel's answer about a socket (sock_diag(7)), and by waiting a little for either.
package owner

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/sockdiag"
)

// Patience is how long after it was seen a packet may wait for its owner.
const Patience = 50 * time.Millisecond

// Options are what a Finder works with.
type Options struct {
	// The maps of bpf/src/owner.h, which belong to the caller; nil where there is none.
	Flows, Fragments, Closed *ebpf.Map
	// Now tells the time by the clock that stamps records and what the programs learn, in ns.
	Now func() int64
	Log *slog.Logger
}

// kernel knows the sockets that there are: sockets.
type kernel interface {
	Find(sockdiag.Flow) (s sockdiag.Socket, known bool, err error)
}

// programs are what has been learnt in the kernel: shared.
type programs interface {
	learnt(sockdiag.Flow) (l learnt, found bool, err error)
	learn(f sockdiag.Flow, l learnt, unlessKnown bool) error
	first(fragment) (p ports, found bool, err error)
}

// machine knows the addresses of this machine: an rtnl.Own.
type machine interface {
	Has(netip.Addr) (bool, error)
}

// Finder may be used by several goroutines at once.
type Finder struct {
	now      func() int64 // as in Options
	learns   bool         // there are programs
	programs programs
	background

	mu        sync.Mutex
	kernel    kernel
	machine   machine
	cache     cache
	fragments fragments
	closes    closes       // of UDP sockets
	closed    atomic.Int64 // those that are noted there; read without the lock
	listeners closes       // of TCP
	failures  uint64
	failure   error // the first
}

// Question is a packet.
type Question struct {
	Packet   []byte // as captured
	L2       bool   // it begins with an Ethernet header
	Outgoing bool
	Loopback bool // it is of the loopback interface, where it has a sender and a receiver
	Ifindex  uint32
	Age      time.Duration // since it was seen
}

// Answer is whose it is.
type Answer struct {
	UID    uint32 // pcapng.UIDUnknown and UIDNone are none
	Cgroup uint64 // 0: unknown
	Inode  uint32 // of the socket, as /proc/PID/fd has it; 0: unknown
	Wait   bool   // UID is UIDUnknown, and it may be known soon: ask again
	Other  uint32 // of a packet on the loopback interface: the sender, UID being the receiver; else UIDNone
}

func newFinder(now func() int64, k kernel, p programs, m machine) *Finder {
	return &Finder{
		now: now, kernel: k, programs: p, machine: m,
		cache:     cache{places: map[sockdiag.Flow]int{}},
		fragments: fragments{at: map[fragment]int{}},
		closes:    closes{protocol: unix.IPPROTO_UDP}, listeners: closes{protocol: unix.IPPROTO_TCP},
	}
}

// Find answers, at once: where it says Wait the caller is to ask again, with the same packet grown older.
func (f *Finder) Find(q Question) Answer {
	h := parse(q.Packet, q.L2)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sight(q)
	h = f.join(h, s.at)
	s.outgoing = q.Outgoing && !q.Loopback
	a := f.owner(h, q, s)
	a.Other = pcapng.UIDNone
	if q.Loopback {
		s.outgoing = true
		a.Other = f.owner(h, q, s).UID
	}
	return a
}

func (f *Finder) sight(q Question) sight {
	now := f.now()
	return sight{now: now, at: max(1, now-max(0, int64(q.Age))), outgoing: q.Outgoing}
}

// join gives a later fragment what its first one had, and keeps that of a first one. One whose first was not seen stays a
// later one.
func (f *Finder) join(h head, at int64) head {
	if h.first && !h.quoted && (h.kind == ported || h.kind == echo) {
		f.fragments.keep(h, at)
	}
	if h.kind != later {
		return h
	}
	if first, found := f.fragments.first(h.whole, at); found {
		first.quoted, first.begins = h.quoted, false
		return first
	}
	p, found, err := f.programs.first(h.whole)
	f.fail(err)
	if !found || at-p.seen >= reassembly {
		return h
	}
	h.src = netip.AddrPortFrom(h.src.Addr(), p.src)
	h.dst = netip.AddrPortFrom(h.dst.Addr(), p.dst)
	h.protocol = p.protocol
	switch h.protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		h.kind = ported
	default:
		const request, reply = 1, 2
		h.kind, h.request = echo, p.kind == request
		if p.kind != request && p.kind != reply {
			h.kind = nobodys
		}
	}
	return h
}

// owner answers for one end of a packet.
func (f *Finder) owner(h head, q Question, s sight) Answer {
	switch {
	case h.kind == later:
		return Answer{UID: pcapng.UIDUnknown, Wait: q.Age < Patience}
	case h.kind == unread:
		return Answer{UID: pcapng.UIDUnknown}
	case h.kind == nobodys, h.answering(s.outgoing):
		return Answer{UID: pcapng.UIDNone}
	}
	s.begins = h.begins
	flow := h.flow(s.outgoing)
	flow.Ifindex = q.Ifindex
	e := f.cache.entry(flow)
	if !e.holds(s, &f.closes) {
		f.renew(e, s)
	}
	switch {
	case e.none:
		return Answer{UID: pcapng.UIDNone}
	case e.known && f.closes.between(flow, e.confirmed, s.at), e.known && f.disputed(e, s):
		return Answer{UID: pcapng.UIDUnknown}
	case e.known:
		return Answer{UID: e.uid, Cgroup: e.cgroup, Inode: e.socket(e.uid, s, &f.closes)}
	case h.quoted && s.outgoing:
		return Answer{UID: pcapng.UIDNone} // an error that the kernel reports by itself
	}
	// The programs may learn whose it is from the reply, and sock_diag has not been asked for this packet yet where it
	// was just before and knew nobody.
	soon := f.learns && !s.outgoing || e.kernel < s.at
	return Answer{UID: pcapng.UIDUnknown, Wait: soon && q.Age < Patience && h.kind == ported && !h.quoted}
}

// renew asks whose the flow is.
func (f *Finder) renew(e *entry, s sight) {
	e.asked = s.now
	l, found, later := f.learnt(e.flow, s)
	if found {
		e.set(l.uid, l.cgroup, l.seen)
		return
	}
	if !f.ours(e.flow, s.outgoing) {
		e.known, e.answered, e.none = false, true, true
		return
	}
	// What is found only later than for the packet's first question, or after a close, may be another's socket.
	changed := later || f.closes.between(e.flow, s.at, s.now) || f.listeners.between(e.flow, s.at, s.now)
	if e.kernel < s.at && !changed && f.ask(e, s.now) {
		l = learnt{uid: e.uid, cgroup: e.cgroup, seen: s.now}
		f.fail(f.programs.learn(e.flow, l, false))
		return
	}
	e.unset(s, &f.closes)
}

// disputed tells whether the port was closed so soon after it was known whose a packet is that it may have been before, and
// the packet may be of who had the port next.
func (f *Finder) disputed(e *entry, s sight) bool {
	then := max(s.at, e.confirmed)
	switch {
	case !f.closes.between(e.flow, then, then+late):
		return false
	case f.closes.after(e.flow, then+late):
		return true
	}
	socket, known, err := f.kernel.Find(e.flow)
	f.fail(err)
	return known && socket.UID != e.uid
}

// learnt returns what the programs know, if that counts for the packet. later says that it is of a connection after the one
// that the packet begins.
func (f *Finder) learnt(flow sockdiag.Flow, s sight) (l learnt, found, later bool) {
	l, found, err := f.programs.learnt(flow)
	f.fail(err)
	switch {
	case !found, s.at-l.seen > lifetime(flow.Protocol):
		return l, false, false
	case f.closes.between(flow, l.seen, s.at):
		return l, false, false // the port may be another's
	case s.begins && !s.outgoing:
		// The SYN-ACK told of it.
		return l, l.born >= s.at-skew && l.born <= s.at+handshake, l.born > s.at+handshake
	}
	return l, true, false
}

// ours tells whether the local end is an address of this machine. A socket of the any address is found for all others, too.
func (f *Finder) ours(flow sockdiag.Flow, outgoing bool) bool {
	a := flow.Local.Addr()
	if outgoing && a.Unmap().IsUnspecified() {
		return true // before the machine has one, as DHCP sends
	}
	if outgoing && a.IsMulticast() {
		return false
	}
	has, err := f.machine.Has(a)
	f.fail(err)
	return has
}

// ask asks the kernel for the socket of a flow.
func (f *Finder) ask(e *entry, now int64) bool {
	socket, known, err := f.kernel.Find(e.flow)
	if f.fail(err); err == nil || errors.Is(err, sockdiag.ErrNoDiag) {
		e.kernel = now
	}
	if known {
		e.set(socket.UID, socket.Cgroup, now)
		e.opened(socket, now)
	}
	return known
}

// fail counts what did not work, if it is not nil. That a protocol cannot be asked about was said at the start.
func (f *Finder) fail(err error) {
	if err == nil || errors.Is(err, sockdiag.ErrNoDiag) {
		return
	}
	if f.failures == 0 {
		f.failure = err
	}
	f.failures++
}

// Inode returns that of the socket of a packet whose owner is known to be the uid, 0 where it is not known: what is asked for where a
// cgroup tells no process. It is the sender's of an outgoing packet, the receiver's of another, also on the loopback interface.
func (f *Finder) Inode(q Question, uid uint32) uint32 {
	h := parse(q.Packet, q.L2)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sight(q)
	h = f.join(h, s.at)
	if h.kind != ported && h.kind != echo || h.answering(s.outgoing) {
		return 0
	}
	flow := h.flow(s.outgoing)
	flow.Ifindex = q.Ifindex
	e := f.cache.entry(flow)
	if s.begins = h.begins; s.begins && e.open < s.at-skew {
		e.inode = 0 // that of an earlier connection
	}
	inode := e.socket(uid, s, &f.closes)
	changed := f.closes.between(flow, s.at, s.now) // a socket of now is not the packet's
	if inode != 0 && s.now-e.open < valid || changed || s.now-e.kernel < retry || e.kernel >= s.at {
		return inode
	}
	if !e.known && !f.ours(flow, s.outgoing) {
		return 0
	}
	e.kernel = s.now
	socket, known, err := f.kernel.Find(flow)
	// Another's socket is not the one of the packet.
	if f.fail(err); known && socket.UID == uid {
		e.opened(socket, s.now)
		return e.inode
	}
	return inode
}

// Closes counts the UDP sockets that were closed, more or less: as long as it stays what it is, Inode tells nothing new of a flow
// of UDP but that it is known now.
func (f *Finder) Closes() int { return int(f.closed.Load()) }

// report says what did not work, once.
func (f *Finder) report(log *slog.Logger) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failures > 0 {
		log.Warn(fmt.Sprintf("whose packets are could not be found out %d times: %v", f.failures, f.failure))
	}
}
