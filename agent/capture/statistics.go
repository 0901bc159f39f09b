// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"time"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// statistics adds up what was counted, after the rings are drained, and writes
// each interface's block behind the last packet.
func (c *capture) statistics() error {
	now := time.Now().UnixNano()
	var errs []error
	for _, r := range c.running {
		if r.ended.bad > 0 {
			c.Log.Warn("records could not be read", "probe", r.Name, "count", r.ended.bad, "first", r.ended.why)
		}
		c.ignored += r.ended.bad
		errs = append(errs, r.errs...)
		counts, err := c.countsOf(r)
		errs = append(errs, err)
		c.counts.Add(counts)
		for _, s := range counts.Interfaces {
			s.Time, s.Start, s.End = now, c.start.UnixNano(), now
			c.send(&batch{blocks: []pcapng.Block{&s}})
		}
	}
	return errors.Join(errs...)
}

// countsOf reads what a source counted in the kernel, and corrects it by the
// records that came: up to 5.0 bpf_perf_event_output says 0 when the ring is full,
// so the program cannot count that.
func (c *capture) countsOf(r *running) (plugin.Counts, error) {
	counter, ok := r.Source.(plugin.Counter)
	if !ok {
		return plugin.Counts{}, nil
	}
	counts, err := counter.Counts(r.coll)
	if err != nil {
		return counts, fmt.Errorf("probe %s: %w", r.Name, err)
	}
	if records := r.ended.records; records < counts.Received {
		counts.Dropped = max(counts.Dropped, counts.Received-records)
	}
	counts.Received -= counts.Refused
	if len(counts.Interfaces) == 1 {
		counts.Interfaces[0].Dropped = counts.Dropped
	}
	return counts, nil
}

// soFar adds up what was counted until now, without the correction of countsOf. What can be read is valid with an error, too.
func (c *capture) soFar() (all plugin.Counts, err error) {
	for _, r := range c.running {
		if counter, ok := r.Source.(plugin.Counter); ok {
			counts, failed := counter.Counts(r.coll)
			err = errors.Join(err, failed)
			all.Add(counts)
		}
	}
	return all, err
}

// interfaces returns what was counted of each interface until now. What cannot be read is told at the end.
func (c *capture) interfaces() []pcapng.Statistics {
	counts, _ := c.soFar()
	return counts.Interfaces
}
