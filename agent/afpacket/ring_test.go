// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestBlockSize(t *testing.T) {
	for _, c := range []struct {
		rule          string
		snaplen, page int
		want          int
	}{
		{"never less than 64 KiB", 1, 4096, 64 << 10},
		{"the last packet that ends before the block does", longest, 4096, 64 << 10},
		{"one that would end with it", longest + 1, 4096, 128 << 10},
		{"the usual snaplen", 65535, 4096, 128 << 10},
		{"the greatest snaplen", maxSnaplen, 4096, 512 << 10},
		{"pages of 64 KiB", 1, 64 << 10, 64 << 10},
		{"pages of more", 1, 256 << 10, 256 << 10},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if got := blockSize(c.snaplen, c.page); got != c.want {
				t.Errorf("blockSize(%d, %d) = %d, want %d", c.snaplen, c.page, got, c.want)
			}
		})
	}
}

// longest is the most bytes of a packet that a block of 64 KiB holds: 48 bytes before the first packet, 96 before the
// bytes of one without a link-layer header, and 8 that must be left.
const longest = 64<<10 - 48 - 96 - 8

// made is a block with one packet as the kernel makes it.
func made(change func(h *unix.Tpacket3Hdr, sll *unix.RawSockaddrLinklayer)) block {
	b := block(make([]byte, 512))
	at := blockHead
	h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&b[at]))
	sll := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b[at+unix.SizeofTpacket3Hdr]))
	*h = unix.Tpacket3Hdr{Sec: 3, Nsec: 4, Snaplen: 5, Len: 60, Status: unix.TP_STATUS_USER, Mac: 82, Net: 96}
	copy(b[at+82:], "bytes")
	change(h, sll)
	return b
}

func TestBlockPacket(t *testing.T) {
	plain := Packet{Time: 3e9 + 4, Length: 60, Data: []byte("bytes")}
	with := func(change func(*Packet)) Packet {
		p := plain
		change(&p)
		return p
	}
	type header = unix.Tpacket3Hdr
	type address = unix.RawSockaddrLinklayer
	for _, c := range []struct {
		rule   string
		at     uint32
		change func(h *header, sll *address)
		want   Packet
		next   uint32
		err    string
	}{
		{"the last packet", 48, func(h *header, _ *address) {}, plain, 0, ""},
		{"the next one is told from this", 48, func(h *header, _ *address) { h.Next_offset = 104 }, plain, 152, ""},
		{"the year 2106", 48, func(h *header, _ *address) { h.Sec = 1<<32 - 1 },
			with(func(p *Packet) { p.Time = (1<<32-1)*1e9 + 4 }), 0, ""},
		{"sent", 48, func(_ *header, sll *address) { sll.Pkttype = unix.PACKET_OUTGOING },
			with(func(p *Packet) { p.Outgoing = true }), 0, ""},
		{"to another host", 48, func(_ *header, sll *address) { sll.Pkttype = unix.PACKET_OTHERHOST }, plain, 0, ""},
		{"a tag of which the kernel says only that it is one", 48, func(h *header, _ *address) {
			h.Status |= unix.TP_STATUS_VLAN_VALID
			h.Hv1.Vlan_tci, h.Hv1.Vlan_tpid = 0x6064, 0x88a8
		}, with(func(p *Packet) { p.Vlan, p.VlanTCI, p.VlanProto = true, 0x6064, 0x8100 }), 0, ""},
		{"a tag with its TPID", 48, func(h *header, _ *address) {
			h.Status |= unix.TP_STATUS_VLAN_VALID | unix.TP_STATUS_VLAN_TPID_VALID
			h.Hv1.Vlan_tpid = 0x88a8
		}, with(func(p *Packet) { p.Vlan, p.VlanProto = true, 0x88a8 }), 0, ""},
		{"up to the end of the block", 48, func(h *header, _ *address) { h.Mac = 512 - 48 - 5 },
			with(func(p *Packet) { p.Data = make([]byte, 5) }), 0, ""},
		{"past the end of the block", 48, func(h *header, _ *address) { h.Mac = 512 - 48 - 4 }, Packet{}, 0, "5 bytes at 460"},
		{"longer than can be", 48, func(h *header, _ *address) { h.Snaplen = 1<<32 - 1 }, Packet{}, 0, "4294967295 bytes"},
		{"bytes over their own head", 48, func(h *header, _ *address) { h.Mac = 67 }, Packet{}, 0, "at 67 of the packet"},
		{"a next one in this head", 48, func(h *header, _ *address) { h.Next_offset = 67 }, plain, 0, ""},
		{"a next one behind the block", 48, func(h *header, _ *address) { h.Next_offset = 512 - 48 }, plain, 0, ""},
		{"a next one so far that it wraps", 48, func(h *header, _ *address) { h.Next_offset = 1<<32 - 8 }, plain, 0, ""},
		{"in the head of the block", 40, func(*header, *address) {}, Packet{}, 0, "a packet at 40"},
		{"no place", 0, func(*header, *address) {}, Packet{}, 0, "a packet at 0"},
		{"not aligned", 52, func(*header, *address) {}, Packet{}, 0, "a packet at 52"},
		{"a head past the end", 448, func(*header, *address) {}, Packet{}, 0, "a packet at 448"},
		{"outside", 1<<32 - 8, func(*header, *address) {}, Packet{}, 0, "a packet at 4294967288"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			got, next, err := made(c.change).packet(c.at)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want one that contains %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" || next != c.next {
				t.Errorf("next at %d, want %d; packet (-want +got):\n%s", next, c.next, diff)
			}
			if cap(got.Data) != len(got.Data) {
				t.Errorf("%d bytes may be appended in the ring", cap(got.Data)-len(got.Data))
			}
		})
	}
}

// FuzzBlockPacket has no block whose packets lead out of it, or round in it.
func FuzzBlockPacket(f *testing.F) {
	f.Add([]byte(made(func(h *unix.Tpacket3Hdr, _ *unix.RawSockaddrLinklayer) { h.Next_offset = 104 })), uint32(48))
	f.Fuzz(func(t *testing.T, raw []byte, at uint32) {
		b := append(block(nil), raw...) // aligned
		for {
			p, next, err := b.packet(at)
			if err != nil {
				return
			}
			_ = append(p.Data, 0)
			if next != 0 && next <= at {
				t.Fatalf("from %d to %d", at, next)
			}
			at = next
		}
	})
}
