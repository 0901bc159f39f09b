// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"github.com/cilium/ebpf"

	"droidtap/agent/plan"
	"droidtap/agent/plugin"
)

// open returns the prober of the variant that runs, and how many of its records were lost. That of tracefs is closed with its
// stream.
func (s *source) open(coll *ebpf.Collection, t plugin.Target) (p prober, lost func() (uint64, error), err error) {
	if t.Variant == plan.Ring {
		return &programs{load: t.Load}, func() (uint64, error) { return lostOf(coll) }, nil
	}
	traces, err := openTraces(t.Plan.Clock, t.Log)
	if err != nil {
		return nil, nil, err
	}
	t.Stream(plugin.Stream{Ring: traces, Decode: s.Decode})
	return traces, func() (uint64, error) { return traces.Lost(), nil }, nil
}
