// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// settings mirrors struct settings of bpf/src/agent.h.
type settings struct {
	Snaplen      uint32 // bytes of a packet to record
	Directions   uint32 // recordIngress, recordEgress
	Owner        uint32 // ownerIgnore, ownerTell or ownerFilter
	Wakeup       uint32 // bytes of records after which one wakes the reader, a power of two
	LoopbackOnce uint32 // 1: record what the loopback interface sends only where it comes in
	Others       uint32 // 1: uids that the map does not name pass
	Unattributed uint32 // 1: packets without an owner pass
	Cgroups      uint32 // 1: somebody wants the cgroup of an owner
	SockUID      uint32 // offsets in the kernel's structs, in bytes; 0: unknown
	SockCgroup   uint32
	CgroupNode   uint32
	NodeID       uint32
}

// enum ownership of bpf/src/agent.h.
const (
	ownerIgnore = iota
	ownerTell
	ownerFilter
)

// verdicts mirrors struct verdicts of bpf/src/packet.bpf.c: what the programs remember of the map of uids.
type verdicts struct {
	Generation uint64 // of the map, an even number below 1<<32
	Of         [256]uint64
}

// mostInterfaces is how many can be captured at a time. One that is there still, but is not captured any more, counts for some seconds.
const mostInterfaces = 255

// mostUIDs is how many uids and app ids the programs may filter by: more than a phone has, of all its users.
const mostUIDs = 1 << 16

// fillMaps writes what the programs read, but for the uids, which are known when it is attached, and sizes the maps. snaplen is in
// bytes. Maps that no program of spec uses are left out.
func (s *source) fillMaps(spec *ebpf.CollectionSpec, t plugin.Target, snaplen uint32) error {
	set := settings{Snaplen: snaplen, Directions: s.directions, Wakeup: uint32(t.Wakeup)}
	s.setOwners(&set, spec, t)
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
	interfaces.MaxEntries = mostInterfaces + 1
	interfaces.Contents = []ebpf.MapKV{{Key: uint32(0), Value: make([]counts, cpus)}} // what no interface claims

	dropUnused(spec)
	return nil
}

// setOwners has the programs tell owners, filter by them, or neither.
func (s *source) setOwners(set *settings, spec *ebpf.CollectionSpec, t plugin.Target) {
	set.Owner = s.mode()
	if s.whose.Others() {
		set.Others = 1
	}
	if s.keep {
		set.Unattributed = 1
	}
	uids := spec.Maps["uids"]
	uids.MaxEntries = 1
	if set.Owner == ownerFilter {
		// Without memory for all of them at once.
		uids.MaxEntries, uids.Flags = mostUIDs, unix.BPF_F_NO_PREALLOC
	}
	if set.Owner == ownerIgnore {
		for _, name := range []string{"shared_flows", "shared_fragments", "shared_closed"} {
			if m := spec.Maps[name]; m != nil {
				m.MaxEntries = 1 // nothing is learnt, so spend no memory
			}
		}
		return
	}
	if s.namesProcesses() {
		set.Cgroups = 1
	}
	set.SockUID, set.SockCgroup, set.CgroupNode, set.NodeID = t.Types.SockUID, t.Types.SockCgroup, t.Types.CgroupNode, t.Types.NodeID
	s.lookup.Store(set.SockUID != 0 && spec.Maps["events"].Type == ebpf.RingBuf) // the object for 5.8 and later looks up
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

// countIndex begins to count an interface's packets.
func (s *source) countIndex(index int) error {
	err := s.counters.add(uint32(index))
	if errors.Is(err, unix.E2BIG) {
		if err := s.foldIndexes(func(left departure) bool { return left.gone }); err != nil {
			return err
		}
		err = s.counters.add(uint32(index))
	}
	switch {
	case errors.Is(err, unix.E2BIG):
		return fmt.Errorf("%d interfaces are captured, which is the most", mostInterfaces)
	case err != nil:
		return fmt.Errorf("count packets of interface %d: %w", index, err)
	}
	return nil
}

// settle is how long after it was taken off a program may still run on another processor, and count.
const settle = time.Second

// fold forgets the indexes that left, once nothing comes of them any more.
func (s *source) fold(now time.Duration) error {
	err := s.foldIndexes(func(left departure) bool { return now-left.at >= settle })
	stale := s.ports.stale(now)
	if len(stale) == 0 {
		return err
	}
	s.ports.forget(stale)
	s.edit(func(f *filters) {
		for _, index := range stale {
			delete(f.wires, int(index))
		}
	})
	return err
}

// foldIndexes keeps what was counted of those that left, where quiet says that nothing is counted any more, elsewhere.
func (s *source) foldIndexes(quiet func(departure) bool) error {
	var errs []error
	for index, left := range s.ports.left {
		if left.folded || !quiet(left) {
			continue
		}
		errs = append(errs, s.foldIndex(index, s.ports.of(index)))
		left.folded = true
		s.ports.left[index] = left
	}
	return errors.Join(errs...)
}

// foldIndex forgets what was counted of an index, which is to be another interface's.
func (s *source) foldIndex(index uint32, of *port) error {
	if !s.counters.has(index) {
		return nil
	}
	sum, err := s.counters.sum(index)
	if err == nil {
		of.gone = of.gone.plus(sum)
		err = s.counters.remove(index)
	}
	return err
}

// total returns what was counted of an interface.
func (s *source) total(p *port) (sum counts, err error) {
	sum = p.gone
	var errs []error
	if now := s.ports.byIndex.Load(); now != nil {
		for index, of := range *now {
			if of != p || s.ports.left[index].folded || !s.counters.has(index) {
				continue
			}
			c, err := s.counters.sum(index)
			errs = append(errs, err)
			sum = sum.plus(c)
		}
	}
	for r := range p.rings {
		c, err := r.counts()
		errs = append(errs, err)
		sum = sum.plus(c)
	}
	return sum, errors.Join(errs...)
}

// statistics returns what was counted of an interface, for the file.
func (s *source) statistics(p *port) (st pcapng.Statistics, sum counts, refused uint64, err error) {
	// Before the kernel's counters: each packet was counted there first.
	refused = p.refused.Load()
	unattributed := p.unattributed.Load()
	sum, err = s.total(p)
	sum.Unattributed += unattributed
	return pcapng.Statistics{
		Interface: p.number,
		Received:  sum.In + sum.Out,
		Accepted:  sum.Received - min(refused, sum.Received),
		Dropped:   sum.Dropped,
	}, sum, refused, err
}

// comment is a comment on an interface for the file, about packets since a time, with what was counted so far.
func (s *source) comment(p *port, since time.Time, text string) *pcapng.Statistics {
	st, _, _, _ := s.statistics(p) // what fails here fails at the end again, and is reported then
	st.Time, st.Comment = since.UnixNano(), text
	return &st
}

// unattributed is the comment on an interface's last statistics where packets were without a known owner: a stable text.
func (s *source) unattributed(n uint64) string {
	if s.keep {
		return fmt.Sprintf("unattributed=%d kept", n)
	}
	return fmt.Sprintf("unattributed=%d left out", n)
}

// Counts reads what the programs counted.
func (s *source) Counts(*ebpf.Collection) (plugin.Counts, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var total plugin.Counts
	var errs []error
	for _, p := range s.ports.all() {
		st, sum, refused, err := s.statistics(p)
		errs = append(errs, err)
		total.Received += sum.Received
		total.Refused += refused
		total.Dropped += sum.Dropped
		total.Unattributed += sum.Unattributed
		if sum.Unattributed > 0 && s.told() {
			st.Comment = s.unattributed(sum.Unattributed)
		}
		total.Interfaces = append(total.Interfaces, st)
		if p.instead != "" {
			total.Instead = append(total.Instead, p.name+" was "+p.instead)
		}
		if p.gap.Times > 0 || p.gap.Switches > 0 {
			total.Gaps = append(total.Gaps, p.gap)
		}
	}
	stray, err := s.counters.sum(0)
	if errs = append(errs, err); stray.Received > 0 {
		errs = append(errs, errors.New("packets came from an interface that was not attached to"))
	}
	total.Received += stray.Received
	total.Dropped += stray.Dropped
	return total, errors.Join(errs...)
}
