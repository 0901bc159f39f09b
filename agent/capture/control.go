// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"droidtap/agent/plugin"
)

// ErrNotRunning is returned by Control's methods before the capture is attached and after its end.
var ErrNotRunning = errors.New("the capture is not running")

// Control changes a capture while it runs. It belongs to one capture, by Config.Control; its methods may be called
// from any goroutine.
type Control struct {
	mu     sync.Mutex
	c      *capture // nil: it is not running
	target plugin.Target
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
// and one that neither matches never is. It is written into the file when the new one holds on all interfaces.
//
// After an error the old filter runs on. The error is a usage error if expr is to blame, or wraps ErrNotRunning.
func (ctl *Control) Replace(ctx context.Context, expr string) error {
	c := ctl.running()
	if c == nil {
		return ErrNotRunning
	}
	// The compiler may take its time, and must not keep the capture from ending meanwhile.
	changes := map[int]plugin.Change{}
	for i, r := range c.running {
		source, ok := r.Source.(plugin.Refilterer)
		if !ok {
			continue
		}
		change, err := source.Refilter(ctx, expr)
		if err != nil {
			return err
		}
		changes[i] = change
	}
	if len(changes) == 0 {
		return errors.New("nothing that is captured has a filter")
	}
	ctl.mu.Lock()
	defer ctl.mu.Unlock()
	if ctl.c != c {
		return ErrNotRunning
	}
	for i, change := range changes {
		if err := c.replace(&c.running[i], change, ctl.target); err != nil {
			return fmt.Errorf("replace the filter: %w", err)
		}
	}
	return nil
}

// replace loads the programs of a change beside those of r, with its maps, and puts them in their place.
func (c *capture) replace(r *running, change plugin.Change, t plugin.Target) (err error) {
	shared := maps.Clone(r.coll.Maps)
	maps.DeleteFunc(shared, func(name string, _ *ebpf.Map) bool { return name == settings || strings.HasPrefix(name, ".") })
	coll, err := loadVariant(r.Name, change, r.variant, t, c.Buffer, shared)
	if err != nil {
		return err
	}
	defer coll.Close() // what is not needed, by then
	if err := change.Commit(coll, c.emit); err != nil {
		return err
	}
	r.coll.Programs, coll.Programs = coll.Programs, r.coll.Programs
	return nil
}
