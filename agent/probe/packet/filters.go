// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"droidtap/agent/filter"
	"droidtap/agent/hook"
	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

// wire is what an expression is compiled for: interfaces with the same one share a filter.
type wire struct {
	framing android.Framing
	netmask uint32 // of the IPv4 network, in host byte order; 0: none, or expr does not ask
}

// filters is an expression compiled for each wire that is captured on. Readers have it, so that it is changed only before
// they do: see lane.change.
type filters struct {
	expr  string
	wires map[int]wire // by ifindex
	of    map[wire]fitted
}

// fitted is an expression compiled for a wire, and the form of the programs that were loaded for it last.
type fitted struct {
	filter.Filter
	form filter.Form
}

// exact tells whether the programs decide about every packet.
func (f fitted) exact() bool { return f.Trivial() || f.Exact(f.form) }

// clone copies what may be changed.
func (f filters) clone() filters {
	f.wires, f.of = maps.Clone(f.wires), maps.Clone(f.of)
	return f
}

// compiled is an expression compiled for the wires of some interfaces; for some it may be impossible.
type compiled struct {
	filters
	errs map[wire]error
}

// wireOf tells what an expression has to be compiled for on an interface.
func wireOf(expr string, ifc android.Interface) wire {
	w := wire{framing: ifc.Framing()}
	if asksNetmask(expr) {
		w.netmask = netmask(ifc)
	}
	return w
}

// anyEthernet stands for interfaces that are not there yet.
var anyEthernet = android.Interface{Name: "Ethernet", Type: 1}

// compileFor compiles expr for each of the interfaces; for Ethernet where there is none. Its error is a usage error: the expression is wrong
// on every interface.
func compileFor(ctx context.Context, expr string, chosen []android.Interface) (compiled, error) {
	c := compiled{filters{expr: expr, wires: map[int]wire{}, of: map[wire]fitted{}}, map[wire]error{}}
	if len(chosen) == 0 {
		chosen = []android.Interface{anyEthernet}
	}
	l2 := false
	for _, ifc := range chosen {
		w := wireOf(expr, ifc)
		l2 = l2 || w.framing == android.L2
		c.wires[ifc.Index] = w
		if _, done := c.of[w]; done || c.errs[w] != nil {
			continue
		}
		f, err := filter.Compile(ctx, expr, linkTypes[w.framing], w.netmask)
		if err != nil {
			c.errs[w] = err
			continue
		}
		c.of[w] = fitted{Filter: f}
	}
	if len(c.of) > 0 {
		return c, nil
	}
	if !l2 {
		// What is right for Ethernet is not mistyped: usable has more to say of it.
		if _, err := filter.Compile(ctx, expr, pcapng.Ethernet, 0); err == nil {
			return c, nil
		}
	}
	return c, plugin.Usagef("%w", c.errs[c.wires[chosen[0].Index]])
}

// netmask returns the mask of an interface's first IPv4 address, as pcap_lookupnet does, or 0.
func netmask(ifc android.Interface) uint32 {
	addresses, err := rtnl.Addresses()
	if err != nil {
		return 0 // the attach says what is wrong
	}
	of := addresses[ifc.Index]
	first := slices.IndexFunc(of, func(a netip.Prefix) bool { return a.Addr().Is4() })
	// An address without a network has no broadcast address; to libpcap that is an unknown mask.
	if first < 0 || of[first].IsSingleIP() {
		return 0
	}
	return ^(uint32(0xffffffff) >> of[first].Bits())
}

// usable returns the interfaces on which the expression can match, and why each
// of the others is left out. An expression that is an error on an interface that
// was named is a usage error; one that merely never matches there leaves it out,
// as it does those of "any". Nothing left is a usage error, too.
func (c compiled) usable(chosen []android.Interface, every bool) (kept []android.Interface, left []string, err error) {
	for _, ifc := range chosen {
		err := c.errs[c.wires[ifc.Index]]
		if err == nil {
			kept = append(kept, ifc)
			continue
		}
		err = fmt.Errorf("%s: %w", without(ifc), err)
		if !every && !errors.Is(err, filter.ErrRejectsAll) {
			return nil, nil, plugin.Usagef("%w", err)
		}
		left = append(left, err.Error())
	}
	if len(kept) == 0 && len(left) > 0 {
		return nil, nil, plugin.Usagef("%s", left[0])
	}
	return kept, left, nil
}

// without says what the packets of an interface lack, or have.
func without(ifc android.Interface) string {
	if ifc.Framing() == android.L3 {
		return "interface " + ifc.Name + " has no Ethernet header, its packets begin with the IP header"
	}
	return "interface " + ifc.Name
}

// ordered returns the wires in an order that is the same each time.
func (f *filters) ordered() []wire {
	var all []wire
	for w := range f.of {
		all = append(all, w)
	}
	slices.SortFunc(all, func(a, b wire) int {
		return cmp.Or(cmp.Compare(a.framing, b.framing), cmp.Compare(a.netmask, b.netmask))
	})
	return all
}

// point is where a program sees packets.
type point string

// The points: the two directions of a classifier, and a packet socket, which sees both.
const (
	ingress point = "ingress"
	egress  point = "egress"
	socket  point = "socket"
)

// direction returns that of a classifier's point.
func (p point) direction() hook.Direction {
	if p == egress {
		return hook.Egress
	}
	return hook.Ingress
}

// programs names the program of bpf/src/packet.bpf.c for a framing and point.
var programs = map[android.Framing]map[point]string{
	android.L2: {ingress: "l2_ingress", egress: "l2_egress", socket: "l2_socket"},
	android.L3: {ingress: "l3_ingress", egress: "l3_egress", socket: "l3_socket"},
}

// needs are the points at which programs for a wire are needed.
type needs map[wire][]point

func (n needs) add(w wire, points ...point) {
	for _, at := range points {
		if !slices.Contains(n[w], at) {
			n[w] = append(n[w], at)
		}
	}
}

// program names the program for a wire and point. The object has one for each framing; copies of it hold what is compiled
// with a netmask.
func (w wire) program(at point) string {
	name := programs[w.framing][at]
	if w.netmask != 0 {
		name += fmt.Sprintf("_%x", w.netmask)
	}
	return name
}

// at returns the form of programs at a point: the filter of a socket may not look at the packet directly.
func (f fitted) at(at point) filter.Form {
	if at == socket && f.form == filter.Hybrid {
		return filter.LoadBytes
	}
	return f.form
}

// inject leaves in spec the programs that are needed only, each with its filter in form, and tells whether they decide about
// every packet.
func (f *filters) inject(spec *ebpf.CollectionSpec, n needs, form filter.Form) (exact bool, err error) {
	wanted := map[string]*ebpf.ProgramSpec{}
	exact = true
	for w, points := range n {
		of := f.of[w]
		of.form = form
		f.of[w] = of
		exact = exact && of.exact()
		for _, at := range points {
			p := spec.Programs[programs[w.framing][at]].Copy()
			if err := of.Inject(p, filter.How{Form: of.at(at), Egress: at == egress}); err != nil {
				return false, err
			}
			wanted[w.program(at)] = p
		}
	}
	spec.Programs = wanted
	return exact, nil
}

// smaller returns the form for an attempt. The error is plugin.ErrSmallest.
func (f *filters) smaller(n needs, forms []filter.Form, attempt int) (filter.Form, error) {
	trivial := true
	for w := range n {
		trivial = trivial && f.of[w].Trivial()
	}
	if attempt >= len(forms) || attempt > 0 && trivial {
		return 0, plugin.ErrSmallest
	}
	return forms[attempt], nil
}
