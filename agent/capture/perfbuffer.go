// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"os"
	"time"

	"droidtap/agent/plugin"
)

const (
	// seldom is the place of longest where nothing came for long, and the kernel cannot tell that something comes.
	seldom = 2500 * time.Millisecond
	// gap is what lies between wake-ups where each record makes one, and too many come: nobody sees the difference.
	gap = time.Millisecond
)

// perfBuffer looks into the buffers at times: the kernel wakes for a number of bytes, which is set when they are opened,
// and the first record has fewer. The times are least apart while many records come, up to most while few do, and up to seldom
// while none do.
type perfBuffer struct {
	copying
	plugin.Ring
	least, most time.Duration
	few         int // bytes of records in a pause
	now         func() time.Time
	pause       time.Duration // before the look that comes next
	until       time.Time     // then it comes
	came        int           // bytes of records since the last one
}

func newPerfBuffer(r plugin.Ring, least, most time.Duration, few int, now func() time.Time) *perfBuffer {
	p := &perfBuffer{Ring: r, least: least, most: most, few: few, now: now}
	p.await(least)
	return p
}

func (p *perfBuffer) await(pause time.Duration) {
	p.pause = pause
	p.until = p.now().Add(pause)
}

func (p *perfBuffer) next(buf []byte) ([]byte, error) {
	for {
		raw, err := p.Next(buf, p.until)
		if err == nil {
			if p.came == 0 && p.pause > p.least {
				p.until = p.now().Add(p.least) // this one is not to wait for the rest of a long pause
			}
			p.came += len(raw)
			return raw, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
		came := p.came
		p.came = 0
		switch {
		case came == 0:
			p.await(min(2*p.pause, seldom))
			continue
		case came < p.few:
			p.await(min(2*p.pause, p.most))
		default:
			p.await(p.least)
		}
		return nil, errEmpty
	}
}
func (p *perfBuffer) flush() error { return p.Flush() }

// promptBuffer is perf buffers of which each record wakes the reader. It is handed on at once; but while they come in quick succession
// they are read a gap apart, since the wake-ups would cost more than all the rest.
type promptBuffer struct {
	copying
	plugin.Ring
	now   func() time.Time
	sleep func(time.Duration)
	told  bool      // errEmpty was returned since the last record
	since time.Time // told is
}

func (p *promptBuffer) next(buf []byte) ([]byte, error) {
	for {
		until := time.Unix(1, 0) // over: what is there, without a wait
		if p.told {
			until = p.now().Add(seldom) // the rings do not tell of all processors that come online
		}
		raw, err := p.Next(buf, until)
		switch {
		case err == nil:
			if p.told && p.now().Sub(p.since) < gap {
				p.sleep(gap)
			}
			p.told = false
			return raw, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return nil, err
		case !p.told:
			p.told, p.since = true, p.now()
			return nil, errEmpty
		}
	}
}
func (p *promptBuffer) flush() error { return p.Flush() }
