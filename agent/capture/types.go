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

// types finds the kernel's types where a probe needs them or the user chose some, and puts into k whether they can be
// used. A file or directory that cannot be read is a usage error.
func (c *capture) types(k *plan.Kernel) (kernel.Types, error) {
	chosen := c.BTF != "" && c.BTF != "auto" && c.BTF != "none"
	needed := slices.ContainsFunc(c.Probes, func(p Probe) bool { return slices.Contains(p.Needs, plan.NeedTypes) })
	if !chosen && !needed {
		return kernel.Types{}, nil
	}
	t, err := kernel.FindTypes(c.BTF, k.Release)
	if t.Source.Skipped != nil {
		c.Log.Warn("types that cannot be used: " + t.Source.Skipped.Error())
	}
	switch {
	case errors.Is(err, kernel.ErrChoice):
		return t, plugin.Usagef("--btf %s: %w", c.BTF, err)
	case err == nil:
		c.Log.Info("types of " + t.Source.String() + ": all offsets hold")
	case t.Offsets == (kernel.Offsets{}):
		c.Log.Warn(fmt.Sprintf("the kernel's types are not used, only what its helpers tell: %v", err))
	default:
		c.Log.Warn(fmt.Sprintf("types of %v are used in part: %v", t.Source, err))
	}
	if t.Offsets == (kernel.Offsets{}) {
		k.Types = err
	}
	return t, nil
}
