// SPDX-License-Identifier: Apache-2.0

// Package packet is the probe that captures packets: classifiers on chosen
// interfaces, a pcap-filter expression in them, and the records they send.
package packet

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/urfave/cli/v2"

	"droidtap/agent/filter"
	"droidtap/agent/hook"
	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
	"droidtap/android"
)

func init() {
	plugin.RegisterProbe(plugin.Probe{
		Name:    "packet",
		Usage:   "packets of network interfaces",
		Flags:   flags(),
		Instead: instead,
		New:     fromFlags,
	})
}

// source is the packet probe configured for one capture.
type source struct {
	options
	any     bool // asked for by no name
	chosen  []android.Interface
	filters filters
	left    []string // why an interface of "any" was left out
	decoder decoder
	hooked  []hooked // in the order of the attach
}

// hooked is a program at its place.
type hooked struct {
	hook.Attachment
	ifc  android.Interface
	dir  hook.Direction
	prog *ebpf.Program
}

func fromFlags(c *cli.Context) (plugin.Source, error) {
	o, err := parse(c)
	if err != nil {
		return nil, err
	}
	all, err := android.Interfaces(os.DirFS("/sys"))
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	s := &source{options: o}
	if s.chosen, s.any, err = choose(o.names, all); err != nil {
		return nil, err
	}
	if err := sameNamespace(s.chosen); err != nil {
		return nil, err
	}
	compiled, err := compileFor(c.Context, o.expr, s.chosen)
	if err != nil {
		return nil, err
	}
	s.filters = compiled.filters
	if s.chosen, s.left, err = compiled.usable(s.chosen, s.any); err != nil {
		return nil, err
	}
	return s, nil
}

// Label names the capture for file names: "any", "wlan0", "wlan0+rmnet_data0".
func (s *source) Label() string {
	if s.any {
		return "any"
	}
	return joinNames(s.chosen, "+")
}

// linkTypes says how packets of a framing are written. Their program handles
// only those, so there is no other.
var linkTypes = map[android.Framing]pcapng.LinkType{
	android.L2: pcapng.Ethernet,
	android.L3: pcapng.Raw,
}

// programs names the program of bpf/src/packet.bpf.c for a framing and direction.
var programs = map[android.Framing]map[hook.Direction]string{
	android.L2: {hook.Ingress: "l2_ingress", hook.Egress: "l2_egress"},
	android.L3: {hook.Ingress: "l3_ingress", hook.Egress: "l3_egress"},
}

// Prepare leaves only the programs that will be attached, with settings, filter
// and maps for these interfaces and uids.
func (s *source) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	if err := s.prepare(&s.filters, spec, t); err != nil {
		return err
	}
	s.decoder = newDecoder(t.Plan.Clock, s.snaplen, s.chosen)
	s.decoder.judge.Store(&judge{now: s.filters})
	return s.fillMaps(spec, uint32(t.Wakeup), s.filters.exact())
}

// prepare injects filters into the programs that are needed.
func (s *source) prepare(f *filters, spec *ebpf.CollectionSpec, t plugin.Target) error {
	form, err := f.smaller(s.forms, t.Attempt)
	if err != nil {
		return err
	}
	needs := map[wire][]hook.Direction{}
	for _, ifc := range s.chosen {
		w := f.wires[ifc.Index]
		for _, dir := range s.hooks(ifc) {
			if !slices.Contains(needs[w], dir) {
				needs[w] = append(needs[w], dir)
			}
		}
	}
	return f.inject(spec, needs, form)
}

// sayForm tells how the filter runs.
func (s *source) sayForm(f *filters, log *slog.Logger) {
	for _, w := range f.ordered() {
		if of := f.of[w]; !of.Trivial() {
			log.Info(fmt.Sprintf("filter for %v in %s", w.framing, of.Describe(f.form)))
		}
	}
	if f.form == filter.Agent && len(s.forms) > 1 {
		log.Warn("the kernel takes no program for this expression: the agent filters behind it, which costs much more; a shorter expression avoids that")
	}
}

// hooks returns the directions of an interface that need a program. An owner
// filter needs the way out even where only the way in is recorded: flows are
// learnt there. The loopback interface shows each packet twice; the way in is
// the one that is recorded.
func (s *source) hooks(ifc android.Interface) []hook.Direction {
	owner := len(s.uids) > 0
	var dirs []hook.Direction
	if s.directions&recordIngress != 0 {
		dirs = append(dirs, hook.Ingress)
	}
	out := s.directions&recordEgress != 0
	if ifc.Loopback && s.directions&recordIngress != 0 {
		out = false
	}
	if out || owner {
		dirs = append(dirs, hook.Egress)
	}
	return dirs
}

// Attach describes the interfaces to the writer and attaches to each. An
// interface of "any" that has gone since it was listed is left out.
func (s *source) Attach(coll *ebpf.Collection, t plugin.Target) (io.Closer, error) {
	for _, why := range s.left {
		t.Log.Warn(why + ": it is left out")
	}
	swept, err := hook.Sweep()
	for _, line := range swept {
		t.Log.Warn("left by a killed run: " + line)
	}
	if err != nil {
		t.Log.Warn("look for leftovers of killed runs: " + err.Error())
	}

	a := attachment{names: map[int]string{}}
	// Before the first attach, so that no interface can go unnoticed.
	if err := a.watch(t); err != nil {
		return nil, err
	}
	for _, ifc := range s.chosen {
		t.Emit(s.describe(ifc))
		switch err := s.attach(&a, coll, t, ifc); {
		case err == nil:
			a.add(ifc)
		case s.any && !errors.Is(err, os.ErrPermission):
			t.Log.Warn(ifc.Name + " is left out: " + err.Error())
		default:
			return nil, errors.Join(err, a.Close())
		}
	}
	if len(a.closers) == 0 {
		return nil, errors.Join(errors.New("nothing to capture on: no interface could be attached to"), a.Close())
	}
	a.settle(t)
	s.sayForm(&s.filters, t.Log)
	return &a, nil
}

func (s *source) attach(a *attachment, coll *ebpf.Collection, t plugin.Target, ifc android.Interface) error {
	before := len(a.closers)
	for _, dir := range s.hooks(ifc) {
		prog := coll.Programs[s.filters.program(s.filters.wires[ifc.Index], dir)]
		h, err := hook.Attach(t.Plan.Hook, ifc, dir, prog)
		if err != nil {
			s.hooked = s.hooked[:before]
			return errors.Join(err, a.closeFrom(before))
		}
		a.closers = append(a.closers, h)
		s.hooked = append(s.hooked, hooked{h, ifc, dir, prog})
		if w := h.Warning(); w != "" {
			t.Log.Warn(w)
		}
		t.Log.Debug("attached", "interface", ifc.Name, "direction", dir, "hook", t.Plan.Hook)
	}
	if !ifc.Up {
		t.Log.Warn(ifc.Name + " is down: packets will come when it is up")
	}
	return nil
}

func (s *source) describe(ifc android.Interface) *pcapng.Interface {
	return &pcapng.Interface{
		Index:    ifc.Index,
		Name:     ifc.Name,
		LinkType: linkTypes[ifc.Framing()],
		Snaplen:  s.snaplen,
		Filter:   s.expr,
	}
}

// Decode makes a packet of a record, or nil where the filter leaves it out behind the kernel.
func (s *source) Decode(raw []byte) (pcapng.Block, error) {
	p, err := s.decoder.decode(raw)
	if err != nil || p == nil {
		return nil, err
	}
	return p, nil
}
