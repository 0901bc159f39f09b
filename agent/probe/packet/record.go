// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// event mirrors struct event of bpf/src/agent.h: what stands before the packet's
// bytes in a record. TestABI holds the two together.
type event struct {
	Time      uint64
	Cgroup    uint64
	Ifindex   uint32
	Len       uint32
	Caplen    uint32
	UID       uint32
	VlanTCI   uint16
	VlanProto [2]byte // big endian, as on the wire
	Direction uint8
	Pad       [3]uint8
}

const eventSize = 40

// Directions as bpf/src/agent.h numbers them.
const (
	recordIngress = 1
	recordEgress  = 2
)

// parse reads the event of a record that has one. Field by field, where it is used: it is not copied for that.
func (e *event) parse(raw *[eventSize]byte) {
	le := binary.LittleEndian
	e.Time = le.Uint64(raw[0:])
	e.Cgroup = le.Uint64(raw[8:])
	e.Ifindex = le.Uint32(raw[16:])
	e.Len = le.Uint32(raw[20:])
	e.Caplen = le.Uint32(raw[24:])
	e.UID = le.Uint32(raw[28:])
	e.VlanTCI = le.Uint16(raw[32:])
	e.VlanProto = [2]byte(raw[34:])
	e.Direction = raw[36]
}

// put writes the event's bytes.
func (e event) put(to []byte) {
	le := binary.LittleEndian
	le.PutUint64(to, e.Time)
	le.PutUint64(to[8:], e.Cgroup)
	le.PutUint32(to[16:], e.Ifindex)
	le.PutUint32(to[20:], e.Len)
	le.PutUint32(to[24:], e.Caplen)
	le.PutUint32(to[28:], e.UID)
	le.PutUint16(to[32:], e.VlanTCI)
	copy(to[34:], e.VlanProto[:])
	copy(to[36:], []byte{e.Direction, 0, 0, 0})
}

// decoder makes packets of records.
type decoder struct {
	clock    *clock
	snaplen  int
	ports    *ports
	judge    *atomic.Pointer[judge]
	resolved [16]resolved // by the last bits of the index: of the interfaces that records were of
}

// resolved is what was found out about an interface, and holds while what it was found by does.
type resolved struct {
	ports *map[uint32]*port
	judge *judge
	index uint32
	port  *port // nil: none of ours
	exact bool  // the programs decide about its packets
}

// resolve finds out about the interface of a record.
func (d *decoder) resolve(e *event) *resolved {
	s := &d.resolved[e.Ifindex%uint32(len(d.resolved))]
	ports, judge := d.ports.byIndex.Load(), d.judge.Load()
	if s.index != e.Ifindex || s.ports != ports || s.judge != judge {
		// Beside another filter records are looked at one by one.
		*s = resolved{ports, judge, e.Ifindex, d.ports.of(e.Ifindex), judge.before == nil && judge.now.exact(*e)}
	}
	return s
}

func newDecoder(c *clock, snaplen uint32, of *ports, now filters) decoder {
	d := decoder{clock: c, snaplen: int(snaplen), ports: of, judge: &atomic.Pointer[judge]{}}
	d.judge.Store(&judge{now: now})
	return d
}

// stamp returns the time of a record that is made now.
func (d *decoder) stamp() uint64 { return uint64(d.clock.kernel()) }

// judge filters behind the kernel, where its programs do not decide about every packet. While a filter takes the place
// of another, records of either are on their way, and packets that one of the two matches are kept.
type judge struct {
	now    filters
	before *judge // of the filter before it
	until  uint64 // records with stamps up to this one, of the kernel's clock, may be of before
}

func (j *judge) keeps(e event, packet []byte) bool {
	exact := true
	for i := j; i != nil; i = i.older(e) {
		exact = exact && i.now.exact(e)
	}
	for i := j; i != nil && !exact; i = i.older(e) {
		if i.now.matches(e, packet) {
			return true
		}
	}
	return exact
}

// older returns the judge of the filter before, if the record may be of that.
func (j *judge) older(e event) *judge {
	if e.Time > j.until {
		return nil
	}
	return j.before
}

// forget drops what no record can be of any more.
func (j *judge) forget(now uint64) *judge {
	if j == nil {
		return nil
	}
	kept := *j
	if kept.before = j.before.forget(now); j.until+uint64(longest) < now {
		kept.before = nil
	}
	return &kept
}

const (
	// longest is how long a record may wait for the agent, in ns: behind a pipe that nobody reads, say.
	longest = 10 * time.Minute
	// settling is how long after a replacement, in ns, the old program may still be running on another processor.
	settling = 100 * time.Millisecond
)

// exact tells whether the programs have decided about a record's packet.
func (f *filters) exact(e event) bool {
	of, known := f.of[f.wires[int(e.Ifindex)]]
	return !known || of.exact()
}

func (f *filters) matches(e event, packet []byte) bool {
	of, known := f.of[f.wires[int(e.Ifindex)]]
	return known && of.Match(packet, filter.Meta{
		Length:      e.Len,
		Outgoing:    e.Direction == recordEgress,
		Ifindex:     e.Ifindex,
		VlanPresent: e.VlanProto != [2]byte{},
		VlanTCI:     e.VlanTCI,
	})
}

const (
	macs    = 12 // bytes of an Ethernet header before the place of a VLAN tag
	vlanTag = 4  // bytes
)

var ways = [4]pcapng.Direction{recordIngress: pcapng.Inbound, recordEgress: pcapng.Outbound}

// block is decode for whoever takes any block.
func (d *decoder) block(raw []byte, p *pcapng.Packet) (pcapng.Block, error) {
	if ok, err := d.decode(raw, p); !ok {
		return nil, err
	}
	return p, nil
}

// decode makes p of a record; its Data is a part of raw up to the snapshot length: its capacity is
// that of the bytes that came (see whole). It returns false, and no error, where the filter does not match.
// A tag that the network card or the kernel took off the packet is put back, as
// libpcap does, so that the file holds what was on the wire.
func (d *decoder) decode(raw []byte, p *pcapng.Packet) (bool, error) {
	var e event
	if len(raw) >= eventSize {
		e.parse((*[eventSize]byte)(raw))
	}
	if uint64(eventSize)+uint64(e.Caplen) > uint64(len(raw)) {
		return false, fmt.Errorf("record of %d bytes is cut short", len(raw))
	}
	r := d.resolve(&e)
	port := r.port
	if port == nil {
		return false, fmt.Errorf("record of interface index %d, which is not captured on", e.Ifindex)
	}
	bytes := raw[eventSize:][:e.Caplen:e.Caplen]
	if !r.exact && !r.judge.keeps(e, bytes) {
		port.refused.Add(1)
		return false, nil
	}
	// All of it, one by one: it would be made elsewhere and copied.
	p.Interface = port.number
	p.Time = d.clock.wall(e.Time)
	p.Data = bytes[:min(len(bytes), d.snaplen):len(bytes)]
	p.Length = e.Len
	p.Direction = ways[e.Direction%4]
	p.Comments, p.Topic = nil, nil
	p.UID, p.Cgroup = e.UID, e.Cgroup
	if e.VlanProto != [2]byte{} && port.linkType == pcapng.Ethernet && len(p.Data) >= macs {
		tagged := make([]byte, 0, vlanTag+len(bytes)) // raw may lie in the ring
		tagged = append(append(tagged, bytes[:macs]...), e.VlanProto[:]...)
		tagged = append(binary.BigEndian.AppendUint16(tagged, e.VlanTCI), bytes[macs:]...)
		p.Data = tagged[:min(len(p.Data)+vlanTag, d.snaplen):len(tagged)]
		p.Length += vlanTag
	}
	return true, nil
}

// whole returns the bytes that came of a packet, of which the file has those of the snapshot length.
func whole(p *pcapng.Packet) []byte { return p.Data[:cap(p.Data)] }
