// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"time"
)

// idle is a tool that captures while nothing passes.
type idle struct {
	Tool string `json:"tool"`
	// Wakeups are hundredths of a second, of each second, in which a thread of it ran: one wake-up of the Go runtime takes several
	// context switches.
	Wakeups  float64 `json:"wakeups_per_s"`
	Switches float64 `json:"switches_per_s"`
	CPU      float64 `json:"cpu_us_per_s"`
}

const (
	idleFor  = 6 * time.Second
	idleStep = 10 * time.Millisecond
)

// idles has the tools wait at once, long enough behind their start that all that follows it is over.
func (b *bench) idles(ctx context.Context) (all []idle, err error) {
	var waiting []*running
	defer func() {
		for _, r := range waiting {
			err = errors.Join(err, r.close())
		}
	}()
	for _, t := range []tool{{Kind: tcpdump}, {Kind: dumpcap}, {Kind: agent}} {
		r, err := b.begin(ctx, load{Of: flood, Snaplen: 96}, t)
		if err != nil {
			return nil, err
		}
		waiting = append(waiting, r)
	}
	for _, r := range waiting {
		if r.before, err = (settling{keeps: r.tool.Kind.keeps()}).await(ctx, b.proc, r.pid()); err != nil {
			return nil, err
		}
	}
	last, ran := make([]usage, len(waiting)), make([]int, len(waiting))
	for i, r := range waiting {
		last[i] = r.before
	}
	start := time.Now()
	ticker := time.NewTicker(idleStep)
	defer ticker.Stop()
	for time.Since(start) < idleFor {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ticker.C:
		}
		for i, r := range waiting {
			u, err := usageOf(b.proc, r.pid())
			if err != nil {
				return nil, err
			}
			if u.cpu != last[i].cpu {
				ran[i]++
			}
			last[i] = u
		}
	}
	seconds := time.Since(start).Seconds()
	for i, r := range waiting {
		used := last[i].minus(r.before)
		all = append(all, idle{r.tool.String(), float64(ran[i]) / seconds, float64(used.wakeups) / seconds, used.cpu / 1e3 / seconds})
	}
	return all, nil
}
