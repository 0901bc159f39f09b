// SPDX-License-Identifier: Apache-2.0

package file

import (
	"time"

	"droidtap/agent/plugin"
)

// rotation is when a file is full, and what comes then.
type rotation struct {
	size     int64         // bytes of a file, before they are compressed; 0: no limit, as for all that follows
	packets  uint64        // of a file
	span     time.Duration // that a file or slice lasts, by the boot clock
	interval time.Duration // files end where the wall clock has a multiple of it
	slices   bool          // span is that of -G: files that -C makes meanwhile are of the same slice, and its name
	dumpcap  bool          // names are dumpcap's
	cyclic   int           // names that -C uses again and again
	last     int           // files after which the capture ends
	single   bool          // a full file ends the capture
}

// rotates tells whether there may be several files without anybody asking for it.
func (r *rotation) rotates() bool {
	return !r.single && (r.size > 0 || r.packets > 0 || r.span > 0 || r.interval > 0)
}

// Full is plugin.Rotator's.
func (o *opener) Full(f plugin.Filling) plugin.Verdict {
	full := o.size > 0 && f.Bytes >= o.size || o.packets > 0 && f.Packets >= o.packets
	switch {
	case !full && !f.Over:
		return plugin.Keep
	case o.single, o.last > 0 && o.opened >= o.last:
		return plugin.End
	}
	return plugin.Next
}

// over tells whether the time of the file or slice is.
func (o *opener) over() bool { return o.until > 0 && o.boot() >= o.until }

// Lasts is plugin.Rotator's.
func (o *opener) Lasts() time.Duration {
	if o.span == 0 && o.interval == 0 {
		return 0
	}
	now := o.boot()
	if o.until == 0 {
		d := o.span
		if o.interval > 0 {
			next := o.interval - time.Duration(o.clock().UnixNano()%int64(o.interval))
			if d == 0 || next < d {
				d = next
			}
		}
		o.until = now + d
	}
	return max(1, o.until-now)
}

// Persists tells whether the capture is to go on when there is no room for a while: it was meant to run for long.
func (o *opener) Persists() bool { return o.rotates() }

// Limits is plugin.Limiter's.
func (o *opener) Limits() (time.Duration, uint64) { return o.duration, o.most }
