// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/boottime"
	"droidtap/agent/hook"
	"droidtap/agent/plugin"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

// keeper keeps what is selected captured: it follows the interfaces as they come, go and change, and puts back what
// somebody takes away.
type keeper struct {
	*source
	target  plugin.Target
	watcher *rtnl.Watcher
	clock   io.Closer // that is watched, too
	run     sync.WaitGroup
	ended   chan struct{} // closed when it is

	// What follows is guarded by source.mu.
	inet    []int              // the uplinks, as they were seen last
	away    map[string]absence // names that were captured and are not
	said    map[string]string  // by interface, the last warning: what repeats itself is said once
	sought  bool               // whether Android limits the download rate of any interface was asked
	policed bool               // it does: that was seen
	unfit   map[fitting]error  // why: so that it is not compiled again at each tick
}

// absence is the time in which an interface that is wanted is not captured.
type absence struct {
	since time.Duration // by the boot clock
	there *port         // it was there all the time, and could not be attached to; nil: it had gone
}

const (
	// period is how often it looks by itself, at whether packets come, and at what could not be attached to.
	period = 2 * time.Second
	// seldom is how often while the interfaces count nothing: a phone is left to sleep.
	seldom = 16 * time.Second
)

// Attach attaches to the interfaces that there are, and to others as they come. An
// interface that was not named and cannot be attached to is left out.
func (s *source) Attach(coll *ebpf.Collection, t plugin.Target) (_ io.Closer, err error) {
	swept, err := hook.Sweep()
	for _, line := range swept {
		t.Log.Warn("left by a killed run: " + line)
	}
	if err != nil {
		t.Log.Warn("look for leftovers of killed runs: " + err.Error())
	}
	s.programs, coll.Programs = coll.Programs, nil
	k := &keeper{source: s, target: t, away: map[string]absence{}, said: map[string]string{}, unfit: map[fitting]error{},
		ended: make(chan struct{})}
	if s.counters, err = openCounters(coll.Maps); err != nil {
		return k, err
	}
	if s.told() {
		if s.owners, err = openOwners(&s.owning, &s.ports, coll.Maps, s.classifiers.decoder.clock.kernel, t.Log); err != nil {
			return k, err
		}
		s.settler = newSettler(s.owners)
		defer func() { // what cannot be attached is never settled
			if err != nil {
				err = errors.Join(err, s.owners.Close())
			}
		}()
	}
	// Before the first look, so that nothing can go unnoticed.
	if k.watcher, err = rtnl.Watch(s.selection.internet || asksNetmask(s.expr)); err != nil {
		return k, fmt.Errorf("watch interfaces: %w", err)
	}
	if k.clock, err = s.classifiers.decoder.clock.watch(); err != nil {
		t.Log.Warn("packets around a change of the wall clock may have the wrong time: " + err.Error())
	}
	s.mu.Lock()
	err = k.start()
	s.mu.Unlock()
	if err != nil {
		return k, err
	}
	k.run.Go(k.follow)
	if s.owners != nil {
		k.run.Go(k.followApps)
	}
	return k, nil
}

// start attaches to what there is. What was named must be attached to.
func (k *keeper) start() error {
	links, err := k.look()
	if err != nil {
		return err
	}
	var errs []error
	for _, ifc := range k.wanted(links) {
		err := k.add(ifc)
		switch {
		case err == nil:
		case errors.As(err, new(misfit)): // even one that was named: usable has accepted it
			k.sayLeft(ifc, err)
		case errors.Is(err, os.ErrPermission), slices.Contains(k.selection.names, ifc.Name):
			return err
		default:
			k.sayLeft(ifc, err)
			errs = append(errs, err)
		}
	}
	if len(k.taps) == 0 && len(k.chosen) > 0 {
		return errors.Join(append(errs, errors.New("nothing to capture on: no interface could be attached to"))...)
	}
	if len(k.taps) == 0 {
		k.target.Log.Warn("no interface is captured yet: there is none that -i means; the capture waits for one")
	}
	if k.selection.internet {
		k.target.Log.Warn(internet + " is " + k.describeUplinks(links))
	}
	k.sayLanes(k.target.Log)
	return nil
}

// Close detaches from everything, whatever fails on the way.
func (k *keeper) Close() error {
	var errs []error
	if k.watcher != nil {
		errs = append(errs, k.watcher.Close())
	}
	close(k.ended)
	k.run.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	idle := k.idle()
	for _, t := range slices.Backward(k.taps) {
		lost, err := t.detach()
		if errs = append(errs, err); lost {
			// It would have been mended in a moment.
			k.gap(t.port, 0, fmt.Sprintf("%s: somebody removed our %s filter right before the end, and packets since then are missing", t.name, t.at))
		}
	}
	k.taps = nil
	if len(idle) > 0 {
		// Which waits until none of the programs runs any more. The others would wait for that again, one after the other.
		errs = append(errs, idle[0].Close())
		k.target.Go(func() error {
			var errs []error
			for _, a := range idle[1:] {
				errs = append(errs, a.Close())
			}
			return errors.Join(errs...)
		})
	}
	k.giveUp(boottime.Now(), nil, nil)
	for _, prog := range k.programs {
		prog.Close()
	}
	k.programs = nil
	if k.clock != nil {
		errs = append(errs, k.clock.Close())
	}
	return errors.Join(errs...)
}

// idle has programs see no more packets that take long to detach, and returns them.
func (k *keeper) idle() (idle []hook.Attachment) {
	for _, t := range slices.Backward(k.taps) {
		t.hooked = slices.DeleteFunc(t.hooked, func(h hooked) bool {
			l, ok := h.Attachment.(*hook.Link)
			if !ok || l.Idle() != nil {
				return false
			}
			idle = append(idle, l)
			return true
		})
	}
	return idle
}

// follow is the keeper's goroutine.
func (k *keeper) follow() {
	pause := period
	next := time.Now().Add(pause)
	for {
		change, err := k.watcher.Next(next)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			// What this look does not find is found by the next tick's.
			k.locked(func() error { k.warn("", "watch interfaces: "+err.Error()); return nil })
			time.Sleep(period / 10) // it may go on failing
			change.Lost = true
			fallthrough
		default:
			k.locked(func() error { _, err := k.update(change); return err })
			if soon := time.Now().Add(period); next.After(soon) {
				pause, next = period, soon
			}
		}
		// Not only where nothing changes for that long: there may always be a change.
		if now := time.Now(); !now.Before(next) {
			k.locked(func() error {
				quiet, err := k.tick()
				if pause = min(2*pause, seldom); !quiet {
					pause = period
				}
				return err
			})
			next = now.Add(pause)
		}
	}
}

func (k *keeper) locked(f func() error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := f(); err != nil {
		k.warn("", err.Error())
	}
}

// warn says something of an interface, unless that was the last that was said.
func (k *keeper) warn(name, text string) {
	if k.said[name] != text {
		k.said[name] = text
		k.target.Log.Warn(text)
	}
}

// sayLeft says why an interface is not captured.
func (k *keeper) sayLeft(ifc android.Interface, err error) {
	k.warn(ifc.Name, ifc.Name+" is not captured: "+err.Error())
}

// tick looks at what no message of the kernel tells, and tells whether the next look can wait.
func (k *keeper) tick() (quiet bool, err error) {
	now := boottime.Now()
	folded := k.fold(now) // makes room for other interfaces
	links, err := k.update(rtnl.Change{})
	quiet, listened := k.listen(links)
	for name, a := range k.away {
		quiet = quiet && a.there == nil
		// Names that nobody asked for may never come again.
		if a.there == nil && now-a.since > longest && !slices.Contains(k.selection.names, name) {
			delete(k.away, name)
		}
	}
	return quiet, errors.Join(err, folded, listened)
}
