// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/cilium/ebpf"

	"droidtap/agent/kernel"
	"droidtap/bpf"
)

// settings mirrors struct settings of bpf/src/agent.h.
type settings struct {
	Snaplen, Directions, Owner, Wakeup, LoopbackOnce, Others, Unattributed uint32
	Cgroups, SockUID, SockCgroup, CgroupNode, NodeID                       uint32
}

// enum owner of bpf/src/agent.h.
const (
	ownerIgnore = iota
	ownerTell
	ownerFilter
)

// way is a way to find owners.
type way struct {
	name  string
	owner uint32
	uids  int // in the map, the app's among them
	kernel.Offsets
}

func ways(object string, o kernel.Offsets) []way {
	none := kernel.Offsets{}
	all := []way{
		{"no owners", ownerIgnore, 0, none},
		{"flows, told", ownerTell, 0, none},
		{"flows, 1 uid", ownerFilter, 1, none},
		{"flows, 1000 uids", ownerFilter, 1000, none},
	}
	if object == "ring" && o.SockUID != 0 {
		all = append(all,
			way{"lookup, told", ownerTell, 0, o},
			way{"lookup, 1 uid", ownerFilter, 1, o},
			way{"lookup, 1000 uids", ownerFilter, 1000, o})
	}
	return all
}

// load loads the classifiers as a capture of 96 bytes of each packet does, with rings that nobody reads and that hold what comes.
func (w way) load(object string) (*ebpf.Collection, error) {
	const both, snaplen, buffer = 3, 96, 4 << 20
	spec, err := bpf.Open("packet", object)
	if err != nil {
		return nil, err
	}
	set := settings{
		Snaplen: snaplen, Directions: both, Owner: w.owner, Wakeup: buffer,
		Cgroups: 1, SockUID: w.SockUID, SockCgroup: w.SockCgroup, CgroupNode: w.CgroupNode, NodeID: w.NodeID,
	}
	if v, ok := spec.Variables["settings"]; ok {
		if err := v.Set(set); err != nil {
			return nil, fmt.Errorf("set settings: %w", err)
		}
	} else {
		spec.Maps["settings"].Contents = []ebpf.MapKV{{Key: uint32(0), Value: set}}
	}
	if m := spec.Maps["events"]; m.Type == ebpf.RingBuf {
		m.MaxEntries = buffer
	}
	uids := spec.Maps["uids"]
	for n := range w.uids {
		uids.Contents = append(uids.Contents, ebpf.MapKV{Key: uint32(app + n), Value: uint8(1)})
	}
	uids.MaxEntries = max(1, uint32(w.uids))
	for name := range spec.Programs {
		if name != "l2_egress" && name != "l2_ingress" {
			delete(spec.Programs, name)
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	if err := count(coll.Maps["interfaces"]); err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// count makes the entry for all interfaces.
func count(interfaces *ebpf.Map) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	nothing := make([][]byte, cpus)
	for i := range nothing {
		nothing[i] = make([]byte, interfaces.ValueSize())
	}
	return interfaces.Put(uint32(0), nothing)
}
