// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"os"
	"time"

	"droidtap/agent/plugin"
)

// seldom is latency's place where nothing came for long, and the kernel cannot tell that something comes.
const seldom = 2500 * time.Millisecond

// perfBuffer looks into the buffers at times: the kernel wakes for a number of bytes, which is set when they are opened,
// and the first record has fewer. The times are latency apart while records come, and up to seldom while none do.
type perfBuffer struct {
	plugin.Ring
	latency time.Duration
	now     func() time.Time
	pause   time.Duration // before the look that comes next
	until   time.Time     // then it comes
	recent  bool          // a record came since the last one
}

func newPerfBuffer(r plugin.Ring, latency time.Duration, now func() time.Time) *perfBuffer {
	p := &perfBuffer{Ring: r, latency: latency, now: now}
	p.await(latency)
	return p
}

func (p *perfBuffer) await(pause time.Duration) {
	p.pause = pause
	p.until = p.now().Add(pause)
}

func (p *perfBuffer) next(buf []byte) ([]byte, error) {
	for {
		raw, err := p.Next(buf, p.until)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && p.recent:
			p.recent = false
			p.await(p.latency)
			return nil, errEmpty
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.await(min(2*p.pause, seldom))
			continue
		case err != nil:
			return nil, err
		}
		if !p.recent && p.pause > p.latency {
			p.await(p.latency) // this one is not to wait for the rest of a long pause
		}
		p.recent = true
		return raw, nil
	}
}
func (p *perfBuffer) lends() bool            { return false }
func (p *perfBuffer) lend() (lender, uint64) { return nil, 0 }
func (p *perfBuffer) flush() error           { return p.Flush() }
