// SPDX-License-Identifier: Apache-2.0

// Package pcapng writes packets, and what is known of their interfaces, as a pcapng file that stays readable whatever
// happens to its output, or the packets alone as a pcap file.
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

	linuxSLL2 LinkType = 276 // LINKTYPE_LINUX_SLL2: of a pcap file in which packets have several
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

// Block is what a Writer writes: *Interface, *Packet, *Statistics or *Secrets.
type Block interface{ block() }

// Interface describes an interface before the first packet of it. Empty strings are left out.
type Interface struct {
	Index       int // by which packets and statistics name it; for the caller to choose, from 0 up and less than 65,536
	Name        string
	Description string
	LinkType    LinkType
	Snaplen     uint32 // bytes; 0 means no limit
	Filter      string // the expression as the user wrote it
	OS          string

	// For pcap files of several link types, which name an interface by them in each packet; not in pcapng.
	Kernel   uint32 // the kernel's index of it
	Hardware uint16 // ARPHRD_*; 0 is taken as what has the link type, as a rule
}

// Packet is one captured packet. The Writer copies what it needs: Data and Comments stay the caller's.
type Packet struct {
	Interface int    // Index of its Interface
	Time      int64  // unix nanoseconds
	Data      []byte // as captured, from the link type's first byte; at most 262,144 bytes are written
	Length    uint32 // original, bytes on the wire; taken as len(Data) if that is more
	Direction Direction
	Comments  []string
	Topic     *Topic // of the first comment; nil: it is always written

	// The owner, as the programs told it, for whoever names it in Comments; not written.
	UID    uint32 // UIDUnknown and UIDNone are none
	Cgroup uint64 // id of the cgroup of version 2 in which the owner's socket was made; 0: unknown
}

// Topic is what the first comments of several packets are about, as is whose a flow is: in each file one is written at the first of them,
// and where it says something else than the one before. What is in it is the Writer's.
type Topic struct {
	stretch int
	text    string
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

// Secrets are what decrypts the packets behind them (section 4.7). They are repeated at the start of each file, in one block for each
// Key, until others have the same Key: those of the 4,096 keys that were written last, or fewer if they are more than 4 MiB in
// all. Writer.Forgotten tells how many are not.
//
// Data that begins with what Key had before adds the rest only to the file that is written. Each block must be readable alone, so
// that of TLSKeyLog is whole lines, each with its newline: that is the caller's duty.
type Secrets struct {
	Key  string // for the caller to choose: a connection's name, say
	Type SecretsType
	Data []byte // at most 262,144 bytes are written, of lines the whole ones; none: those of Key are not repeated any more
}

// SecretsType tells what Secrets have in their Data.
type SecretsType uint32

// TLSKeyLog is the lines of an SSLKEYLOGFILE.
const TLSKeyLog SecretsType = 0x544c534b

func (*Interface) block()  {}
func (*Packet) block()     {}
func (*Statistics) block() {}
func (*Secrets) block()    {}

// ErrInterface is the error of a packet or statistics whose interface no Interface block has described, and of one whose Index
// is out of range. The block is not written; the Writer stays usable.
var ErrInterface = errors.New("interface not described")

// ErrLinkType is the error of a packet whose link type is not that of the pcap file, which has but one. It is not
// written; the Writer stays usable.
var ErrLinkType = errors.New("a pcap file has but one link type, and it is not this packet's")
