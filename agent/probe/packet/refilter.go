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
	"droidtap/android"
)

// change is an expression that is to take the place of the one that runs.
type change struct {
	*source
	next  filters
	made  int // source.changes then
	needs needs
	log   *slog.Logger
}

// Refilter compiles expr for the interfaces of the capture. Where it can match no packet of some of them, nothing is
// captured there.
func (s *source) Refilter(ctx context.Context, expr string) (plugin.Change, error) {
	ch := &change{source: s, needs: needs{}}
	var ifcs []android.Interface
	points := map[int][]point{}
	s.mu.Lock()
	ch.made = s.changes
	for _, t := range s.taps {
		ifcs = append(ifcs, t.ifc)
		for _, h := range t.hooked {
			points[t.ifc.Index] = append(points[t.ifc.Index], h.at)
		}
	}
	s.mu.Unlock()
	c, err := compileFor(ctx, expr, ifcs)
	if err != nil {
		return nil, err
	}
	for _, ifc := range ifcs {
		w := c.wires[ifc.Index]
		switch err := c.errs[w]; {
		case errors.Is(err, filter.ErrRejectsAll):
			c.of[w] = fitted{Filter: filter.RejectAll(expr, linkTypes[w.framing])}
		case err != nil:
			return nil, plugin.Usagef("%s: %w", without(ifc), err)
		}
		ch.needs.add(w, points[ifc.Index]...)
	}
	ch.next = c.filters
	return ch, nil
}

// Expression returns the one that holds at present. It may be called from any goroutine.
func (s *source) Expression() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.classifiers.filters.expr
}

// Prepare injects the new filter into the programs for what is attached.
func (c *change) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	c.log = t.Log
	if len(c.needs) == 0 {
		return c.prepareAny(&c.next, spec, t)
	}
	return c.prepare(&c.next, c.needs, spec, t)
}

// Commit puts the new programs in the place of the old ones, hook after hook. Where somebody has taken a hook away
// nothing runs until it is mended, with the new one.
func (c *change) Commit(coll *ebpf.Collection, emit func(pcapng.Block)) error {
	s := c.source
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changes != c.made {
		return plugin.ErrOutdated
	}
	// While both run, a record may be of either.
	var old []*judge
	for _, l := range s.lanes() {
		j := l.decoder.judge.Load().forget(l.decoder.stamp())
		old = append(old, j)
		l.decoder.judge.Store(&judge{now: c.next, before: j, until: math.MaxUint64})
	}
	if err := c.swap(coll); err != nil {
		for n, l := range s.lanes() {
			tried := &judge{now: c.next, before: old[n], until: math.MaxUint64}
			l.decoder.judge.Store(&judge{now: l.filters, before: tried, until: l.decoder.stamp() + uint64(settling)})
		}
		return err
	}
	for n, l := range s.lanes() {
		l.filters = c.next.clone()
		l.decoder.judge.Store(&judge{now: l.filters, before: old[n], until: l.decoder.stamp() + uint64(settling)})
	}
	for _, prog := range s.programs {
		prog.Close() // those of the old filter
	}
	s.programs, coll.Programs = coll.Programs, nil
	s.sayLanes(c.log)
	c.note(emit)
	return nil
}

// swap updates all hooks, or none.
func (c *change) swap(coll *ebpf.Collection) error {
	var done []*hooked
	for _, t := range c.taps {
		for i := range t.hooked {
			h := &t.hooked[i]
			err := h.Update(coll.Programs[c.next.wires[t.ifc.Index].program(h.at)])
			if err == nil || errors.Is(err, hook.ErrLost) {
				done = append(done, h)
				continue
			}
			errs := []error{err}
			for _, h := range slices.Backward(done) {
				if err := h.Update(h.prog); !errors.Is(err, hook.ErrLost) {
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		}
	}
	for _, t := range c.taps {
		t.wire = c.next.wires[t.ifc.Index]
		for i := range t.hooked {
			h := &t.hooked[i]
			h.prog = coll.Programs[t.wire.program(h.at)]
		}
	}
	return nil
}

// note writes into the file, for each interface, from when on the new filter holds, with the counters so far. The files to
// come are described by the new filter.
func (c *change) note(emit func(pcapng.Block)) {
	now := time.Now()
	for _, p := range c.ports.all() {
		emit(c.describe(p))
	}
	for _, t := range c.taps {
		emit(c.comment(t.port, now, "from here on the filter is: "+c.next.expr))
	}
}

// sayLanes tells of each lane that is in use how it filters.
func (s *source) sayLanes(log *slog.Logger) {
	used := map[point]bool{}
	for _, tap := range s.taps {
		for _, h := range tap.hooked {
			used[h.at] = true
		}
	}
	if used[ingress] || used[egress] {
		s.sayForm(s.classifiers.filters, ingress, log)
	}
	if used[socket] {
		s.sayForm(s.sockets.filters, socket, log)
	}
	s.sayOwners(used, log)
}

// sayOwners tells how the owners of packets are found.
func (s *source) sayOwners(used map[point]bool, log *slog.Logger) {
	if !s.told() {
		return
	}
	if used[ingress] || used[egress] {
		how := "by its flow, which the programs learn from what leaves, else the kernel is asked afterwards (sock_diag)"
		if s.lookup.Load() {
			how = "by the socket that the kernel looks up for it"
		}
		log.Info("the owner of a packet that leaves is known by its socket, of one that comes in " + how)
	}
	if used[socket] {
		say := log.Info
		if s.filtering() {
			say = log.Warn
		}
		say("a packet socket does not tell the owner of a packet: the kernel is asked for its socket afterwards; " +
			"packets of a socket that was closed before have an unknown owner and are counted")
	}
}
