// SPDX-License-Identifier: Apache-2.0

// Package packet is the probe that captures packets: classifiers on chosen
// interfaces as they come and go, a pcap-filter expression in them, and the records they send.
package packet

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/urfave/cli/v2"

	"droidtap/agent/apps"
	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

func init() {
	plugin.RegisterProbe(plugin.Probe{
		Name:     "packet",
		Usage:    "packets of network interfaces",
		Flags:    flags(),
		Instead:  instead,
		Commands: []*cli.Command{listCommand(), apps.Command()},
		New:      fromFlags,
	})
}

// source is the packet probe configured for one capture.
type source struct {
	options
	selection selection
	chosen    []android.Interface // of the selection, at the start
	places    *places             // held for them; nil: none are

	mu          sync.Mutex // of what follows, once it is attached
	classifiers lane
	sockets     lane
	ports       ports
	taps        []*tap                   // in the order in which they were attached
	programs    map[string]*ebpf.Program // by name, loaded and not closed
	owners      *owners                  // nil: nobody is told whose packets are
	settler     *settler                 // of the classifiers' ring
	lookup      atomic.Bool              // the programs look up the sockets of what comes in
	counters    *counters                // of the programs
	changes     int                      // of taps
}

// lane is the way of packets through programs of one kind: what they filter, and what becomes of their records.
type lane struct {
	filters filters
	decoder decoder
}

// change gives readers other filters with the same expression.
func (l *lane) change(to filters) {
	l.filters = to
	j := *l.decoder.judge.Load()
	j.now = to
	l.decoder.judge.Store(&j)
}

// edit gives the readers of both lanes other filters.
func (s *source) edit(change func(*filters)) {
	for _, l := range s.lanes() {
		f := l.filters.clone()
		change(&f)
		l.change(f)
	}
}

// telling is a source whose packets have owners.
type telling struct{ *source }

// WantsTypes is true: with offsets in the kernel's structs the programs know the owners of what comes in at once.
func (t telling) WantsTypes() bool { return true }

// Known names the owners of packets as far as nobody has to be asked.
func (t telling) Known(blocks []pcapng.Block) (done int) { return t.settler.Known(blocks) }

// Settle finds and names the owners of packets.
func (t telling) Settle(blocks []pcapng.Block, last bool) (done int) {
	return t.settler.Settle(blocks, last)
}

// End ends what Settle needed.
func (t telling) End() error {
	if t.owners == nil { // it was never attached
		return nil
	}
	return t.owners.Close()
}

func fromFlags(c *cli.Context) (plugin.Source, error) {
	s, err := newSource(c)
	switch {
	case err != nil:
		return nil, err
	case s.told():
		return telling{s}, nil
	}
	return s, nil
}

func newSource(c *cli.Context) (*source, error) {
	o, err := parse(c)
	if err != nil {
		return nil, err
	}
	all, err := android.Interfaces(os.DirFS("/sys"))
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	s := &source{options: o}
	if s.selection, err = choose(o.names, all); err != nil {
		return nil, err
	}
	if err := android.CheckNamespace(all); err != nil {
		return nil, plugin.Usagef("%w", err)
	}
	uplinks, err := s.uplinks()
	if err != nil {
		return nil, err
	}
	s.chosen = s.selection.of(all, uplinks)
	if s.selection.any && len(s.chosen) == 0 {
		return nil, plugin.Usagef("no interface is up: bring one up, or name one with -i")
	}
	compiled, err := compileFor(c.Context, o.expr, s.chosen)
	if err != nil {
		return nil, err
	}
	s.classifiers.filters, s.sockets.filters = compiled.filters, compiled.filters.clone()
	if s.chosen, _, err = compiled.usable(s.chosen, s.selection.waits()); err != nil { // Attach says of the others why
		return nil, err
	}
	return s, nil
}

// uplinks returns the indexes of the interfaces that lead to the internet, if that was asked for: for the first of the
// apps that are captured, since a VPN may be there for some.
func (s *source) uplinks() ([]int, error) {
	if !s.selection.internet {
		return nil, nil
	}
	return rtnl.Internet(s.routed())
}

// routed returns the uid whose way to the internet counts: the first one of those that are wanted.
func (s *source) routed() uint32 {
	if len(s.whose.UIDs) > 0 {
		return s.whose.UIDs[0]
	}
	if len(s.whose.Apps) == 0 {
		return shellUID
	}
	var rules apps.Rules
	if s.owners != nil {
		rules = s.owners.view.Load().Rules
	} else if b, err := apps.Open(s.packages, slog.New(slog.DiscardHandler)); err == nil { // Attach says what is wrong
		rules, _ = b.Rules(s.whose)
		_ = b.Close()
	}
	if uid, ok := first(rules); ok {
		return uid
	}
	return shellUID
}

// shellUID is an owner like any app to Android's routes: AID_SHELL of android_filesystem_config.h.
const shellUID = 2000

// lanes returns both.
func (s *source) lanes() []*lane { return []*lane{&s.classifiers, &s.sockets} }

// Label names the capture for file names.
func (s *source) Label() string { return s.selection.label() }

// Mixed tells whether packets may come to begin with an Ethernet header and without one.
func (s *source) Mixed() bool {
	return s.selection.waits() || slices.ContainsFunc(s.chosen, func(ifc android.Interface) bool { return ifc.Framing() != s.chosen[0].Framing() })
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
	s.classifiers.decoder = newDecoder(newClock(t.Plan.Clock), s.snaplen, &s.ports, s.classifiers.filters)
	s.sockets.decoder = newDecoder(wallClock(), s.snaplen, &s.ports, s.sockets.filters)
	f, n := &s.classifiers.filters, needs{}
	if t.Plan.Hooks[0] == plan.Packet {
		f = &s.sockets.filters
	} else {
		for _, ifc := range s.chosen {
			n.add(f.wires[ifc.Index], s.points(ifc)...)
		}
	}
	if len(n) == 0 {
		return s.prepareAny(f, spec, t)
	}
	return s.prepare(f, n, spec, t)
}

// prepareAny prepares programs for interfaces that are not there yet: the kernel's answer is wanted now, and the maps.
func (s *source) prepareAny(f *filters, spec *ebpf.CollectionSpec, t plugin.Target) error {
	points := s.points(anyEthernet)
	if t.Plan.Hooks[0] == plan.Packet {
		points = []point{socket}
	}
	n := needs{}
	for w := range f.of {
		n.add(w, points...)
	}
	return s.prepare(f, n, spec, t)
}

// prepare injects filters into the programs that are needed.
func (s *source) prepare(f *filters, n needs, spec *ebpf.CollectionSpec, t plugin.Target) error {
	form, err := f.smaller(n, s.forms, t.Attempt)
	if err != nil {
		return err
	}
	exact, err := f.inject(spec, n, form)
	if err != nil {
		return err
	}
	snaplen := s.recorded()
	if !exact {
		snaplen = maxSnaplen // the filter behind the kernel may look anywhere
	}
	return s.fillMaps(spec, t, snaplen)
}

// ownerHead is how many bytes of a packet hold what names its flow, but for unusual headers. Most records of fewer take as much of
// the ring.
const ownerHead = 128

// recorded returns how many bytes of a packet come from the kernel.
func (s *source) recorded() uint32 {
	if s.told() {
		return max(s.snaplen, ownerHead)
	}
	return s.snaplen
}

// sayForm tells how a lane's filters run at a point.
func (s *source) sayForm(f filters, at point, log *slog.Logger) {
	behind := false
	for _, w := range f.ordered() {
		if of := f.of[w]; !of.Trivial() {
			log.Info(fmt.Sprintf("filter for %v in %s", w.framing, of.Describe(of.at(at))))
			behind = behind || of.form == filter.Agent
		}
	}
	if behind && len(s.forms) > 1 {
		log.Warn("the kernel takes no program for this expression: the agent filters behind it, which costs much more; a shorter expression avoids that")
	}
}

// points returns where an interface needs a classifier. Owners
// need the way out even where only the way in is recorded: flows are
// learnt there. The loopback interface shows each packet twice; the way in is
// the one that is recorded.
func (s *source) points(ifc android.Interface) []point {
	var points []point
	if s.directions&recordIngress != 0 {
		points = append(points, ingress)
	}
	out := s.directions&recordEgress != 0
	if ifc.Loopback && s.directions&recordIngress != 0 {
		out = false
	}
	if out || s.told() {
		points = append(points, egress)
	}
	return points
}

// Look has the records that were found get their times by the clocks as they are now.
func (s *source) Look() { s.classifiers.decoder.clock.look() }

// Decode makes a packet of a record, or nil where the filter leaves it out behind the kernel.
func (s *source) Decode(raw []byte, p *pcapng.Packet) (pcapng.Block, error) {
	return s.classifiers.decoder.block(raw, p)
}
