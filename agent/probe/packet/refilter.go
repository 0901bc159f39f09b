// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// change is an expression that is to take the place of the one that runs.
type change struct {
	*source
	next     filters
	replaced []*ebpf.Program // by Commit, in the order of hooked
}

// Refilter compiles expr for the interfaces of the capture.
func (s *source) Refilter(ctx context.Context, expr string) (plugin.Change, error) {
	c, err := compileFor(ctx, expr, s.chosen)
	if err != nil {
		return nil, err
	}
	for _, ifc := range s.chosen {
		if err := c.errs[c.wires[ifc.Index]]; err != nil {
			return nil, plugin.Usagef("%s: %w", without(ifc), err)
		}
	}
	return &change{source: s, next: c.filters}, nil
}

// Prepare injects the new filter.
func (c *change) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	if err := c.prepare(&c.next, spec, t); err != nil {
		return err
	}
	return c.fillMaps(spec, uint32(t.Wakeup), c.next.exact())
}

// Commit puts the new programs in the place of the old ones, hook after hook. Records of either are
// on their way then: what the agent has to judge it keeps if one of the filters matches.
func (c *change) Commit(coll *ebpf.Collection, emit func(pcapng.Block)) error {
	s := c.source
	old := s.filters
	s.decoder.judge.Store(&judge{now: c.next, before: &old, until: math.MaxUint64})
	var errs []error
	done := 0
	for i := range s.hooked {
		h := &s.hooked[i]
		prog := coll.Programs[c.next.program(c.next.wires[h.ifc.Index], h.dir)]
		if err := h.Update(prog); err != nil {
			errs = append(errs, err)
			break
		}
		h.prog, prog = prog, h.prog
		c.replaced = append(c.replaced, prog)
		done++
	}
	now := uint64(s.decoder.clock.kernel())
	if len(errs) > 0 {
		for i := range slices.Backward(s.hooked[:done]) {
			s.hooked[i].prog = c.replaced[i]
			errs = append(errs, s.hooked[i].Update(s.hooked[i].prog))
		}
		s.decoder.judge.Store(&judge{now: old, before: &c.next, until: now})
		return errors.Join(errs...)
	}
	s.decoder.judge.Store(&judge{now: c.next, before: &old, until: now})
	s.filters = c.next
	c.note(coll, emit)
	return nil
}

// note writes into the file, for each interface, from when on the new filter holds.
func (c *change) note(coll *ebpf.Collection, emit func(pcapng.Block)) {
	counts, _ := c.Counts(coll) // the capture's end reads them again, and reports what fails
	for _, s := range counts.Interfaces {
		s.Time = time.Now().UnixNano()
		s.Comment = "from here on the filter is: " + c.next.expr
		emit(&s)
	}
}
