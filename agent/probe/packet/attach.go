// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cilium/ebpf"

	"droidtap/agent/hook"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
)

// Attach describes the interfaces to the writer and attaches to each. An
// interface of "any" that has gone since it was listed is left out.
func (s *source) Attach(coll *ebpf.Collection, t plugin.Target) (io.Closer, error) {
	for _, why := range s.left {
		t.Log.Warn(why + ": it is left out")
	}
	swept, err := hook.Sweep()
	for _, line := range swept {
		t.Log.Warn("left by a killed run: " + line)
	}
	if err != nil {
		t.Log.Warn("look for leftovers of killed runs: " + err.Error())
	}

	a := attachment{names: map[int]string{}}
	// Before the first attach, so that no interface can go unnoticed.
	if err := a.watch(t); err != nil {
		return nil, err
	}
	for _, ifc := range s.chosen {
		t.Emit(s.describe(ifc))
		switch err := s.attach(&a, coll, t, ifc); {
		case err == nil:
			a.add(ifc)
		case s.any && !errors.Is(err, os.ErrPermission):
			t.Log.Warn(ifc.Name + " is left out: " + err.Error())
		default:
			return nil, errors.Join(err, a.Close())
		}
	}
	if len(a.closers) == 0 {
		return nil, errors.Join(errors.New("nothing to capture on: no interface could be attached to"), a.Close())
	}
	a.settle(t)
	s.sayLanes(t)
	return &a, nil
}

// sayLanes tells of each lane that is in use how it filters.
func (s *source) sayLanes(t plugin.Target) {
	if len(s.hooked) > len(s.open) {
		s.sayForm(&s.classifiers.filters, ingress, t.Log)
	}
	if len(s.open) > 0 {
		s.sayForm(&s.sockets.filters, socket, t.Log)
	}
	if len(s.open) > 0 && len(s.uids) > 0 {
		t.Log.Warn("a packet socket does not tell the owner of a packet: the kernel is asked for its socket afterwards; " +
			"packets of a socket that was closed before are left out and counted")
	}
}

// attach tries the hooks of the plan on an interface, one after the other, for one that sees every packet. Where none
// does, the best one is taken that sees some.
func (s *source) attach(a *attachment, coll *ebpf.Collection, t plugin.Target, ifc android.Interface) error {
	var errs []error
	partial := -1
	for n, at := range t.Plan.Hooks {
		err := s.attachBy(a, coll, t, ifc, at, n == len(t.Plan.Hooks)-1)
		if err == nil {
			return s.attached(t, ifc, at, errs)
		}
		if errors.Is(err, os.ErrPermission) {
			return err
		}
		if errors.As(err, new(behindOthers)) && partial < 0 {
			partial = n
		}
		errs = append(errs, err)
	}
	if partial >= 0 {
		if err := s.attachBy(a, coll, t, ifc, t.Plan.Hooks[partial], true); err == nil {
			return s.attached(t, ifc, t.Plan.Hooks[partial], nil)
		}
	}
	return errors.Join(errs...)
}

// attached says what an interface is captured by, and why not by what comes first in the plan.
func (s *source) attached(t plugin.Target, ifc android.Interface, at plan.Hook, before []error) error {
	t.Log.Debug("attached", "interface", ifc.Name, "hook", at)
	if len(before) > 0 {
		t.Log.Warn(fmt.Sprintf("%s is captured by %s: %v", ifc.Name, at, errors.Join(before...)))
	}
	if !ifc.Up {
		t.Log.Warn(ifc.Name + " is down: packets will come when it is up")
	}
	return nil
}

// behindOthers is the error for a place behind programs that may hide packets.
type behindOthers struct{ warning string }

func (b behindOthers) Error() string { return b.warning }

// attachBy attaches to all points of an interface by one hook, or to none. Unless it is the last resort, a place behind others is
// an error.
func (s *source) attachBy(a *attachment, coll *ebpf.Collection, t plugin.Target, ifc android.Interface, at plan.Hook, last bool) error {
	if at == plan.Packet {
		return s.attachSocket(a, coll, t, ifc)
	}
	closers, hookeds := len(a.closers), len(s.hooked)
	undo := func(err error) error {
		s.hooked = s.hooked[:hookeds]
		return errors.Join(err, a.closeFrom(closers))
	}
	for _, point := range s.points(ifc) {
		dir := hook.Ingress
		if point == egress {
			dir = hook.Egress
		}
		f := &s.classifiers.filters
		prog := coll.Programs[f.program(f.wires[ifc.Index], point)]
		h, err := hook.Attach(at, ifc, dir, prog)
		if err != nil {
			return undo(err)
		}
		a.closers = append(a.closers, h)
		s.hooked = append(s.hooked, hooked{h, ifc, point, prog})
		switch w := h.Warning(); {
		case w != "" && (last || point == egress):
			// A packet socket sees what leaves after all filters, so it would see less.
			t.Log.Warn(w)
		case w != "":
			return undo(behindOthers{w})
		}
	}
	return nil
}
