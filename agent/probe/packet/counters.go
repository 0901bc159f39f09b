// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// counts mirrors struct counts of bpf/src/packet.bpf.c: packets of one interface.
type counts struct {
	In, Out, Received, Dropped, Unattributed uint64
	Ifindex                                  uint64 // in a slot, whose it is
}

func (c counts) plus(d counts) counts {
	return counts{c.In + d.In, c.Out + d.Out, c.Received + d.Received, c.Dropped + d.Dropped, c.Unattributed + d.Unattributed, 0}
}

// slots is SLOTS of bpf/src/packet.bpf.c.
const slots = 256

// counters is where the programs count packets, by the index of their interface. Nobody else may write its maps.
type counters struct {
	slots  *ebpf.Map            // for an index at index%slots; nil: the programs have none
	others *ebpf.Map            // for those whose slot is another's, and for 0: what has no entry
	most   int                  // entries
	of     map[uint32]*ebpf.Map // by index
	cpus   int
}

func openCounters(maps map[string]*ebpf.Map) (*counters, error) {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the processors: %w", err)
	}
	others := maps["interfaces"]
	return &counters{
		slots: maps["slots"], others: others, most: int(others.MaxEntries()),
		of: map[uint32]*ebpf.Map{0: others}, cpus: cpus,
	}, nil
}

// add begins to count an index, unless it is counted. Its error is E2BIG where there is no room.
func (c *counters) add(index uint32) error {
	if c.of[index] != nil {
		return nil
	}
	if len(c.of) >= c.most {
		return unix.E2BIG
	}
	m, key := c.others, index
	if c.isFree(index % slots) {
		m, key = c.slots, index%slots
	}
	cpus := make([]counts, c.cpus)
	for i := range cpus {
		cpus[i].Ifindex = uint64(index)
	}
	if err := m.Put(key, cpus); err != nil {
		return err
	}
	c.of[index] = m
	return nil
}

// isFree tells whether there is a slot, and it is nobody's.
func (c *counters) isFree(slot uint32) bool {
	for index, m := range c.of {
		if m == c.slots && index%slots == slot {
			return false
		}
	}
	return c.slots != nil
}

// has tells whether an index is counted.
func (c *counters) has(index uint32) bool { return c.of[index] != nil }

// sum returns what was counted of an index that is counted.
func (c *counters) sum(index uint32) (sum counts, err error) {
	key := index
	if c.of[index] == c.slots {
		key %= slots
	}
	var cpus []counts
	if err := c.of[index].Lookup(key, &cpus); err != nil {
		return sum, fmt.Errorf("read the counters of interface %d: %w", index, err)
	}
	for _, of := range cpus {
		sum = sum.plus(of)
	}
	return sum, nil
}

// remove ends the count of an index that is counted.
func (c *counters) remove(index uint32) (err error) {
	if m := c.of[index]; m == c.slots {
		err = m.Put(index%slots, make([]counts, c.cpus))
	} else {
		err = m.Delete(index)
	}
	if err == nil {
		delete(c.of, index)
	}
	return err
}
