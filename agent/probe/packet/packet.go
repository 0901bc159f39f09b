// SPDX-License-Identifier: Apache-2.0

// Package packet is the probe that captures packets: classifiers on chosen
// interfaces, a pcap-filter expression in them, and the records they send.
package packet

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/cilium/ebpf"
	"github.com/urfave/cli/v2"

	"droidtap/agent/filter"
	"droidtap/agent/hook"
	"droidtap/agent/pcapng"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
)

func init() {
	plugin.RegisterProbe(plugin.Probe{
		Name:     "packet",
		Usage:    "packets of network interfaces",
		Flags:    flags(),
		Instead:  instead,
		Commands: []*cli.Command{listCommand()},
		New:      fromFlags,
	})
}

// source is the packet probe configured for one capture.
type source struct {
	options
	any         bool // asked for by no name
	chosen      []android.Interface
	left        []string // why an interface of "any" was left out
	classifiers lane
	sockets     lane
	open        []*ring  // the sockets of that lane
	hooked      []hooked // in the order of the attach
}

// lane is the way of packets through programs of one kind: what they filter, and what becomes of their records.
type lane struct {
	filters filters
	decoder decoder
}

// hooked is a program at its place.
type hooked struct {
	hook.Attachment
	ifc  android.Interface
	at   point
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
	if err := android.CheckNamespace(s.chosen); err != nil {
		return nil, plugin.Usagef("%w", err)
	}
	compiled, err := compileFor(c.Context, o.expr, s.chosen)
	if err != nil {
		return nil, err
	}
	s.classifiers.filters, s.sockets.filters = compiled.filters, compiled.filters
	if s.chosen, s.left, err = compiled.usable(s.chosen, s.any); err != nil {
		return nil, err
	}
	return s, nil
}

// lanes returns those that are in use.
func (s *source) lanes() []*lane {
	var used []*lane
	for _, l := range []*lane{&s.classifiers, &s.sockets} {
		if l.decoder.judge != nil {
			used = append(used, l)
		}
	}
	return used
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

// Prepare leaves only the programs that will be attached, with settings, filter
// and maps for these interfaces and uids.
func (s *source) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	if t.Plan.Hooks[0] == plan.Packet {
		return s.prepareSockets(spec, t)
	}
	n := needs{}
	for _, ifc := range s.chosen {
		n.add(s.classifiers.filters.wires[ifc.Index], s.points(ifc)...)
	}
	if err := s.prepare(&s.classifiers, n, spec, t, s.snaplen); err != nil {
		return err
	}
	s.classifiers.decoder = newDecoder(newClock(t.Plan.Clock), s.snaplen, s.chosen, s.classifiers.filters)
	return nil
}

// prepare injects the filters of a lane into the programs that are needed, which are to record snaplen bytes.
func (s *source) prepare(l *lane, n needs, spec *ebpf.CollectionSpec, t plugin.Target, snaplen uint32) error {
	form, err := l.filters.smaller(s.forms, t.Attempt)
	if err != nil {
		return err
	}
	if err := l.filters.inject(spec, n, form); err != nil {
		return err
	}
	if !l.filters.exact() {
		snaplen = maxSnaplen // the filter behind the kernel may look anywhere
	}
	return s.fillMaps(spec, uint32(t.Wakeup), snaplen)
}

// sayForm tells how the filter runs at a point.
func (s *source) sayForm(f *filters, at point, log *slog.Logger) {
	for _, w := range f.ordered() {
		if of := f.of[w]; !of.Trivial() {
			log.Info(fmt.Sprintf("filter for %v in %s", w.framing, of.Describe(f.at(at))))
		}
	}
	if f.form == filter.Agent && len(s.forms) > 1 {
		log.Warn("the kernel takes no program for this expression: the agent filters behind it, which costs much more; a shorter expression avoids that")
	}
}

// points returns where an interface needs a classifier. An owner
// filter needs the way out even where only the way in is recorded: flows are
// learnt there. The loopback interface shows each packet twice; the way in is
// the one that is recorded.
func (s *source) points(ifc android.Interface) []point {
	owner := len(s.uids) > 0
	var points []point
	if s.directions&recordIngress != 0 {
		points = append(points, ingress)
	}
	out := s.directions&recordEgress != 0
	if ifc.Loopback && s.directions&recordIngress != 0 {
		out = false
	}
	if out || owner {
		points = append(points, egress)
	}
	return points
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
	return s.classifiers.decoder.block(raw)
}
