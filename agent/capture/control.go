// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/plugin"
)

// ErrNotRunning is returned by Control's methods before the capture is attached and after its end.
var ErrNotRunning = errors.New("the capture is not running")

// Control changes a capture while it runs. It belongs to one capture, by Config.Control; its methods may be called
// from any goroutine.
type Control struct {
	replacing sync.Mutex // one after the other
	mu        sync.Mutex
	c         *capture // nil: it is not running
	target    plugin.Target
}

func (ctl *Control) begin(c *capture, t plugin.Target) {
	if ctl == nil {
		return
	}
	ctl.mu.Lock()
	defer ctl.mu.Unlock()
	ctl.c, ctl.target = c, t
}

func (ctl *Control) end() {
	if ctl == nil {
		return
	}
	ctl.mu.Lock()
	defer ctl.mu.Unlock()
	ctl.c = nil
}

func (ctl *Control) running() *capture {
	ctl.mu.Lock()
	defer ctl.mu.Unlock()
	return ctl.c
}

// Replace puts expr in the place of the running capture's filter. A packet that both match is captured throughout,
// and one that neither matches never is. It is written into the file when the new one holds on all interfaces; on those
// where it can match no packet, nothing is captured until the next one.
//
// After an error the old filter runs on. The error is a usage error if expr is to blame, or wraps ErrNotRunning.
func (ctl *Control) Replace(ctx context.Context, expr string) (err error) {
	ctl.replacing.Lock()
	defer ctl.replacing.Unlock()
	// The compiler and the verifier may take their time, and must not keep the capture from ending meanwhile.
	c := ctl.running()
	if c == nil {
		return ErrNotRunning
	}
	for _, r := range c.running {
		source, ok := r.Source.(plugin.Refilterer)
		if !ok {
			continue
		}
		// Nothing can be undone behind this: no second probe has a filter.
		for range outdated {
			var change plugin.Change
			if change, err = source.Refilter(ctx, expr); err != nil {
				return err
			}
			if err = ctl.replace(c, r, change); !errors.Is(err, plugin.ErrOutdated) {
				break
			}
		}
		return err
	}
	return errors.New("nothing that is captured has a filter")
}

// Rotate ends the file that is written to, if it has packets, and returns its path: the next packet begins another one.
// The path is "" where the file has no packet yet. The error wraps ErrNotRunning, or is a usage error where there is but one file.
func (ctl *Control) Rotate() (path string, err error) {
	failed := ctl.write(func(w *writer) {
		w.catchUp()
		switch {
		case w.file == nil || w.files.packets == 0:
		case !w.several():
			err = plugin.Usagef("no other file can follow %s", w.file.Name())
		default:
			path = w.file.Name()
			w.turn()
		}
	})
	return path, errors.Join(failed, err)
}

// Flush has what was captured so far written, what waits for a plugin.Follower included. The error wraps ErrNotRunning.
func (ctl *Control) Flush() error {
	return ctl.write(func(w *writer) {
		w.catchUp()
		w.flush()
	})
}

// write has f done with the writer of the running capture.
func (ctl *Control) write(f func(*writer)) error {
	c := ctl.running()
	if c == nil || !c.writer.do(func() { f(c.writer) }) {
		return ErrNotRunning
	}
	return nil
}

// Progress is what has become of a capture so far.
type Progress struct {
	Summary
	Start time.Time
	// Failing is why nothing is written at present, and what is captured is lost; "" if it is.
	Failing string
}

// Progress counts until now. Records that are on their way to the file are in Received only. The error wraps ErrNotRunning.
func (ctl *Control) Progress() (p Progress, err error) {
	c := ctl.running()
	if c == nil {
		return p, ErrNotRunning
	}
	p.Start = c.start
	err = ctl.write(func(w *writer) {
		p.File, p.Files = w.path, w.opened
		p.Captured, p.Ignored = w.out.Packets(), w.lost()-w.out.Waiting()
		if w.pause.why != nil {
			p.Failing = w.pause.why.Error()
		}
	})
	ctl.mu.Lock() // the maps stay open meanwhile
	defer ctl.mu.Unlock()
	if ctl.c != c || err != nil {
		return p, ErrNotRunning
	}
	p.Counts, err = c.soFar()
	p.Received -= min(p.Refused, p.Received)
	return p, err
}

// outdated is how often a replacement is made anew because interfaces came or went meanwhile: they do so in bursts.
const outdated = 20

// replace loads the programs of a change beside those of r, with its maps, and puts them in their place.
func (ctl *Control) replace(c *capture, r *running, change plugin.Change) (err error) {
	o := object{name: r.Name, variant: r.variant, buffer: c.Buffer}
	o.shared, err = ctl.maps(c, r)
	defer func() {
		for _, m := range o.shared {
			err = errors.Join(err, m.Close())
		}
	}()
	if err != nil {
		return err
	}
	coll, err := loadVariant(o, change, ctl.target)
	if err != nil {
		return fmt.Errorf("replace the filter: %w", err)
	}
	defer coll.Close() // what is not needed, by then
	ctl.mu.Lock()
	defer ctl.mu.Unlock()
	if ctl.c != c {
		return ErrNotRunning
	}
	if err := change.Commit(coll, c.emit); err != nil {
		return fmt.Errorf("replace the filter: %w", err)
	}
	return nil
}

// maps returns the maps of r that the new programs are to use, too, for the caller to close.
func (ctl *Control) maps(c *capture, r *running) (map[string]*ebpf.Map, error) {
	ctl.mu.Lock()
	defer ctl.mu.Unlock()
	if ctl.c != c {
		return nil, ErrNotRunning
	}
	shared := map[string]*ebpf.Map{}
	for name, m := range shareable(r.coll) {
		clone, err := m.Clone()
		if err != nil {
			return shared, fmt.Errorf("share map %s: %w", name, err)
		}
		shared[name] = clone
	}
	return shared, nil
}
