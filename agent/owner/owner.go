// SPDX-License-Identifier: Apache-2.0

// Package owner finds whose a packet is where the programs in the kernel could not tell: by the flows that they learnt, by
// the kernel's answer about a socket (sock_diag(7)), and by waiting a little for either.
package owner

import (
	"log/slog"
	"time"

	"github.com/cilium/ebpf"
)

// Patience is how long after it was seen a packet may wait for its owner.
const Patience = 50 * time.Millisecond

// Options are what a Finder works with.
type Options struct {
	// The maps of bpf/src/owner.h, which belong to the caller; nil where there is none.
	Flows, Fragments, Closed *ebpf.Map
	Log                      *slog.Logger
}

// Finder may be used by several goroutines at once.
type Finder struct{}

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

// Open is called in the network namespace of the capture.
func Open(Options) (*Finder, error) { return &Finder{}, nil }

// Find answers.
func (f *Finder) Find(Question) Answer { return Answer{} }

// Inode returns that of the socket of a packet, 0 where it is not known: what is asked for where a cgroup tells no process.
func (f *Finder) Inode(Question) uint32 { return 0 }

// Close ends what it does in the background. Nobody may ask any more.
func (f *Finder) Close() error { return nil }
