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

// Hook is where packets of an interface are seen.
type Hook string

const (
	// TCX is the link-based hook of 6.6: it cannot outlive the agent.
	TCX Hook = "tcx"
	// TC is a cls_bpf filter in a clsact qdisc, 4.5.
	TC Hook = "tc"
	// Packet is a packet socket with a bpf filter and a memory-mapped ring. It needs
	// nothing of the interface, and knows no socket that a packet belongs to.
	Packet Hook = "packet"
)

// Clock is the clock that stamps records in the kernel.
type Clock string

const (
	// Boottime counts through suspend: bpf_ktime_get_boot_ns, 5.8 and Android's backports.
	Boottime Clock = "boottime"
	// Monotonic stops while the phone sleeps: bpf_ktime_get_ns.
	Monotonic Clock = "monotonic"
)

// Owners is how the owner of a packet that comes in is found. Of one that leaves, its socket tells.
type Owners string

const (
	// Lookup asks for the socket that the packet is for, where it comes in: bpf_sk_lookup_tcp, 4.20, and offsets.
	Lookup Owners = "lookup"
	// Flows knows the flows of packets that left.
	Flows Owners = "flows"
	// Afterwards asks sock_diag(7) behind the kernel, as the others do for what they do not know.
	Afterwards Owners = "sock_diag"
)

// Kernel is what was found out about the running kernel, by asking it. A nil
// error means that the feature is there; any other says why it is not.
type Kernel struct {
	Release string
	RingBuf error // BPF_MAP_TYPE_RINGBUF
	BootNs  error // bpf_ktime_get_boot_ns in a classifier
	TCX     error // BPF_TCX_INGRESS, BPF_TCX_EGRESS
	TC      error // clsact and cls_bpf; nil as well where only an attach tells
	Socket  error // packet sockets with a bpf filter; nil as well where only an open tells
	Cgroup  error // bpf_skb_cgroup_id in a classifier
	Globals error // global functions in a classifier
	Types   error // offsets in the kernel's structs, found to be right
	SockUID error // that of a socket's owner among them
}

// Need is a feature without which a probe cannot work at all.
type Need string

// NeedTypes is for probes that read the kernel's own structs.
const NeedTypes Need = "offsets in the kernel's structs"

// Lacks returns nil where the kernel meets the needs, or why it does not meet the first of them.
func (k Kernel) Lacks(needs []Need) error {
	answers := map[Need]error{NeedTypes: k.Types}
	for _, n := range needs {
		if err := answers[n]; err != nil {
			return fmt.Errorf("%s: %w: %w", n, ErrImpossible, err)
		}
	}
	return nil
}

// Wish is what the user asked for. Empty fields leave the choice to Make.
type Wish struct {
	Variant Variant
	Hook    Hook
}

// Check tells whether the wish names what there is.
func (w Wish) Check() error {
	if w.Hook != "" && !slices.Contains([]Hook{TCX, TC, Packet}, w.Hook) {
		return fmt.Errorf("no backend is called %q: there are %s, %s, %s and auto", w.Hook, TCX, TC, Packet)
	}
	if w.Variant != "" && !slices.Contains([]Variant{Ring, Legacy}, w.Variant) {
		return fmt.Errorf("no object is called %q: there are %s, %s and auto", w.Variant, Ring, Legacy)
	}
	return nil
}

// Plan is the decision.
type Plan struct {
	Variants []Variant // to be tried in this order; the first that loads is used
	Hooks    []Hook    // to be tried in this order on each interface; the first that sees every packet is used
	Clock    Clock
	Owners   Owners
	NoCgroup bool     // programs do without bpf_skb_cgroup_id
	Globals  bool     // the kernel is told which functions of programs are global
	Choices  []Choice // why
}

// Choice is one decision and its reason.
type Choice struct {
	What   string     `json:"what"`
	Chosen string     `json:"chosen"`
	Why    string     `json:"why"`
	Not    []Rejected `json:"not,omitempty"` // the others
}

// Rejected is what was not chosen, and why.
type Rejected struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// String puts a choice and its reason into a sentence.
func (c Choice) String() string {
	text := fmt.Sprintf("%s %s: %s", c.What, c.Chosen, c.Why)
	for _, n := range c.Not {
		text += fmt.Sprintf("; not %s: %s", n.Name, n.Why)
	}
	return text
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
	p.variant(k, w)
	if err := p.hook(k, w); err != nil {
		return Plan{}, err
	}
	p.clock(k)
	p.owners(k)
	p.NoCgroup = k.Cgroup != nil
	p.Globals = k.Globals == nil
	return p, nil
}

const askedFor = "asked for"

func (p *Plan) variant(k Kernel, w Wish) {
	c := Choice{What: "object"}
	switch {
	case w.Variant != "":
		p.Variants = []Variant{w.Variant}
		c.Why = askedFor
	case k.RingBuf == nil:
		p.Variants = []Variant{Ring, Legacy}
		c.Why = "the kernel has the ring buffer"
		c.Not = []Rejected{{string(Legacy), "slower, and tried only if ring does not load"}}
	default:
		p.Variants = []Variant{Legacy}
		c.Why = "needs nothing newer than Linux 4.19"
		c.Not = []Rejected{{string(Ring), k.RingBuf.Error()}}
	}
	c.Chosen = string(p.Variants[0])
	p.Choices = append(p.Choices, c)
}

// offered is a hook, what the kernel says of it, and what it is good for.
type offered struct {
	Hook
	lacks error
	why   string
}

// hooks are all hooks, the best one first.
func hooks(k Kernel) []offered {
	return []offered{
		{TCX, k.TCX, "runs ahead of all filters of tc, and ends with the agent"},
		{TC, k.TC, "knows the sockets of packets, and sees them before others change them"},
		{Packet, k.Socket, "needs nothing of the interface, but knows no owners"},
	}
}

func (p *Plan) hook(k Kernel, w Wish) error {
	c := Choice{What: "hook"}
	for _, o := range hooks(k) {
		switch {
		case w.Hook == "" && o.lacks != nil:
			c.Not = append(c.Not, Rejected{string(o.Hook), o.lacks.Error()})
			continue
		case w.Hook != "" && w.Hook != o.Hook:
			continue
		case o.lacks != nil:
			return fmt.Errorf("hook %s: %w: %w", o.Hook, ErrImpossible, o.lacks)
		}
		if p.Hooks = append(p.Hooks, o.Hook); len(p.Hooks) > 1 {
			c.Not = append(c.Not, Rejected{string(o.Hook), "tried only if " + c.Chosen + " fails on an interface"})
			continue
		}
		c.Chosen, c.Why = string(o.Hook), o.why
		if w.Hook != "" {
			c.Why = askedFor
		}
	}
	if len(p.Hooks) == 0 {
		return fmt.Errorf("hook: %w: %w", ErrImpossible, errors.Join(k.TCX, k.TC, k.Socket))
	}
	p.Choices = append(p.Choices, c)
	return nil
}

func (p *Plan) clock(k Kernel) {
	c := Choice{What: "clock", Chosen: string(Boottime), Why: "counts on while the phone sleeps"}
	if p.Clock = Boottime; k.BootNs != nil {
		p.Clock = Monotonic
		c = Choice{What: "clock", Chosen: string(Monotonic), Why: "corrected after the phone has slept",
			Not: []Rejected{{string(Boottime), k.BootNs.Error()}}}
	}
	p.Choices = append(p.Choices, c)
}

// owners decides by what is tried first: where that fails the next does what it can.
func (p *Plan) owners(k Kernel) {
	c := Choice{What: "owners"}
	switch {
	case p.Hooks[0] == Packet:
		p.Owners, c.Why = Afterwards, "the kernel is asked behind the hook"
		for _, o := range []Owners{Lookup, Flows} {
			c.Not = append(c.Not, Rejected{string(o), "a packet socket knows no other sockets"})
		}
	case p.Variants[0] == Ring && k.SockUID == nil:
		p.Owners, c.Why = Lookup, "finds the socket that a packet is for when it comes in"
		c.Not = []Rejected{{string(Flows), "tried only where no socket is found"}}
	default:
		p.Owners, c.Why = Flows, "learnt from what leaves; of others the kernel is asked behind the hook"
		why := "only the object " + string(Ring) + " has it"
		if p.Variants[0] == Ring {
			why = k.SockUID.Error()
		}
		c.Not = []Rejected{{string(Lookup), why}}
	}
	c.Chosen = string(p.Owners)
	p.Choices = append(p.Choices, c)
}
