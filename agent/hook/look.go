// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"droidtap/agent/plan"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

// Seen is what is attached to an interface, ours included.
type Seen struct {
	ifc    android.Interface
	Qdisc  string // that at ffff:, "clsact" or "ingress"; "": none
	Others []Other
	there  [2][]filter // by Direction
	ahead  [2][]string // TCX programs by Direction
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
	there, err := qdiscs()
	if err != nil {
		return Seen{}, err
	}
	return look(ifc, there[ifc.Index].kind)
}

// look is Look where the kind of the qdisc at ffff: is known.
func look(ifc android.Interface, qdisc string) (s Seen, err error) {
	s = Seen{ifc: ifc, Qdisc: qdisc}
	if err := s.xdp(); err != nil {
		return s, err
	}
	for _, dir := range []Direction{Ingress, Egress} {
		if s.ahead[dir], err = tcxPrograms(ifc, dir); err != nil {
			return s, err
		}
		for _, name := range s.ahead[dir] {
			s.Others = append(s.Others, Other{Where: "tcx " + dir.String(), Kind: "bpf", Name: name})
		}
		if s.Qdisc == "" || s.Qdisc != "clsact" && dir == Egress {
			continue
		}
		if s.there[dir], err = filters(ifc.Index, dir); err != nil {
			return s, err
		}
		for _, f := range s.there[dir] {
			// 0 stands for the preference itself, and u32 lists its tables as well.
			if o := (Other{"tc " + dir.String(), f.pref, f.kind, f.name}); f.handle != 0 && !slices.Contains(s.Others, o) {
				s.Others = append(s.Others, o)
			}
		}
	}
	return s, nil
}

func (s *Seen) xdp() error {
	d, err := rtnl.Get(s.ifc.Index)
	if err != nil {
		return fmt.Errorf("look at %s: %w", s.ifc.Name, err)
	}
	for _, id := range d.XDP {
		s.Others = append(s.Others, Other{Where: "xdp", Kind: "bpf", Name: programName(ebpf.ProgramID(id))})
	}
	return nil
}

// tcxPrograms returns the names of the TCX programs of one direction, none on a kernel without TCX.
func tcxPrograms(ifc android.Interface, dir Direction) (names []string, err error) {
	if HaveTCX() != nil {
		return nil, nil
	}
	q, err := link.QueryPrograms(link.QueryOptions{Target: ifc.Index, Attach: dir.attachType()})
	if err != nil {
		return nil, fmt.Errorf("query tcx %s of %s: %w", dir, ifc.Name, err)
	}
	for _, p := range q.Programs {
		names = append(names, programName(p.ID))
	}
	return names, nil
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

// Policed tells whether Android's limit of the download rate is on an interface, which wants preference 1 of ingress for itself
// (ConnectivityService TC_PRIO_POLICE, a matchall filter).
func Policed(ifindex int) (bool, error) {
	incoming, err := filters(ifindex, Ingress)
	return policed(incoming), err
}

func policed(incoming []filter) bool {
	return slices.ContainsFunc(incoming, func(f filter) bool { return f.pref == prefFirst && f.kind == "matchall" })
}

// AnyPoliced tells whether that limit is on any interface of this network namespace: then it may come to another.
func AnyPoliced() (bool, error) {
	there, err := qdiscs()
	if err != nil {
		return false, err
	}
	for ifindex := range there {
		if yes, err := Policed(ifindex); yes || err != nil {
			return yes, err
		}
	}
	return false, nil
}

// Outgoing returns what may hide packets that leave from a packet socket, which the kernel shows them last.
func (s Seen) Outgoing() (others []string) {
	for _, o := range s.Others {
		if strings.HasSuffix(o.Where, Egress.String()) {
			others = append(others, o.String())
		}
	}
	return others
}

// Choose tells which hook of a plan an attach would end with here, and why not those before it; none is chosen where none
// could be. A kernel may refuse more.
func (s Seen) Choose(hooks []plan.Hook) plan.Choice {
	c := plan.Choice{What: s.ifc.Name}
	for n, h := range hooks {
		place, obstacle, err := s.would(h)
		if err == nil && (obstacle == "" || n == len(hooks)-1) {
			if c.Chosen, c.Why = string(h), place; obstacle != "" {
				c.Why += ", " + obstacle
			}
			return c
		}
		if err != nil {
			obstacle = err.Error()
		}
		c.Not = append(c.Not, plan.Rejected{Name: string(h), Why: obstacle})
	}
	return c
}

// would tells where an attach by a hook would get, and what would hide packets from there that another hook sees. The
// error says why it would fail.
func (s Seen) would(h plan.Hook) (place, obstacle string, err error) {
	switch h {
	case plan.TCX:
		return "ahead of all programs of tc", "", nil
	case plan.Packet:
		return "a packet socket", "", nil
	}
	place = "preference 1 of the clsact that is there"
	for _, dir := range []Direction{Ingress, Egress} {
		lacks, err := lacksClsact(s.ifc, dir, s.Qdisc)
		if err != nil {
			return "", "", err
		}
		if lacks {
			place = "preference 1 of a clsact that is made for it"
		}
		pref, _ := choose(s.there[dir], nil, handleBase)
		switch w := behind(s.ifc, dir, pref, s.ahead[dir]); {
		case w == "":
		case dir == Ingress:
			obstacle = w
		default: // a packet socket sees what leaves after all filters
			place += ", but " + w
		}
	}
	return place, obstacle, nil
}
