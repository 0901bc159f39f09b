// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/hook"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
)

// tap is an interface that is captured.
type tap struct {
	*port
	ifc    android.Interface
	wire   wire
	at     plan.Hook
	hooked []hooked
	why    error  // why it is not by what comes first in the plan; nil: it is
	hidden string // what may hide packets from it as well as it could be attached

	due      bool          // somebody's filter is ahead of ours, and will be looked at again
	rest     time.Duration // until when, by the boot clock, ours is not moved ahead again
	patience time.Duration // for which it was left there last

	health
}

// hooked is a program at its place.
type hooked struct {
	hook.Attachment
	at   point
	prog *ebpf.Program
}

// is tells whether an interface is this one: a name may come back with another index, and an index with another name.
func (t *tap) is(ifc android.Interface) bool {
	return t.ifc.Index == ifc.Index && t.ifc.Name == ifc.Name && t.ifc.Type == ifc.Type
}

// has tells whether a program is at a point.
func (t *tap) has(at point) bool {
	return slices.ContainsFunc(t.hooked, func(h hooked) bool { return h.at == at })
}

// warnings are what may hide packets from programs at their places.
func warnings(of []hooked) string {
	var all []string
	for _, h := range of {
		if w := h.Warning(); w != "" {
			all = append(all, w)
		}
	}
	return strings.Join(all, "; ")
}

// detach takes all programs off, in reverse order. It tells whether somebody had removed one.
func (t *tap) detach() (lost bool, err error) {
	var errs []error
	for _, h := range slices.Backward(t.hooked) {
		err := h.Close()
		if errors.Is(err, hook.ErrLost) {
			lost = true
			continue
		}
		errs = append(errs, err)
	}
	t.hooked = nil
	return lost, errors.Join(errs...)
}

// attach tries hooks, one after the other, for one that sees every packet. Where none does, the best one is taken that sees some.
func (k *keeper) attach(t *tap, hooks []plan.Hook) error {
	var errs []error
	partial := -1
	for n, at := range hooks {
		err := k.attachBy(t, at, n == len(hooks)-1)
		if err == nil {
			t.why = errors.Join(errs...)
			return k.attached(t)
		}
		if errors.Is(err, os.ErrPermission) {
			return err
		}
		if errors.As(err, new(behindOthers)) && partial < 0 {
			partial = n
		}
		errs = append(errs, err)
	}
	if partial >= 0 && k.attachBy(t, hooks[partial], true) == nil {
		t.why = nil // the warning said it
		return k.attached(t)
	}
	return errors.Join(errs...)
}

// attached says what an interface is captured by, and why not by what comes first in the plan.
func (k *keeper) attached(t *tap) error {
	k.target.Log.Debug("attached", "interface", t.name, "hook", t.at)
	t.instead = ""
	if t.why != nil {
		t.instead = fmt.Sprintf("captured by %s: %v", t.at, t.why)
		k.warn(t.name, t.name+" is "+t.instead)
	}
	if !t.ifc.Up {
		k.warn(t.name, t.name+" is down: packets will come when it is up")
	}
	return nil
}

// behindOthers is the error for a place behind programs that may hide packets.
type behindOthers struct{ warning string }

func (b behindOthers) Error() string { return b.warning }

// attachBy attaches to the points of an interface that have no program, by one hook, or to none. Unless it is the last resort, a place
// behind others is an error.
func (k *keeper) attachBy(t *tap, at plan.Hook, last bool) error {
	if at == plan.Packet {
		return k.attachSocket(t)
	}
	if at == plan.TC {
		k.seekLimit(t.ifc)
	}
	if at == plan.TC && k.policed && !last {
		return behindOthers{"preference 1 at ingress is left to Android's limit of the download rate, a matchall filter, which was seen"}
	}
	var made []hooked
	undo := func(err error) error {
		for _, h := range slices.Backward(made) {
			err = errors.Join(err, h.Close())
		}
		return err
	}
	for _, point := range k.points(t.ifc) {
		if t.has(point) {
			continue
		}
		prog, err := k.program(&k.classifiers, t.wire, point)
		if err != nil {
			return undo(fmt.Errorf("attach %s to %s: %w", at, t.name, err))
		}
		h, err := k.put(prog, at, t.ifc, point)
		if err != nil {
			return undo(err)
		}
		made = append(made, hooked{h, point, prog})
		switch w := h.Warning(); {
		case w != "" && (last || point == egress):
			// A packet socket sees what leaves after all filters, so it would see less.
			k.warn(t.name, w)
		case w != "":
			return undo(behindOthers{w})
		}
	}
	t.at = at
	t.hooked = append(t.hooked, made...)
	t.hidden = warnings(t.hooked)
	return nil
}

// put attaches a program by a hook, where a place is held in that one.
func (k *keeper) put(prog *ebpf.Program, at plan.Hook, ifc android.Interface, to point) (hook.Attachment, error) {
	if at == plan.TC && k.policed && to == ingress {
		return hook.AttachBehind(ifc, to.direction(), prog)
	}
	if at == plan.TCX {
		if held := k.places.at(ifc, to); held != nil {
			if err := held.Update(prog); err != nil {
				return nil, errors.Join(err, held.Close())
			}
			return held, nil
		}
	}
	return hook.Attach(at, ifc, to.direction(), prog)
}

// seekLimit looks whether Android limits the download rate: of any interface the first time, and then of one. Where it does so of one, it
// may of others. What cannot be asked is no obstacle.
func (k *keeper) seekLimit(ifc android.Interface) {
	switch {
	case k.policed:
	case k.sought:
		k.policed, _ = hook.Policed(ifc.Index)
	default:
		k.sought = true
		k.policed, _ = hook.AnyPoliced()
	}
}

// program returns the program of a lane for a wire and a point. It is loaded where it is not yet.
func (k *keeper) program(l *lane, w wire, at point) (*ebpf.Program, error) {
	if prog := k.programs[w.program(at)]; prog != nil {
		return prog, nil
	}
	m := more{k.source, l.filters.clone(), needs{w: {at}}}
	if at != socket {
		m.needs.add(w, k.points(anyEthernet)...)
	}
	loaded, err := k.target.Load(&m)
	if err != nil {
		return nil, err
	}
	for name, prog := range loaded {
		if k.programs[name] != nil { // it was needed at another point only
			loaded[name] = k.programs[name]
			prog.Close()
		}
	}
	maps.Copy(k.programs, loaded)
	l.change(m.next)
	return k.programs[w.program(at)], nil
}

// more is programs that are loaded when they are needed, with the filters of a lane as they are then.
type more struct {
	*source
	next  filters
	needs needs
}

// Prepare injects the filters.
func (m *more) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	return m.prepare(&m.next, m.needs, spec, t)
}
