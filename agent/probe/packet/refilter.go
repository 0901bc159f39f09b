// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/filter"
	"droidtap/agent/hook"
	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// change is an expression that is to take the place of the one that runs.
type change struct {
	*source
	next filters
	log  *slog.Logger
}

// Refilter compiles expr for the interfaces of the capture. Where it can match no packet of some of them, nothing is
// captured there.
func (s *source) Refilter(ctx context.Context, expr string) (plugin.Change, error) {
	c, err := compileFor(ctx, expr, s.chosen)
	if err != nil {
		return nil, err
	}
	for _, ifc := range s.chosen {
		w := c.wires[ifc.Index]
		switch err := c.errs[w]; {
		case errors.Is(err, filter.ErrRejectsAll):
			c.of[w] = filter.RejectAll(expr, linkTypes[w.framing])
		case err != nil:
			return nil, plugin.Usagef("%s: %w", without(ifc), err)
		}
	}
	return &change{source: s, next: c.filters}, nil
}

// Prepare injects the new filter into the programs for what is attached.
func (c *change) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	c.log = t.Log
	n := needs{}
	snaplen := c.snaplen
	for _, h := range c.hooked {
		n.add(c.next.wires[h.ifc.Index], h.at)
		if h.at == socket {
			snaplen = c.socketSnaplen()
		}
	}
	l := lane{filters: c.next}
	err := c.prepare(&l, n, spec, t, snaplen)
	c.next = l.filters
	return err
}

// Commit puts the new programs in the place of the old ones, hook after hook. Where somebody has taken a hook away
// nothing runs, which the end of the capture reports.
func (c *change) Commit(coll *ebpf.Collection, emit func(pcapng.Block)) error {
	s := c.source
	// While both run, a record may be of either.
	var old []*judge
	for _, l := range s.lanes() {
		j := l.decoder.judge.Load().forget(l.decoder.stamp())
		old = append(old, j)
		l.decoder.judge.Store(&judge{now: c.next, before: j, until: math.MaxUint64})
	}
	for i, h := range s.hooked {
		err := h.Update(c.program(coll, h))
		if err == nil || errors.Is(err, hook.ErrLost) {
			continue
		}
		errs := []error{err}
		for _, h := range slices.Backward(s.hooked[:i]) {
			if err := h.Update(h.prog); !errors.Is(err, hook.ErrLost) {
				errs = append(errs, err)
			}
		}
		for n, l := range s.lanes() {
			tried := &judge{now: c.next, before: old[n], until: math.MaxUint64}
			l.decoder.judge.Store(&judge{now: l.filters, before: tried, until: l.decoder.stamp() + uint64(settling)})
		}
		return errors.Join(errs...)
	}
	for i, h := range s.hooked {
		s.hooked[i].prog = c.program(coll, h)
	}
	for n, l := range s.lanes() {
		l.decoder.judge.Store(&judge{now: c.next, before: old[n], until: l.decoder.stamp() + uint64(settling)})
		l.filters = c.next
	}
	s.sayLanes(plugin.Target{Log: c.log})
	c.note(coll, emit)
	return nil
}

// program returns the new program for a hook.
func (c *change) program(coll *ebpf.Collection, h hooked) *ebpf.Program {
	return coll.Programs[c.next.program(c.next.wires[h.ifc.Index], h.at)]
}

// note writes into the file, for each interface, from when on the new filter holds, with the counters so far.
func (c *change) note(coll *ebpf.Collection, emit func(pcapng.Block)) {
	counts, _ := c.Counts(coll) // what fails here fails at the end again, and is reported then
	for _, ifc := range c.chosen {
		note := pcapng.Statistics{Ifindex: ifc.Index}
		for _, s := range counts.Interfaces {
			if s.Ifindex == ifc.Index {
				note = s
			}
		}
		note.Time = time.Now().UnixNano()
		note.Comment = "from here on the filter is: " + c.next.expr
		emit(&note)
	}
}
