// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

// look lists the interfaces, and finds the uplinks if they matter. Those that led to the internet last do so until others do:
// what a phone says to a network that it joins anew is of interest.
func (k *keeper) look() (links []rtnl.Link, err error) {
	if links, err = rtnl.Links(); err != nil {
		return nil, err
	}
	uplinks, err := k.uplinks()
	if err != nil {
		return nil, fmt.Errorf("find the default network: %w", err)
	}
	if len(uplinks) > 0 {
		k.inet = uplinks
	}
	return links, nil
}

// wanted returns the interfaces that are to be captured.
func (k *keeper) wanted(links []rtnl.Link) (wanted []android.Interface) {
	for _, l := range links {
		held := slices.ContainsFunc(k.taps, func(t *tap) bool { return t.is(l.Interface) })
		if k.selection.takes(l.Interface, k.inet, held) {
			wanted = append(wanted, l.Interface)
		}
	}
	return wanted
}

// update makes what is captured what is to be, after a change.
func (k *keeper) update(change rtnl.Change) (links []rtnl.Link, err error) {
	before := k.inet
	noticed := boottime.Now()
	if links, err = k.look(); err != nil {
		return nil, err
	}
	wanted := k.wanted(links)
	moved := func(ifc android.Interface) bool {
		return slices.Contains(k.inet, ifc.Index) && !slices.Contains(before, ifc.Index)
	}
	var errs []error
	for _, t := range slices.Clone(k.taps) {
		n := slices.IndexFunc(wanted, t.is)
		if n < 0 {
			there := slices.ContainsFunc(links, func(l rtnl.Link) bool { return l.Index == t.ifc.Index && l.Name == t.name })
			errs = append(errs, k.drop(t, there, noticed))
			continue
		}
		t.ifc = wanted[n]
		if moved(t.ifc) { // it was captured by its name, too
			k.note(t.port, noticed, internet+" moved here")
		}
		errs = append(errs, k.rewire(t))
		if t.due || change.Lost || change.Links || change.TC[t.ifc.Index] {
			errs = append(errs, k.check(t, noticed))
		}
	}
	k.giveUp(noticed, links, wanted)
	if !slices.Equal(before, k.inet) {
		k.target.Log.Warn(internet + " moved: it is " + k.describeUplinks(links) + " now")
	}
	for _, ifc := range wanted {
		if !slices.ContainsFunc(k.taps, func(t *tap) bool { return t.is(ifc) }) {
			k.appear(ifc, noticed, moved(ifc))
		}
	}
	return links, errors.Join(errs...)
}

// describeUplinks names the interfaces that lead to the internet.
func (k *keeper) describeUplinks(links []rtnl.Link) string {
	text := ""
	for _, index := range k.inet {
		for _, l := range links {
			if l.Index == index && text != "" {
				text += " and " + l.Name
			} else if l.Index == index {
				text = l.Name
			}
		}
	}
	if text == "" {
		return "no interface"
	}
	return text
}

// appear captures an interface that was not there, or not wanted, before.
func (k *keeper) appear(ifc android.Interface, noticed time.Duration, moved bool) {
	switch err := k.add(ifc); {
	case errors.Is(err, unix.ENODEV): // it is gone again, which the next change tells
		k.target.Log.Debug("not captured", "interface", ifc.Name, "because", err)
		return
	case err != nil:
		// The next change or tick tries again.
		k.sayLeft(ifc, err)
		return
	}
	t := k.taps[len(k.taps)-1]
	absence, was := k.away[ifc.Name]
	delete(k.away, ifc.Name)
	switch now := boottime.Now(); {
	case was && absence.there != nil:
		k.gap(t.port, now-absence.since, fmt.Sprintf("%s is captured again, by %s, after %v", t.name, t.at, round(now-absence.since)))
	case was:
		k.gap(t.port, now-noticed, fmt.Sprintf("%s was gone for %v and is captured again, by %s, %v after that was noticed",
			t.name, round(noticed-absence.since), t.at, round(now-noticed)))
	case moved:
		k.note(t.port, noticed, internet+" moved here")
		k.target.Log.Info(t.name+" is captured from now on", "hook", t.at)
	default:
		k.target.Log.Info(t.name+" is captured from now on", "hook", t.at)
	}
}

// add attaches to an interface.
func (k *keeper) add(ifc android.Interface) error {
	w, err := k.fit(ifc)
	if err != nil {
		return err
	}
	if old := k.ports.of(uint32(ifc.Index)); old != nil && old.portKey != keyOf(ifc) {
		if err := k.foldIndex(uint32(ifc.Index), old); err != nil {
			return err
		}
	}
	if err := k.countIndex(ifc.Index); err != nil {
		return err
	}
	p, fresh := k.ports.add(ifc)
	if fresh {
		k.target.Emit(k.describe(p))
	}
	k.edit(func(f *filters) { f.wires[ifc.Index] = w })
	t := &tap{port: p, ifc: ifc, wire: w}
	if err := k.attach(t, k.target.Plan.Hooks); err != nil {
		k.ports.leave(ifc.Index, boottime.Now(), false)
		return err
	}
	k.taps = append(k.taps, t)
	k.changes++
	return nil
}

// drop ends the capture of an interface, which is there still or not.
func (k *keeper) drop(t *tap, there bool, now time.Duration) error {
	_, err := t.detach() // what somebody removed is not wanted any more
	k.taps = slices.DeleteFunc(k.taps, func(other *tap) bool { return other == t })
	k.changes++
	k.ports.leave(t.ifc.Index, now, !there)
	delete(k.said, t.name)
	if there {
		k.target.Log.Info(t.name + " is not captured any more")
		return err
	}
	k.away[t.name] = absence{since: now}
	text := "interface " + t.name + " went away: it is captured again when it comes back"
	if slices.Contains(k.selection.names, t.name) {
		k.target.Log.Warn(text)
	} else {
		k.target.Log.Info(text)
	}
	return err
}
