// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/plan"
	"droidtap/agent/plugin"
)

// running is a source with what it holds in the kernel.
type running struct {
	Probe
	coll     *ebpf.Collection // the maps; its programs belong to the source
	variant  plan.Variant
	attached io.Closer
	streams  []*stream // that are read, or will be
	ended    tally     // of streams that were read to their ends
	errs     []error   // of theirs
}

// hold has the sources take their places in the kernel, beside what else has to be done before they are attached.
func (c *capture) hold(first plan.Hook) (held []io.Closer) {
	for _, p := range c.Probes {
		if h, ok := p.Source.(plugin.Holder); ok {
			held = append(held, h.Hold(first))
		}
	}
	return held
}

// load loads the objects of every source and opens their rings. A probe that cannot
// run here is left out, unless it was asked for by name or no other is left.
func (c *capture) load(t plugin.Target, k plan.Kernel) error {
	var left []error
	for _, p := range c.Probes {
		err := k.Lacks(p.Needs)
		if err == nil {
			err = c.loadProbe(p, t)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("probe %s: %w", p.Name, err)
		if p.Asked && !p.Optional || plugin.IsUsage(err) {
			return err
		}
		left = append(left, err)
	}
	if len(c.running) == 0 {
		return errors.Join(left...)
	}
	for _, err := range left {
		c.Log.Warn(err.Error() + ": it is left out")
	}
	return nil
}

func (c *capture) loadProbe(p Probe, t plugin.Target) error {
	coll, variant, err := load(p, t, c.Buffer)
	if err != nil {
		return err
	}
	r := &running{Probe: p, coll: coll, variant: variant}
	if m := coll.Maps[events]; m != nil {
		s := streamOf(p.Source)
		o := ringOptions{buffer: c.Buffer, wakeup: t.Wakeup, each: t.Each, most: c.most(p, m)}
		if s.ring, err = openRing(m, o, c.Log); err != nil {
			coll.Close()
			return err
		}
		r.streams = []*stream{s}
	}
	c.running = append(c.running, r)
	return nil
}

// most returns for how long a record of a probe may wait in its ring.
func (c *capture) most(p Probe, ring *ebpf.Map) time.Duration {
	follows := func(p Probe) bool { _, ok := p.Source.(plugin.Follower); return ok }
	_, settles := p.Source.(plugin.Settler)
	switch {
	case follows(p):
		return prompt
	case slices.ContainsFunc(c.Probes, follows): // it is to see packets soon
		return brief
	case settles && ring.Type() != ebpf.RingBuf: // the programs cannot wake us for what has to be asked for
		return brief
	}
	return longest
}

// more loads programs of a source beside those that it has.
func (c *capture) more(r *running, p plugin.Preparer, t plugin.Target) (map[string]*ebpf.Program, error) {
	coll, err := loadVariant(object{name: r.Name, variant: r.variant, buffer: c.Buffer, shared: shareable(r.coll)}, p, t)
	if err != nil {
		return nil, err
	}
	programs := coll.Programs
	coll.Programs = nil
	coll.Close() // the programs keep its maps
	return programs, nil
}

// attach starts the sources; each describes what it captures by emit.
func (c *capture) attach(t plugin.Target) error {
	for _, r := range c.running {
		t.Variant = r.variant
		t.Load = func(p plugin.Preparer) (map[string]*ebpf.Program, error) { return c.more(r, p, t) }
		t.Stream = func(s plugin.Stream) {
			c.stream(r, &stream{ring: &foreign{Ring: s.Ring}, decode: s.Decode, settler: s.Settler})
		}
		var err error
		if r.attached, err = r.Source.Attach(r.coll, t); err != nil {
			return err
		}
	}
	return nil
}

// followers returns the sources that are to see each packet.
func (c *capture) followers() (all []plugin.Follower) {
	for _, r := range c.running {
		if f, ok := r.Source.(plugin.Follower); ok {
			all = append(all, f)
		}
	}
	return all
}

// mixed tells whether packets may come to have other link types than those of the interfaces at the start.
func (c *capture) mixed() bool {
	return slices.ContainsFunc(c.Probes, func(p Probe) bool {
		m, ok := p.Source.(plugin.Mixer)
		return ok && m.Mixed()
	})
}

// detach takes off what attach attached, in reverse order.
func (c *capture) detach() error {
	var errs []error
	for _, r := range slices.Backward(c.running) {
		if r.attached != nil {
			errs = append(errs, r.attached.Close())
		}
	}
	return errors.Join(errs...)
}

// end tells the sources that were attached that nothing more comes to them.
func (c *capture) end() error {
	var errs []error
	for _, r := range slices.Backward(c.running) {
		if e, ok := r.Source.(plugin.Ender); ok && r.attached != nil {
			if err := e.End(); err != nil {
				errs = append(errs, fmt.Errorf("probe %s: %w", r.Name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// async has f called beside what else is done until unload.
func (c *capture) async(f func() error) {
	c.beside.Go(func() {
		if err := f(); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.failed = append(c.failed, err)
		}
	})
}

// unload frees what load loaded, in reverse order.
func (c *capture) unload() error {
	var errs []error
	c.beside.Wait()
	errs = append(errs, c.failed...)
	for _, r := range slices.Backward(c.running) {
		for _, s := range slices.Backward(r.streams) {
			errs = append(errs, s.Close())
		}
		r.coll.Close()
	}
	return errors.Join(errs...)
}
