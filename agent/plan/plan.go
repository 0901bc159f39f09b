// SPDX-License-Identifier: Apache-2.0

// Package plan decides how to capture on a given kernel. It is pure: what the
// kernel can do comes in as values, the decision and its reasons go out.
package plan

import (
	"errors"
	"fmt"
	"slices"
)

// Variant names a build of the bpf objects: bpf/obj/<probe>.<variant>.o.
type Variant string

// The variants, by the kernel features that they need. See FEATURES_* in the Makefile.
const (
	// Ring needs global data (5.2) and the ring buffer (5.8).
	Ring Variant = "ring"
	// Legacy needs nothing newer than bpf-to-bpf calls (4.16).
	Legacy Variant = "legacy"
)

// Hook is where a classifier is attached to an interface.
type Hook string

const (
	// TCX is the link-based hook of 6.6: it cannot outlive the agent.
	TCX Hook = "tcx"
	// Clsact is a cls_bpf filter in a clsact qdisc, 4.5.
	Clsact Hook = "clsact"
)

// Clock is the clock that stamps records in the kernel.
type Clock string

const (
	// Boottime counts through suspend: bpf_ktime_get_boot_ns, 5.8 and Android's backports.
	Boottime Clock = "boottime"
	// Monotonic stops while the phone sleeps: bpf_ktime_get_ns.
	Monotonic Clock = "monotonic"
)

// Kernel is what was found out about the running kernel, by asking it. A nil
// error means that the feature is there; any other says why it is not.
type Kernel struct {
	Release string
	RingBuf error // BPF_MAP_TYPE_RINGBUF
	BootNs  error // bpf_ktime_get_boot_ns in a classifier
	TCX     error // BPF_TCX_INGRESS, BPF_TCX_EGRESS
}

// Wish is what the user asked for. Empty fields leave the choice to Make.
type Wish struct {
	Variant Variant
	Hook    Hook
}

// Check tells whether the wish names what there is.
func (w Wish) Check() error {
	if w.Hook != "" && !slices.Contains([]Hook{TCX, Clsact}, w.Hook) {
		return fmt.Errorf("no backend is called %q: there are %s, %s and auto", w.Hook, TCX, Clsact)
	}
	if w.Variant != "" && !slices.Contains([]Variant{Ring, Legacy}, w.Variant) {
		return fmt.Errorf("no object is called %q: there are %s, %s and auto", w.Variant, Ring, Legacy)
	}
	return nil
}

// Plan is the decision.
type Plan struct {
	Variants []Variant // to be tried in this order; the first that loads is used
	Hook     Hook
	Clock    Clock
	Why      []string // a sentence for each choice
}

// ErrImpossible is wrapped by Make's error when the kernel cannot do what the
// user asked for.
var ErrImpossible = errors.New("not possible on this kernel")

// Make decides. Its error wraps ErrImpossible, or is that of w.Check.
func Make(k Kernel, w Wish) (Plan, error) {
	if err := w.Check(); err != nil {
		return Plan{}, err
	}
	var p Plan
	for _, decide := range []func(*Plan, Kernel, Wish) error{variant, hook, clock} {
		if err := decide(&p, k, w); err != nil {
			return Plan{}, err
		}
	}
	return p, nil
}

func (p *Plan) because(format string, args ...any) {
	p.Why = append(p.Why, fmt.Sprintf(format, args...))
}

func variant(p *Plan, k Kernel, w Wish) error {
	switch {
	case w.Variant != "":
		p.Variants = []Variant{w.Variant}
		p.because("object %s: asked for", w.Variant)
	case k.RingBuf == nil:
		p.Variants = []Variant{Ring, Legacy}
		p.because("object ring, else legacy: the kernel has the ring buffer")
	default:
		p.Variants = []Variant{Legacy}
		p.because("object legacy: no ring buffer (%v)", k.RingBuf)
	}
	return nil
}

func hook(p *Plan, k Kernel, w Wish) error {
	switch {
	case w.Hook == TCX && k.TCX != nil:
		return fmt.Errorf("hook tcx: %w: %w", ErrImpossible, k.TCX)
	case w.Hook != "":
		p.Hook = w.Hook
		p.because("hook %s: asked for", w.Hook)
	case k.TCX == nil:
		p.Hook = TCX
		p.because("hook tcx: the kernel has it, and it ends with the agent")
	default:
		p.Hook = Clsact
		p.because("hook clsact: no TCX (%v)", k.TCX)
	}
	return nil
}

func clock(p *Plan, k Kernel, _ Wish) error {
	if k.BootNs == nil {
		p.Clock = Boottime
		p.because("clock boottime: counts on while the phone sleeps")
		return nil
	}
	p.Clock = Monotonic
	p.because("clock monotonic, corrected after suspend: no bpf_ktime_get_boot_ns (%v)", k.BootNs)
	return nil
}
