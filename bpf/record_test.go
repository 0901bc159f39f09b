// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"bytes"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
)

// maxRun is the longest packet that BPF_PROG_TEST_RUN takes for a classifier: a
// page of 4,096 bytes less head room and struct skb_shared_info. It makes linear
// packets only (6.18 refuses __sk_buff.data_end). Longer ones and others: live_test.go.
const maxRun = 3712

var runSizes = []int{14, 15, 60, 63, 64, 65, 95, 96, 97, 127, 128, 129, 511, 512, 513, 1500, 2047, 2048, 2049, maxRun - 1, maxRun}

const eventSize = 40

// recordSize is the size of a record of caplen bytes: in a ring buffer that of its
// class, and in a perf buffer that of its bytes and what makes it a multiple of 8
// together with the 4 bytes of its size.
func recordSize(m *ebpf.Map, caplen int) int {
	if m.Type() != ebpf.RingBuf {
		return (4+eventSize+caplen+7)/8*8 - 4
	}
	for _, class := range []int{64, 128, 512, 2048, 8192, 32768, 65536, 65280 + 512} {
		if caplen <= class {
			return eventSize + class
		}
	}
	return eventSize + maxSnaplen
}

// maxCaplen is the most that a record holds of a packet.
func maxCaplen(m *ebpf.Map) int {
	if m.Type() == ebpf.RingBuf {
		return maxSnaplen
	}
	return 65536 - 64
}

// check holds a record against the packet that it is of.
func (r record) check(t *testing.T, m *ebpf.Map, packet []byte, snaplen int, want event) {
	t.Helper()
	want.Len = uint32(len(packet))
	want.Caplen = uint32(min(len(packet), snaplen, maxCaplen(m)))
	want.Time = r.Time
	if r.event != want {
		t.Errorf("event is\n%+v, want\n%+v", r.event, want)
	}
	if size := recordSize(m, int(want.Caplen)); r.size != size {
		t.Errorf("record of caplen %d has %d bytes, want %d", want.Caplen, r.size, size)
	}
	if len(r.bytes) < int(want.Caplen) || !bytes.Equal(r.bytes[:want.Caplen], packet[:want.Caplen]) {
		t.Errorf("the bytes of a packet of %d differ, caplen %d", len(packet), want.Caplen)
	}
}

func TestRecord(t *testing.T) {
	forPacketObjects(t, func(t *testing.T, name string) {
		for _, snaplen := range []int{1, 64, 96, maxSnaplen} {
			c := start(t, name, config{settings: settings{Snaplen: uint32(snaplen), Directions: both}})
			for _, p := range programs {
				for _, size := range runSizes {
					t.Run(fmt.Sprintf("%s of %d bytes by snaplen %d", p.name, size, snaplen), func(t *testing.T) {
						c.checkOne(t, p.name, size, snaplen, p.direction)
					})
				}
			}
			n := uint64(len(programs) * len(runSizes))
			if got := c.counts(t, loopback); got != (counts{In: n / 2, Out: n / 2, Received: n}) {
				t.Errorf("counts are %+v after %d packets", got, n)
			}
		}
	})
}

func (c *capture) checkOne(t *testing.T, program string, size, snaplen int, direction uint8) {
	packet := frame(size)
	before := bootTime(t)
	c.run(t, program, loopback, packet)
	after := bootTime(t)
	consumed := c.waiting()
	all := c.records(t)
	if len(all) != 1 {
		t.Fatalf("%d records of one packet", len(all))
	}
	all[0].check(t, c.Maps["events"], packet, snaplen, event{Ifindex: loopback, Direction: direction, UID: uidUnknown})
	if all[0].Time < before || all[0].Time > after {
		t.Errorf("time %d is not between %d and %d of CLOCK_BOOTTIME", all[0].Time, before, after)
	}
	const head = 8 // of a record of a ring buffer
	if want := head + all[0].size; consumed >= 0 && consumed != want {
		t.Errorf("the record takes %d bytes of the ring, want %d", consumed, want)
	}
}

// waiting is how many bytes of a ring buffer are not read yet; -1 in a perf buffer.
func (c *capture) waiting() int {
	if r, ok := c.ring.(ringBuffer); ok {
		return r.AvailableBytes()
	}
	return -1
}

// TestFullRing fills a ring that nobody reads: what has no room is counted.
func TestFullRing(t *testing.T) {
	forPacketObjects(t, func(t *testing.T, name string) {
		const packets = 200
		c := start(t, name, config{settings: settings{Snaplen: maxSnaplen, Directions: both}, buffer: os.Getpagesize()})
		for range packets {
			c.run(t, "l2_ingress", loopback, frame(128))
		}
		written := uint64(len(c.records(t)))
		got := c.counts(t, loopback)
		if want := (counts{In: packets, Received: packets, Dropped: packets - written}); got != want {
			t.Errorf("counts are %+v and %d are in the ring, want %+v", got, written, want)
		}
		if written == 0 || written == packets {
			t.Errorf("the ring held %d of %d records", written, packets)
		}

		c.run(t, "l2_ingress", loopback, frame(128))
		if n := len(c.records(t)); n != 1 {
			t.Errorf("the ring was read, and takes %d of 1 record", n)
		}
	})
}

func TestDirections(t *testing.T) {
	forPacketObjects(t, func(t *testing.T, name string) {
		for _, c := range []struct {
			rule       string
			directions uint32
			want       counts
		}{
			{"in only", ingress, counts{In: 2, Received: 2}},
			{"out only", egress, counts{Out: 2, Received: 2}},
			{"both", both, counts{In: 2, Out: 2, Received: 4}},
			{"none", 0, counts{}},
		} {
			t.Run(c.rule, func(t *testing.T) {
				o := start(t, name, config{settings: settings{Snaplen: 64, Directions: c.directions}})
				for _, p := range programs {
					o.run(t, p.name, loopback, frame(60))
				}
				all := o.records(t)
				for _, r := range all {
					if uint32(r.Direction)&c.directions == 0 {
						t.Errorf("there is a record of direction %d", r.Direction)
					}
				}
				if got := o.counts(t, loopback); got != c.want || len(all) != int(c.want.Received) {
					t.Errorf("counts are %+v and there are %d records, want %+v", got, len(all), c.want)
				}
			})
		}
	})
}

func TestInterfaces(t *testing.T) {
	forPacketObjects(t, func(t *testing.T, name string) {
		s := newSpace(t, 65536)
		other := s.other
		for _, c := range []struct {
			rule       string
			interfaces []uint32
			counted    uint32 // entry; 0 with records 0: none
			records    int
		}{
			{"a packet is counted where it came from", []uint32{0, loopback, other}, other, 1},
			{"what no entry claims is counted in entry 0", []uint32{0, loopback}, 0, 1},
			{"without entry 0 it is not recorded", []uint32{loopback}, loopback, 0},
		} {
			t.Run(c.rule, func(t *testing.T) {
				s.enter(t)
				o := start(t, name, config{settings: settings{Snaplen: 64, Directions: both}, interfaces: c.interfaces})
				o.run(t, "l2_ingress", other, frame(60))
				all := o.records(t)
				if len(all) != c.records {
					t.Fatalf("%d records, want %d", len(all), c.records)
				}
				if len(all) == 1 && all[0].Ifindex != other {
					t.Errorf("the record says interface index %d, want %d", all[0].Ifindex, other)
				}
				for _, index := range c.interfaces {
					want := counts{}
					if index == c.counted {
						want = counts{In: uint64(c.records), Received: uint64(c.records)}
					}
					if got := o.counts(t, index); got != want {
						t.Errorf("entry %d counts %+v, want %+v", index, got, want)
					}
				}
			})
		}
	})
}

// TestSlots has an interface that has a slot, and one whose slot is another's.
func TestSlots(t *testing.T) {
	needRoot(t)
	s := newSpace(t, 65536)
	for _, c := range []struct {
		rule     string
		slot     uint32 // whose it is
		in, hash uint64 // what is counted there
	}{
		{"its own", s.other, 1, 0},
		{"another's", s.other + slots, 0, 1},
		{"nobody's", 0, 0, 1},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s.enter(t)
			o := start(t, "packet.ring.o", config{
				settings:   settings{Snaplen: 64, Directions: both},
				interfaces: []uint32{0, s.other},
				edit: func(spec *ebpf.CollectionSpec) {
					spec.Maps["slots"].Contents = []ebpf.MapKV{{Key: s.other % slots, Value: claim(c.slot)}}
				},
			})
			o.run(t, "l2_ingress", s.other, frame(60))
			var cpus []counts
			if err := o.Maps["slots"].Lookup(s.other%slots, &cpus); err != nil {
				t.Fatal(err)
			}
			got := counts{}
			for _, cpu := range cpus {
				got.In += cpu.In
				got.Received += cpu.Received
			}
			if got != (counts{In: c.in, Received: c.in}) {
				t.Errorf("the slot has %+v", got)
			}
			if got := o.counts(t, s.other); got != (counts{In: c.hash, Received: c.hash}) {
				t.Errorf("the hash has %+v", got)
			}
		})
	}
}
