// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/cilium/ebpf/rlimit"
	"github.com/urfave/cli/v2"

	"droidtap/agent/hook"
	"droidtap/agent/kernel"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
)

func listCommand() *cli.Command {
	return &cli.Command{
		Name:  "list",
		Usage: "list the interfaces as -D does, with their types, addresses, default routes and the hook that a capture would use",
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return plugin.Usagef("list takes no argument, and %q is one", c.Args().First())
			}
			all, err := android.Interfaces(os.DirFS("/sys"))
			if err != nil {
				return fmt.Errorf("list network interfaces: %w", err)
			}
			if !android.SameNamespace(all) {
				return plugin.Usagef("%w", android.ErrOtherNamespace)
			}
			rows, err := describeAll(all)
			if err != nil {
				return err
			}
			return table(c.App.Writer, all, rows)
		},
	}
}

// row is what list tells of an interface.
type row struct{ name, kind, state, addresses, route, hook string }

// describeAll asks for the rows of interfaces. Without root the kernel does not tell of hooks.
func describeAll(all []android.Interface) ([]row, error) {
	addresses, err := android.Addresses()
	if err != nil {
		return nil, err
	}
	routes, err := android.DefaultRoutes()
	if err != nil {
		return nil, err
	}
	u, err := kernel.ReadUname()
	if err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		if err := rlimit.RemoveMemlock(); err != nil {
			return nil, fmt.Errorf("raise the memory lock limit: %w", err)
		}
	}
	k, _ := kernel.AskAll(u.Release)
	p, impossible := plan.Make(k, plan.Wish{})
	var rows []row
	for _, ifc := range all {
		r := row{
			name:  ifc.Name,
			kind:  ifc.LinkLayer(),
			state: strings.Trim(ifc.Describe(), "[]"),
			route: strings.Join(routes[ifc.Index], ", "),
			hook:  "unknown without root",
		}
		r.addresses = strings.Trim(fmt.Sprint(addresses[ifc.Index]), "[]")
		switch seen, err := hook.Look(ifc); {
		case ifc.Framing() == android.Unsupported:
			r.hook = "none: cannot be captured on"
		case os.Geteuid() == 0 && (impossible != nil || err != nil):
			r.hook = "none: " + strings.ReplaceAll(fmt.Sprint(cmp.Or(impossible, err)), "\n", "; ")
		case os.Geteuid() == 0:
			r.hook = cmp.Or(seen.Choose(p.Hooks).Chosen, "none: see agent doctor")
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// table prints rows in the order and with the numbers of -D.
func table(w io.Writer, all []android.Interface, rows []row) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tNAME\tTYPE\tSTATE\tADDRESSES\tDEFAULT ROUTE\tHOOK")
	for n, name := range listed(all) {
		r := row{name: name, kind: "all that are up"}
		for _, of := range rows {
			if of.name == name {
				r = of
			}
		}
		for _, empty := range []*string{&r.state, &r.addresses, &r.route, &r.hook} {
			*empty = cmp.Or(*empty, "-")
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", n+1, r.name, r.kind, r.state, r.addresses, r.route, r.hook)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	return nil
}
