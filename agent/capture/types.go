// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"slices"

	"droidtap/agent/kernel"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
)

// found is what FindTypes returns.
type found struct {
	types kernel.Types
	err   error
}

// findTypes looks for the kernel's types where a probe needs or wants them or the user chose some, beside what else has to
// be found out; where not, the error wraps kernel.ErrNoTypes.
func (c *capture) findTypes(release string) <-chan found {
	to := make(chan found, 1)
	if !c.chosen() && !c.needed() && !slices.ContainsFunc(c.Probes, wantsTypes) {
		to <- found{err: kernel.ErrNoTypes}
		return to
	}
	go func() {
		t, err := kernel.FindTypes(c.BTF, release)
		to <- found{t, err}
	}()
	return to
}

// chosen tells whether the user chose some.
func (c *capture) chosen() bool { return c.BTF != "" && c.BTF != "auto" && c.BTF != "none" }

// needed tells whether a probe is nothing without them.
func (c *capture) needed() bool {
	return slices.ContainsFunc(c.Probes, func(p Probe) bool { return slices.Contains(p.Needs, plan.NeedTypes) })
}

// wantsTypes tells whether a probe is less without them.
func wantsTypes(p Probe) bool {
	t, ok := p.Source.(plugin.Typer)
	return ok && t.WantsTypes()
}

// types puts into k whether the types that were found can be used, and says why not: that is a warning where they are needed or
// were chosen; a probe that does without says what it means. A file or directory that cannot be read is a usage error.
func (c *capture) types(f found, k *plan.Kernel) (kernel.Types, error) {
	t, err := f.types, f.err
	say := c.Log.Info
	if c.chosen() || c.needed() {
		say = c.Log.Warn
	}
	if t.Source.Skipped != nil {
		c.Log.Warn("types that cannot be used: " + t.Source.Skipped.Error())
	}
	switch {
	case errors.Is(err, kernel.ErrChoice):
		return t, plugin.Usagef("--btf %s: %w", c.BTF, err)
	case err == nil:
		c.Log.Info("types of " + t.Source.String() + ": all offsets hold")
	case errors.Is(err, kernel.ErrNoTypes) && !c.needed():
	case t.Offsets == (kernel.Offsets{}):
		say(fmt.Sprintf("the kernel's types are not used, only what its helpers tell: %v", err))
	default:
		say(fmt.Sprintf("types of %v are used in part: %v", t.Source, err))
	}
	t.Tell(k, err)
	return t, nil
}
