// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// String describes a filter of anybody.
func (e entry) String() string {
	s := fmt.Sprintf("%s pref %d protocol %s handle %#x", e.kind, e.pref, protocol(e.proto), e.handle)
	for _, a := range e.actions {
		s += " action " + a
	}
	if e.name != "" {
		s += " " + e.name
	}
	if e.direct {
		s += " direct-action"
	}
	for _, id := range e.programs {
		s += " " + describe(id)
	}
	return s
}

// protocol names the protocols that filters are for, as tc does.
func protocol(p uint16) string {
	switch p {
	case unix.ETH_P_ALL:
		return "all"
	case unix.ETH_P_IP:
		return "ip"
	case unix.ETH_P_IPV6:
		return "ipv6"
	}
	return fmt.Sprintf("%#04x", p)
}

// find returns the filter as the kernel has it, nil where it is gone.
func (n *Netd) find(f *filter) (*entry, error) {
	fs, err := n.conn.filters(f.ifindex, f.parent)
	for _, e := range fs {
		if e.pref == f.pref && e.proto == f.proto && e.handle == f.handle && e.kind == f.kind && slices.Equal(e.programs, []ebpf.ProgramID{f.id}) {
			return &e, nil
		}
	}
	return nil, err
}

// Check asks the kernel for everything that is ours, and returns what is gone or changed, by program id: a qdisc of
// another kind, a filter elsewhere or with another program, a cgroup with other programs or flags. An interface that is
// gone without Leave counts.
func (n *Netd) Check() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, p := range n.programs {
		errs = append(errs, p.check(n.cgroup))
	}
	for _, q := range n.qdiscs {
		there, err := n.conn.hasClsact(q.ifindex)
		if err == nil && !there {
			err = errors.New("it is gone")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("clsact of %s: %w", q.ifname, err))
		}
	}
	for _, f := range n.filters {
		errs = append(errs, n.checkFilter(f))
	}
	return errors.Join(errs...)
}

func (n *Netd) checkFilter(f *filter) error {
	e, err := n.find(f)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", f, err)
	case e == nil:
		return n.gone(f)
	case f.kind == "bpf" && !e.direct:
		return fmt.Errorf("%s: it is not direct action any more", f)
	case f.kind == "matchall" && !slices.Equal(e.actions, []string{"bpf", "police"}):
		return fmt.Errorf("%s: its actions are %v", f, e.actions)
	}
	return nil
}

// gone says what is in the place of a filter.
func (n *Netd) gone(f *filter) error {
	err := fmt.Errorf("%s: the filter at preference %d with program %d is gone", f, f.pref, f.id)
	fs, list := n.conn.filters(f.ifindex, f.parent)
	for _, e := range fs {
		if e.pref == f.pref {
			err = fmt.Errorf("%w; there: %s", err, e)
		}
	}
	return errors.Join(err, list)
}

// counters are all of our programs by name.
func (n *Netd) counters() map[string]*program {
	all := map[string]*program{}
	for _, p := range n.programs {
		all[p.name] = p.program
	}
	for _, f := range n.filters {
		all[f.String()] = f.program
	}
	return all
}

// Seen returns what each program has counted, by name: "wlan0 ingress tether6", "cgroup inet_egress".
func (n *Netd) Seen() (map[string]Count, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := map[string]Count{}
	for name, p := range n.counters() {
		c, err := p.count()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		seen[name] = c
	}
	return seen, nil
}

// contains says whether the words of part follow each other in a name: "rmnet0 egress" is no part of "v4-rmnet0 egress".
func contains(name, part string) bool {
	return part == "" || strings.Contains(" "+name+" ", " "+part+" ")
}

// Mark remembers the counts for Grown.
func (n *Netd) Mark() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, p := range n.counters() {
		var err error
		if p.mark, err = p.count(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// Grown returns an error for each program that has counted no packet since Mark. With names it looks only at programs
// whose name contains the words of one of them, and each has to name a program.
func (n *Netd) Grown(names ...string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(names) == 0 {
		names = []string{""} // all
	}
	var errs []error
	all := n.counters()
	for _, want := range names {
		found := false
		for name, p := range all {
			if !contains(name, want) {
				continue
			}
			found = true
			c, err := p.count()
			if err == nil && c.Packets <= p.mark.Packets {
				err = errors.New("it sees no traffic")
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
		if !found {
			errs = append(errs, fmt.Errorf("no program of ours is called %q", want))
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// CheckTraffic sends, and returns what Grown says of it. send returns when what it sent has come through.
func (n *Netd) CheckTraffic(send func() error, names ...string) error {
	if err := n.Mark(); err != nil {
		return err
	}
	if err := send(); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return n.Grown(names...)
}
