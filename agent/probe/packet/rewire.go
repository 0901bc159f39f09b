// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"strings"

	"droidtap/agent/hook"
)

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
	for _, l := range k.lanes() {
		f := l.filters.clone()
		f.wires[t.ifc.Index] = w
		l.change(f)
	}
	k.target.Log.Info(fmt.Sprintf("%s has another netmask: its filter is for %08x from now on", t.name, w.netmask))
	return nil
}
