// SPDX-License-Identifier: Apache-2.0

// Package pcapng writes packets, interfaces and interface statistics as a pcapng file that stays readable
// whatever happens to its output.
//
// Section numbers in comments are those of draft-ietf-opsawg-pcapng.
package pcapng

import "errors"

// LinkType is a LINKTYPE_ value of https://www.tcpdump.org/linktypes.html.
type LinkType uint16

// The link types of an Android phone's interfaces.
const (
	Ethernet LinkType = 1   // LINKTYPE_ETHERNET
	Raw      LinkType = 101 // LINKTYPE_RAW: the packet begins with its IPv4 or IPv6 header
)

// Direction is the way of a packet, seen from this host: bits 0-1 of epb_flags (section 4.3.1).
type Direction uint8

// The directions of a packet.
const (
	DirectionUnknown Direction = iota
	Inbound
	Outbound
)

// Section describes the file: who wrote it and where. Empty fields are left out.
type Section struct {
	Hardware    string // the machine
	OS          string // operating system and kernel
	Application string // the program that wrote the file
	Comment     string // the command line
}

// Block is what a Writer writes: *Interface, *Packet or *Statistics.
type Block interface{ block() }

// Interface describes an interface before the first packet of it. Empty strings are left out.
type Interface struct {
	Index       int // by which packets and statistics name it; for the caller to choose
	Name        string
	Description string
	LinkType    LinkType
	Snaplen     uint32 // bytes; 0 means no limit
	Filter      string // the expression as the user wrote it
	OS          string
}

// Packet is one captured packet. The Writer copies what it needs: Data and Comments stay the caller's.
type Packet struct {
	Interface int    // Index of its Interface
	Time      int64  // unix nanoseconds
	Data      []byte // as captured, from the link type's first byte; at most 262,144 bytes are written
	Length    uint32 // original, bytes on the wire; taken as len(Data) if that is more
	Direction Direction
	Comments  []string

	// The owner, as the programs told it, for whoever names it in Comments; not written.
	UID    uint32 // UIDUnknown and UIDNone are none
	Cgroup uint64 // id of the cgroup of version 2 in which the owner's socket was made; 0: unknown
}

// What stands for the owner of a packet that has none: UID_UNKNOWN and UID_NONE of bpf/src/agent.h.
const (
	UIDUnknown = 0xffffffff // it may be found out
	UIDNone    = 0xfffffffe // it has no owner: the kernel made it, forwards it or takes it for nobody
)

// Statistics are the counters of one interface over the time of the capture.
type Statistics struct {
	Interface  int    // Index of its Interface
	Time       int64  // unix nanoseconds, when the counters were read
	Start, End int64  // unix nanoseconds, of the capture; 0 leaves the option out
	Received   uint64 // packets seen, before the filter
	Accepted   uint64 // packets the filter accepted
	Dropped    uint64 // accepted packets lost before they reached us
	Delivered  uint64 // packets that reached us
	Comment    string
}

func (*Interface) block()  {}
func (*Packet) block()     {}
func (*Statistics) block() {}

// ErrInterface is the error of a packet or statistics whose interface no Interface block has described. The block is
// not written; the Writer stays usable.
var ErrInterface = errors.New("interface not described")
