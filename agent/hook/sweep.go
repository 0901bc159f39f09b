// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"droidtap/agent/rtnl"
	"droidtap/android"
)

// Sweep removes what processes of ours that were killed left on the interfaces of this network namespace: their
// filters, and the clsact they created if nothing is left in it. It returns a line for each thing removed, and goes on
// after an error. What processes of another pid namespace made is left alone.
func Sweep() ([]string, error) {
	there, err := qdiscs()
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	var lines []string
	var errs []error
	for _, ifindex := range slices.Sorted(maps.Keys(there)) {
		name := fmt.Sprintf("interface %d", ifindex)
		if d, err := rtnl.Get(ifindex); err == nil {
			name = d.Name
		}
		removed, err := sweep(os.DirFS("/proc"), android.Interface{Index: ifindex, Name: name}, there[ifindex])
		lines = append(lines, removed...)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", name, err))
		}
	}
	return lines, errors.Join(errs...)
}

// sweep does one interface, which has the qdisc.
func sweep(proc fs.FS, ifc android.Interface, qdisc holder) (lines []string, err error) {
	made := qdisc.ours && qdisc.maker.dead(proc, pidNamespace())
	dirs := []Direction{Ingress, Egress}
	if qdisc.kind != "clsact" {
		dirs = dirs[:1]
	}
	for _, dir := range dirs {
		all, err := filters(ifc.Index, dir)
		if err != nil {
			return lines, err
		}
		for _, g := range all {
			o, ok := parseOwner(g.name)
			if !ok || !o.dead(proc, pidNamespace()) {
				continue
			}
			f := Filter{Pref: g.pref, Handle: g.handle, ifc: ifc, dir: dir}
			if err := f.delete(); err != nil {
				if gone(err) {
					continue
				}
				return lines, fmt.Errorf("delete %s filter of process %d: %w", dir, o.pid, err)
			}
			lines = append(lines, fmt.Sprintf("%s: %s filter at preference %d, left by process %d", ifc.Name, dir, g.pref, o.pid))
			made = made || o.made
		}
	}
	if !made {
		return lines, nil
	}
	deleted, err := deleteEmpty(ifc)
	if deleted {
		lines = append(lines, ifc.Name+": clsact qdisc, created by a killed run")
	}
	return lines, err
}
