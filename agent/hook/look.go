// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"droidtap/agent/plan"
	"droidtap/android"
)

// Seen is what is attached to an interface, ours included.
type Seen struct {
	ifc    android.Interface
	Qdisc  string // that at ffff:, "clsact" or "ingress"; "": none
	Others []Other
	there  [2][]filter // by Direction
}

// Other is a program or a filter that is attached.
type Other struct {
	Where string `json:"where"`          // "tcx ingress", "tc egress", "xdp"
	Pref  uint16 `json:"pref,omitempty"` // of a tc filter
	Kind  string `json:"kind"`           // of a tc filter; "bpf"
	Name  string `json:"name,omitempty"`
}

// String returns such as "tc ingress 4 bpf clat_ingress".
func (o Other) String() string {
	text := o.Where
	if o.Pref != 0 {
		text += fmt.Sprintf(" %d", o.Pref)
	}
	if text += " " + o.Kind; o.Name != "" {
		text += " " + o.Name
	}
	return text
}

// Look finds out what is attached to an interface, without attaching anything. It is looked up in the network
// namespace of the calling thread.
func Look(ifc android.Interface) (Seen, error) {
	s := Seen{ifc: ifc}
	kinds, err := qdiscs()
	if err != nil {
		return s, err
	}
	s.Qdisc = kinds[ifc.Index]
	if err := s.xdp(); err != nil {
		return s, err
	}
	for _, dir := range []Direction{Ingress, Egress} {
		if err := s.tcx(dir); err != nil {
			return s, err
		}
		if s.Qdisc == "" || s.Qdisc != "clsact" && dir == Egress {
			continue
		}
		if s.there[dir], err = filters(ifc.Index, dir); err != nil {
			return s, err
		}
		for _, f := range s.there[dir] {
			if f.handle != 0 { // 0 stands for the preference itself
				s.Others = append(s.Others, Other{"tc " + dir.String(), f.pref, f.kind, f.name})
			}
		}
	}
	return s, nil
}

func (s *Seen) xdp() error {
	l, err := netlink.LinkByIndex(s.ifc.Index)
	if err != nil {
		return fmt.Errorf("look at %s: %w", s.ifc.Name, err)
	}
	if x := l.Attrs().Xdp; x != nil && x.Attached {
		s.Others = append(s.Others, Other{Where: "xdp", Kind: "bpf", Name: programName(ebpf.ProgramID(x.ProgId))})
	}
	return nil
}

func (s *Seen) tcx(dir Direction) error {
	if HaveTCX() != nil {
		return nil
	}
	q, err := link.QueryPrograms(link.QueryOptions{Target: s.ifc.Index, Attach: dir.attachType()})
	if err != nil {
		return fmt.Errorf("query tcx %s of %s: %w", dir, s.ifc.Name, err)
	}
	for _, p := range q.Programs {
		s.Others = append(s.Others, Other{Where: "tcx " + dir.String(), Kind: "bpf", Name: programName(p.ID)})
	}
	return nil
}

// programName returns the name of a program, or its number where it has none or is gone by now.
func programName(id ebpf.ProgramID) string {
	number := fmt.Sprintf("id %d", id)
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return number
	}
	defer p.Close()
	if info, err := p.Info(); err == nil && info.Name != "" {
		return info.Name
	}
	return number
}

// Choose tells which hook of a plan an attach would end with here, and why not those before it. A kernel may refuse more.
func (s Seen) Choose(hooks []plan.Hook) plan.Choice {
	c := plan.Choice{What: s.ifc.Name}
	for n, h := range hooks {
		why, err := s.would(h)
		if err == nil || n == len(hooks)-1 {
			c.Chosen, c.Why = string(h), why
			break
		}
		c.Not = append(c.Not, plan.Rejected{Name: string(h), Why: err.Error()})
	}
	return c
}

// would tells where an attach by a hook would get, or why it would fail or be behind others.
func (s Seen) would(h plan.Hook) (place string, err error) {
	switch h {
	case plan.TCX:
		return "first of all programs", nil
	case plan.Packet:
		return "a packet socket", nil
	}
	missing := false
	var errs []error
	for _, dir := range []Direction{Ingress, Egress} {
		lacks, err := lacksClsact(s.ifc, dir, s.Qdisc)
		if err != nil {
			return "", err
		}
		missing = missing || lacks
		pref, _ := choose(s.there[dir], nil)
		if w := behind(s.ifc, dir, pref); w != "" {
			errs = append(errs, errors.New(w))
		}
	}
	switch {
	case len(errs) > 0:
		return "behind others", errors.Join(errs...)
	case missing:
		return "preference 1 of a clsact that is made for it", nil
	}
	return "preference 1 of the clsact that is there", nil
}
