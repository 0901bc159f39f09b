// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// makeCounters makes counters with maps of their own, in which the entry of index 0 is.
func makeCounters(t *testing.T, most uint32) *counters {
	t.Helper()
	nettest.Require(t)
	made := map[string]*ebpf.Map{}
	for name, spec := range map[string]ebpf.MapSpec{
		"slots":      {Type: ebpf.PerCPUArray, MaxEntries: slots},
		"interfaces": {Type: ebpf.PerCPUHash, MaxEntries: most},
	} {
		spec.KeySize, spec.ValueSize = 4, 48
		m, err := ebpf.NewMap(&spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		made[name] = m
	}
	c, err := openCounters(made)
	if err == nil {
		err = c.others.Put(uint32(0), make([]counts, c.cpus))
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// put has a processor count packets of an index, as the programs do.
func (c *counters) put(t *testing.T, index uint32, n counts) {
	t.Helper()
	if err := c.add(index); err != nil {
		t.Fatal(err)
	}
	key := index
	if c.of[index] == c.slots {
		key %= slots
	}
	cpus := make([]counts, c.cpus)
	for i := range cpus {
		cpus[i].Ifindex = uint64(index)
	}
	n.Ifindex = uint64(index)
	cpus[len(cpus)-1] = n
	if err := c.of[index].Put(key, cpus); err != nil {
		t.Fatal(err)
	}
}

// claimed returns whose a slot is to the programs.
func (c *counters) claimed(t *testing.T, slot uint32) uint64 {
	t.Helper()
	var cpus []counts
	if err := c.slots.Lookup(slot, &cpus); err != nil {
		t.Fatal(err)
	}
	for _, of := range cpus {
		if of.Ifindex != cpus[0].Ifindex {
			t.Errorf("slot %d is of %d and of %d", slot, cpus[0].Ifindex, of.Ifindex)
		}
	}
	return cpus[0].Ifindex
}

// TestCounters has indexes that meet in a slot: the first has it, and the others are counted by the hash.
func TestCounters(t *testing.T) {
	c := makeCounters(t, 4)
	for _, index := range []uint32{7, 7 + slots, 7 + 2*slots} {
		c.put(t, index, counts{In: uint64(index)})
	}
	if of := c.claimed(t, 7); of != 7 {
		t.Errorf("the slot is of %d", of)
	}
	for _, index := range []uint32{7, 7 + slots, 7 + 2*slots} {
		if err := c.add(index); err != nil { // again
			t.Error(err)
		}
		if sum, err := c.sum(index); err != nil || sum != (counts{In: uint64(index)}) {
			t.Errorf("index %d: %+v, %v", index, sum, err)
		}
	}
	if err := c.add(8); !errors.Is(err, unix.E2BIG) {
		t.Errorf("more than there is room for: %v", err)
	}
	for _, index := range []uint32{7, 7 + slots} {
		if err := c.remove(index); err != nil || c.has(index) {
			t.Errorf("index %d: %v", index, err)
		}
	}
	if of := c.claimed(t, 7); of != 0 {
		t.Errorf("the slot is of %d, which left", of)
	}
	c.put(t, 7+3*slots, counts{Out: 1})
	if of := c.claimed(t, 7); of != 7+3*slots {
		t.Errorf("the slot is of %d", of)
	}
	if sum, err := c.sum(7 + 2*slots); err != nil || sum.In != 7+2*slots {
		t.Errorf("one that stays: %+v, %v", sum, err)
	}
}
