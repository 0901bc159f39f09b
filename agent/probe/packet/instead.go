// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/urfave/cli/v2"

	"droidtap/agent/filter"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
	"droidtap/bpf"
)

// instead serves -D and -d, which need no root.
func instead(c *cli.Context) (bool, error) {
	switch {
	case c.Bool("list-interfaces"):
		all, err := android.Interfaces(os.DirFS("/sys"))
		if err != nil {
			return true, fmt.Errorf("list network interfaces: %w", err)
		}
		return true, list(c.App.Writer, all)
	case c.Bool("dump-filter"):
		s, err := newSource(c)
		if err != nil {
			return true, err
		}
		return true, dump(c.App.Writer, c.App.ErrWriter, s, c.Count("dump-filter"))
	}
	return false, nil
}

// anyText is how tcpdump -D describes "any".
const anyText = "(Pseudo-device that captures on all interfaces) [Up, Running]"

// listed returns the names of -D's list in its order, which -i's numbers count.
// "any" stands where tcpdump has it, behind what is up and no loopback.
func listed(all []android.Interface) []string {
	at := slices.IndexFunc(all, func(ifc android.Interface) bool { return ifc.Loopback || !ifc.Up || !ifc.Running })
	if at < 0 {
		at = len(all)
	}
	var names []string
	for _, ifc := range all {
		names = append(names, ifc.Name)
	}
	return slices.Insert(names, at, "any")
}

// list prints interfaces as tcpdump -D does; Wireshark's androiddump reads it.
func list(w io.Writer, all []android.Interface) error {
	for n, name := range listed(all) {
		text := anyText
		for _, ifc := range all {
			if ifc.Name == name {
				text = ifc.Describe()
			}
		}
		if _, err := fmt.Fprintf(w, "%d.%s %s\n", n+1, name, text); err != nil {
			return err
		}
	}
	return nil
}

// formHere returns the form that this kernel takes, by trying, and what is to be said where that cannot be tried.
func (s *source) formHere() (form filter.Form, unknown string) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return s.forms[0], "; what this kernel takes is not known without root"
	}
	t := plugin.Target{Log: slog.New(slog.DiscardHandler), Plan: plan.Plan{Hooks: []plan.Hook{plan.TC}}}
	for t.Attempt = range s.forms {
		spec, err := bpf.Open("packet", string(plan.Legacy))
		if err == nil {
			err = s.Prepare(spec, t)
		}
		if err != nil {
			break
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogDisabled: true}})
		if err == nil {
			coll.Close()
			return s.classifiers.filters.of[s.classifiers.filters.ordered()[0]].form, ""
		}
	}
	return s.forms[0], "; this kernel takes none of the programs"
}

// dump prints the filter, as tcpdump does for people (how is 1), as C (2) or as numbers (3), or the eBPF that it
// becomes for packets that come in (4): that for an Ethernet header where one of the interfaces has it. To stderr it
// says in which form the filter runs.
func dump(stdout, stderr io.Writer, s *source, how int) error {
	f := s.classifiers.filters.of[s.classifiers.filters.ordered()[0]] // Ethernet is the first framing
	if how == 2 || how == 3 {
		_, err := io.WriteString(stdout, f.Dump(how))
		return err
	}
	form, unknown := s.formHere()
	fmt.Fprintln(stderr, f.Describe(form)+unknown)
	text := f.Dump(how)
	if how > 3 {
		var err error
		if text, err = f.DumpEBPF(filter.How{Form: form}); err != nil {
			return err
		}
	}
	_, err := io.WriteString(stdout, text)
	return err
}
