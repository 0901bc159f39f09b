// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
	"droidtap/agent/hook"
	"droidtap/agent/plan"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

// check puts back what somebody took away from an interface, and moves ahead of what was put ahead of ours.
func (k *keeper) check(t *tap, noticed time.Duration) error {
	t.due = false
	lost, hidden, err := t.inspect()
	if lost && err == nil {
		// What was looked at first may have gone with the other, since: that is one gap, and not two.
		_, hidden, err = t.inspect()
	}
	switch {
	case err != nil:
		return fmt.Errorf("look at %s: %w", t.name, err)
	case lost:
		return k.mend(t, noticed, "somebody removed our "+string(t.at)+" filter")
	}
	if t.at != plan.TCX {
		k.seekLimit(t.ifc)
	}
	switch {
	case hidden == "":
		t.hidden = ""
	case hidden != t.hidden && noticed < t.rest:
		t.due = true
		return nil
	case hidden != t.hidden:
		// Whoever it was may do so again: not for ever.
		t.patience = min(max(2*t.patience, time.Second), longest)
		t.rest = noticed + t.patience
		return k.move(t, noticed, hidden, k.sighted(t))
	}
	if t.at == plan.Packet && errors.Is(t.why, hook.ErrNoClsact) {
		return k.promote(t, noticed)
	}
	return nil
}

// inspect looks at each program, and drops those that somebody removed. It tells whether there were any, and what may hide
// packets from the others.
func (t *tap) inspect() (lost bool, hidden string, err error) {
	var kept []hooked
	var errs []error
	lost = len(t.hooked) == 0
	for _, h := range t.hooked {
		err := h.Check()
		if errors.Is(err, hook.ErrLost) {
			lost = true
			_ = h.Close() // says the same
			continue
		}
		errs = append(errs, err)
		kept = append(kept, h)
	}
	t.hooked = kept
	return lost, warnings(kept), errors.Join(errs...)
}

// mend attaches anew where nothing is attached any more: by the same hook if that can be.
func (k *keeper) mend(t *tap, noticed time.Duration, why string) error {
	err := k.attachBy(t, t.at, false)
	if err != nil {
		err = k.again(t, k.sighted(t))
	}
	switch {
	case errors.Is(err, errVanished):
		return nil
	case err != nil:
		return err
	}
	k.changes++
	missing := boottime.Now() - noticed
	k.gap(t.port, missing, fmt.Sprintf("%s: %s, and nothing was captured for %v until it was back", t.name, why, round(missing)))
	return nil
}

// move attaches anew by the first of hooks that does, in the place of what is attached.
func (k *keeper) move(t *tap, noticed time.Duration, why string, hooks []plan.Hook) error {
	from := t.at
	switch err := k.again(t, hooks); {
	case errors.Is(err, errVanished):
		return nil
	case err != nil:
		return err
	}
	by := string(t.at) + " anew"
	if t.at != from {
		by = fmt.Sprintf("%s, not %s,", t.at, from)
	}
	missing := boottime.Now() - noticed
	k.gap(t.port, missing, fmt.Sprintf("%s: %s; it is captured by %s from here on, with %v between", t.name, why, by, round(missing)))
	return nil
}

// errVanished is for an interface that has gone since it was listed. The kernel's word of that is on its way.
var errVanished = errors.New("the interface is gone")

// again takes everything off and attaches. Where that fails, the interface is left for the next change or tick. The error may
// wrap errVanished.
func (k *keeper) again(t *tap, hooks []plan.Hook) error {
	k.changes++
	if _, err := t.detach(); err != nil {
		k.warn(t.name, err.Error()) // what stays there is no reason to capture nothing
	}
	err := k.attach(t, hooks)
	switch {
	case errors.Is(err, unix.ENODEV):
		t.due = true
		return errVanished
	case err != nil:
		k.taps = slices.DeleteFunc(k.taps, func(other *tap) bool { return other == t })
		k.ports.leave(t.ifc.Index, boottime.Now(), false)
		k.away[t.name] = absence{boottime.Now(), t.port}
	}
	return err
}

// giveUp counts the absence of those that could not be attached to, and are not wanted any more or not there.
func (k *keeper) giveUp(now time.Duration, links []rtnl.Link, wanted []android.Interface) {
	for _, name := range slices.Sorted(maps.Keys(k.away)) {
		a := k.away[name]
		if a.there == nil || slices.ContainsFunc(wanted, func(ifc android.Interface) bool { return ifc.Name == name }) {
			continue
		}
		k.gap(a.there, now-a.since, fmt.Sprintf("%s could not be captured any more, and packets of the last %v are missing", name, round(now-a.since)))
		delete(k.away, name)
		if !slices.ContainsFunc(links, func(l rtnl.Link) bool { return l.Name == name }) {
			k.away[name] = absence{since: now}
		}
	}
}

// promote takes an interface back from the packet socket that captures it where clsact could not be had, once it can: netd has
// made its own.
func (k *keeper) promote(t *tap, noticed time.Duration) error {
	seen, err := hook.Look(t.ifc)
	if err != nil {
		return err
	}
	hooks := k.sighted(t)
	choice := seen.Choose(hooks)
	if choice.Chosen == "" || choice.Chosen == string(plan.Packet) || k.policed {
		return nil
	}
	return k.move(t, noticed, "there is a clsact now", hooks)
}

// gap notes that nothing was captured on an interface for some time, in the file and for the summary.
func (k *keeper) gap(p *port, missing time.Duration, text string) {
	p.gap.Times++
	p.gap.Missing += missing
	k.note(p, boottime.Now()-missing, "gap: "+text)
	k.said[p.name] = text
	k.target.Log.Warn(text) // each is another, though two may be of the same length
}

// note writes a comment on an interface into the file. It is about packets since a time of the boot clock: some of them may be on
// their way.
func (k *keeper) note(p *port, since time.Duration, text string) {
	k.target.Emit(k.comment(p, time.Now().Add(since-boottime.Now()), text))
}

// round makes a duration readable.
func round(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}
