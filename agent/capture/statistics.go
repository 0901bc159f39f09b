// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"time"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// statistics reads what the programs counted and writes each interface's block
// behind the last packet.
func (c *capture) statistics() {
	now := time.Now().UnixNano()
	for _, r := range c.running {
		counter, ok := r.Source.(plugin.Counter)
		if !ok {
			continue
		}
		counts, err := counter.Counts(r.coll)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("probe %s: %w", r.Name, err))
		}
		c.counts.Received += counts.Received
		c.counts.Dropped += counts.Dropped
		c.counts.Unattributed += counts.Unattributed
		for _, s := range counts.Interfaces {
			s.Time, s.Start, s.End = now, c.start.UnixNano(), now
			c.send(&batch{blocks: []pcapng.Block{&s}})
		}
	}
}

// summarise fills in the totals. While the writer still runs they are those of
// its last flush.
func (c *capture) summarise(sum *Summary) {
	sum.Counts = c.counts
	sum.Captured = c.writer.written.Load()
	sum.Ignored = c.ignored
}
