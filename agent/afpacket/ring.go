// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes in the ring, in bytes. See Documentation/networking/packet_mmap.rst and net/packet/af_packet.c.
const (
	blockHead = int(unsafe.Sizeof(unix.TpacketBlockDesc{})) // before the first packet: BLK_HDR_LEN
	// TPACKET3_HDRLEN: struct tpacket3_hdr is TPACKET_ALIGNed as it is, struct sockaddr_ll follows.
	packetHead = unix.SizeofTpacket3Hdr + unix.SizeofSockaddrLinklayer
	// maxMac is where a packet begins, counted from its head, at most (tpacket_rcv, macoff). The network header stands
	// at 16 bytes or the length of the link-layer header, whichever is more, behind packetHead, aligned; so this is for
	// no link-layer header at all, and less than packetHead+TPACKET_ALIGNMENT for 16 bytes or more.
	maxMac       = (packetHead + 16 + unix.TPACKET_ALIGNMENT - 1) &^ (unix.TPACKET_ALIGNMENT - 1)
	packetAlign  = 8 // V3_ALIGNMENT
	minBlockSize = 64 << 10
)

// blockSize returns the size in bytes of blocks that hold a packet of snaplen bytes: a power of two, since the kernel
// allocates one, and a multiple of the page. The end of the packet must lie before that of the block, not at it
// (__packet_lookup_frame_in_block), or the kernel hands over an empty block before each such packet.
func blockSize(snaplen, page int) int {
	need := blockHead + (maxMac+snaplen+packetAlign-1)&^(packetAlign-1)
	size := max(minBlockSize, page)
	for size <= need {
		size *= 2
	}
	return size
}

// ring is the memory that the kernel shares with us: blocks that are the kernel's or ours, filled in turn.
type ring struct {
	memory []byte
	size   int // bytes of a block
	blocks int
}

// newRing makes the ring of a socket and maps it.
func newRing(fd int, o Options) (ring, error) {
	r := ring{size: blockSize(o.Snaplen, os.Getpagesize())}
	r.blocks = max(2, (o.Buffer-1)/r.size+1)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return ring{}, fmt.Errorf("set version 3 of the ring: %w", err)
	}
	req := unix.TpacketReq3{
		Block_size:     uint32(r.size),
		Block_nr:       uint32(r.blocks),
		Frame_size:     uint32(r.size), // without a meaning in version 3, and checked
		Frame_nr:       uint32(r.blocks),
		Retire_blk_tov: uint32(o.Retire / time.Millisecond),
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &req); err != nil {
		return ring{}, fmt.Errorf("make a ring of %d blocks of %d bytes: %w", r.blocks, r.size, err)
	}
	var err error
	r.memory, err = unix.Mmap(fd, 0, r.blocks*r.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return ring{}, fmt.Errorf("map a ring of %d blocks of %d bytes: %w", r.blocks, r.size, err)
	}
	return r, nil
}

// block returns a block; the numbers go on after the last one.
func (r ring) block(n int) block { return r.memory[n%r.blocks*r.size:][:r.size] }

// block begins with struct tpacket_block_desc; packets follow.
type block []byte

const (
	statusAt  = unsafe.Offsetof(unix.TpacketBlockDesc{}.Hdr) + unsafe.Offsetof(unix.TpacketHdrV1{}.Block_status)
	packetsAt = unsafe.Offsetof(unix.TpacketBlockDesc{}.Hdr) + unsafe.Offsetof(unix.TpacketHdrV1{}.Num_pkts)
	firstAt   = unsafe.Offsetof(unix.TpacketBlockDesc{}.Hdr) + unsafe.Offsetof(unix.TpacketHdrV1{}.Offset_to_first_pkt)
)

// word is a field that the kernel may be writing.
func (b block) word(at uintptr) *uint32 { return (*uint32)(unsafe.Pointer(&b[at])) }

// ours says whether the kernel has handed the block over. What else is in it may be read then, and only then, but for
// packets.
func (b block) ours() bool { return atomic.LoadUint32(b.word(statusAt))&unix.TP_STATUS_USER != 0 }

// packets returns how many packets are in the block, even while the kernel fills it (prb_fill_curr_block).
func (b block) packets() uint32 { return atomic.LoadUint32(b.word(packetsAt)) }

// first returns where the first packet is.
func (b block) first() uint32 { return atomic.LoadUint32(b.word(firstAt)) }

// giveBack makes the block the kernel's. It empties it first: the kernel does so only when it comes to fill it.
func (b block) giveBack() {
	atomic.StoreUint32(b.word(packetsAt), 0)
	atomic.StoreUint32(b.word(statusAt), unix.TP_STATUS_KERNEL)
}

// Packet is one that the filter took.
type Packet struct {
	Time   int64  // Unix time in ns, from the kernel's software clock
	Length uint32 // bytes on the wire, without the tag that stands beside the packet
	Data   []byte // the first of them; in the ring, until the next call of Next

	// The VLAN tag that the driver or the kernel took out of the packet, and its TPID (0x8100, 0x88a8).
	Vlan               bool
	VlanTCI, VlanProto uint16

	Outgoing bool // PACKET_OUTGOING
}

// packet reads the packet at an offset, and returns where the next one is.
func (b block) packet(at uint32) (p Packet, next uint32, err error) {
	if at < uint32(blockHead) || at%packetAlign != 0 || int64(at)+packetHead > int64(len(b)) {
		return p, 0, fmt.Errorf("a packet at %d in a block of %d bytes of the ring", at, len(b))
	}
	h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&b[at]))
	sll := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b[at+unix.SizeofTpacket3Hdr]))
	end := int64(at) + int64(h.Mac) + int64(h.Snaplen)
	if h.Mac < packetHead || end > int64(len(b)) {
		return p, 0, fmt.Errorf("%d bytes at %d of the packet at %d in a block of %d bytes of the ring",
			h.Snaplen, h.Mac, at, len(b))
	}
	p = Packet{
		Time:     int64(h.Sec)*int64(time.Second) + int64(h.Nsec),
		Length:   h.Len,
		Data:     b[int64(at)+int64(h.Mac) : end : end],
		Outgoing: sll.Pkttype == unix.PACKET_OUTGOING,
	}
	if h.Status&unix.TP_STATUS_VLAN_VALID != 0 {
		p.Vlan, p.VlanTCI, p.VlanProto = true, uint16(h.Hv1.Vlan_tci), unix.ETH_P_8021Q
		if h.Status&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			p.VlanProto = h.Hv1.Vlan_tpid
		}
	}
	// In 64 bits: a sum that wraps could lead back.
	if n := int64(at) + int64(h.Next_offset); h.Next_offset >= packetHead && n < int64(len(b)) {
		next = uint32(n)
	}
	return p, next, nil
}
