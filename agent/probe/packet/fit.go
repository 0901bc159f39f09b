// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"droidtap/agent/hook"
	"droidtap/android"
)

// fitting is an expression for a wire.
type fitting struct {
	expr string
	wire
}

// misfit is the error for an interface that the expression does not fit.
type misfit struct{ error }

func (m misfit) Unwrap() error { return m.error }

// fit sees to it that the expression is compiled for an interface. The error is a misfit.
func (k *keeper) fit(ifc android.Interface) (wire, error) {
	expr := k.classifiers.filters.expr
	w := wireOf(expr, ifc)
	if _, done := k.classifiers.filters.of[w]; done {
		return w, nil
	}
	err := k.unfit[fitting{expr, w}]
	var c compiled
	if err == nil {
		if c, err = compileFor(context.Background(), expr, []android.Interface{ifc}); err == nil {
			err = c.errs[w]
		}
	}
	if err != nil {
		k.unfit[fitting{expr, w}] = err
		return w, misfit{fmt.Errorf("%s: %w", without(ifc), err)}
	}
	k.edit(func(f *filters) { f.of[w] = c.of[w] })
	return w, nil
}

// asksNetmask tells whether an expression may be another one with another netmask.
func asksNetmask(expr string) bool { return strings.Contains(expr, "broadcast") }

// rewire has an interface's filter follow its netmask, which comes with its address, mostly after the interface.
func (k *keeper) rewire(t *tap) error {
	expr := k.classifiers.filters.expr
	if !asksNetmask(expr) || wireOf(expr, t.ifc) == t.wire {
		return nil
	}
	w, err := k.fit(t.ifc)
	if err != nil {
		return err
	}
	for i := range t.hooked {
		h := &t.hooked[i]
		l := &k.classifiers
		if h.at == socket {
			l = &k.sockets
		}
		prog, err := k.program(l, w, h.at)
		if err == nil {
			err = h.Update(prog)
		}
		// What is lost is mended, with the new one.
		if err != nil && !errors.Is(err, hook.ErrLost) {
			return fmt.Errorf("follow the netmask of %s: %w", t.name, err)
		}
		h.prog = prog
	}
	t.wire = w
	k.changes++
	k.edit(func(f *filters) { f.wires[t.ifc.Index] = w })
	k.target.Log.Info(fmt.Sprintf("%s has another netmask: its filter is for %08x from now on", t.name, w.netmask))
	return nil
}
