// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// settings mirrors struct settings of bpf/src/agent.h.
type settings struct {
	Snaplen      uint32 // bytes of a packet to record
	Directions   uint32 // recordIngress, recordEgress
	Owner        uint32 // 1: only packets of the uids in the map
	Wakeup       uint32 // bytes that may wait in the ring
	LoopbackOnce uint32 // 1: record what the loopback interface sends only where it comes in
}

// counts mirrors struct counts of bpf/src/packet.bpf.c: packets of one interface.
type counts struct {
	Seen, Received, Dropped, Unattributed uint64
}

// fillMaps writes what the programs read: settings, interfaces, uids. wakeup and
// snaplen are in bytes. Maps that no program of spec uses are left out.
func (s *source) fillMaps(spec *ebpf.CollectionSpec, wakeup, snaplen uint32) error {
	set := settings{Snaplen: snaplen, Directions: s.directions, Wakeup: wakeup}
	if len(s.uids) > 0 {
		set.Owner = 1
	}
	if s.directions&recordIngress != 0 {
		set.LoopbackOnce = 1
	}
	if v, ok := spec.Variables["settings"]; ok {
		if err := v.Set(set); err != nil {
			return fmt.Errorf("set settings: %w", err)
		}
	} else {
		spec.Maps["settings"].Contents = []ebpf.MapKV{{Key: uint32(0), Value: set}}
	}

	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the processors: %w", err)
	}
	interfaces := spec.Maps["interfaces"]
	add := func(ifindex int) {
		interfaces.Contents = append(interfaces.Contents, ebpf.MapKV{Key: uint32(ifindex), Value: make([]counts, cpus)})
	}
	add(0) // what no interface claims
	for _, ifc := range s.chosen {
		add(ifc.Index)
	}
	interfaces.MaxEntries = uint32(len(interfaces.Contents))

	uids := spec.Maps["uids"]
	for _, uid := range s.uids {
		uids.Contents = append(uids.Contents, ebpf.MapKV{Key: uid, Value: uint8(1)})
	}
	uids.MaxEntries = max(1, uint32(len(uids.Contents)))
	if len(s.uids) == 0 {
		spec.Maps["shared_flows"].MaxEntries = 1 // nothing is learnt, so spend no memory
	}
	dropUnused(spec)
	return nil
}

// dropUnused removes the maps that no program uses, the largest of which would hold records.
func dropUnused(spec *ebpf.CollectionSpec) {
	used := map[string]bool{}
	for _, p := range spec.Programs {
		for _, in := range p.Instructions {
			if in.IsLoadFromMap() {
				used[in.Reference()] = true
			}
		}
	}
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return !used[name] })
}

func (c counts) plus(d counts) counts {
	return counts{c.Seen + d.Seen, c.Received + d.Received, c.Dropped + d.Dropped, c.Unattributed + d.Unattributed}
}

// socketCounts returns, by ifindex, what is counted of packet sockets outside of their programs.
func (s *source) socketCounts() (map[uint32]counts, error) {
	all := map[uint32]counts{}
	for _, r := range s.open {
		dropped, err := r.Dropped()
		if err != nil {
			return nil, fmt.Errorf("read the counters of the packet socket on %s: %w", r.ifc.Name, err)
		}
		all[uint32(r.ifc.Index)] = counts{Dropped: dropped, Unattributed: r.owners.unknown()}
	}
	return all, nil
}

// Counts reads what the programs counted.
func (s *source) Counts(coll *ebpf.Collection) (plugin.Counts, error) {
	// Before the kernel's counters: each packet was counted there first.
	refusals := map[uint32]uint64{}
	for _, l := range s.lanes() {
		for index, n := range l.decoder.refused {
			refusals[index] += n.Load()
		}
	}
	sockets, err := s.socketCounts()
	if err != nil {
		return plugin.Counts{}, err
	}
	perIndex := map[uint32]counts{}
	var index uint32
	var cpus []counts
	it := coll.Maps["interfaces"].Iterate()
	for it.Next(&index, &cpus) {
		var sum counts
		for _, c := range cpus {
			sum = sum.plus(c)
		}
		perIndex[index] = sum.plus(sockets[index])
	}
	if err := it.Err(); err != nil {
		return plugin.Counts{}, fmt.Errorf("read the counters: %w", err)
	}
	var total plugin.Counts
	for _, index := range slices.Sorted(maps.Keys(perIndex)) {
		c := perIndex[index]
		refused := refusals[index]
		total.Received += c.Received
		total.Refused += refused
		total.Dropped += c.Dropped
		total.Unattributed += c.Unattributed
		if index != 0 {
			total.Interfaces = append(total.Interfaces, pcapng.Statistics{
				Ifindex:  int(index),
				Received: c.Seen,
				Accepted: c.Received - refused,
				Dropped:  c.Dropped,
			})
		}
	}
	if stray := perIndex[0].Received; stray > 0 {
		return total, errors.New("packets came from an interface that was not attached to")
	}
	return total, nil
}
