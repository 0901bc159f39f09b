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

// fillMaps writes what the programs read: settings, interfaces, uids. wakeup is
// in bytes. exact: the programs decide about every packet.
func (s *source) fillMaps(spec *ebpf.CollectionSpec, wakeup uint32, exact bool) error {
	set := settings{Snaplen: s.snaplen, Directions: s.directions, Wakeup: wakeup}
	if !exact {
		set.Snaplen = maxSnaplen // the filter behind the kernel may look anywhere
	}
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
	return nil
}

// Counts reads what the programs counted.
func (s *source) Counts(coll *ebpf.Collection) (plugin.Counts, error) {
	// Before the kernel's counters: each packet was counted there first.
	refusals := map[uint32]uint64{}
	for index, n := range s.decoder.refused {
		refusals[index] = n.Load()
	}
	perIndex := map[uint32]counts{}
	var index uint32
	var cpus []counts
	it := coll.Maps["interfaces"].Iterate()
	for it.Next(&index, &cpus) {
		var sum counts
		for _, c := range cpus {
			sum.Seen += c.Seen
			sum.Received += c.Received
			sum.Dropped += c.Dropped
			sum.Unattributed += c.Unattributed
		}
		perIndex[index] = sum
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
