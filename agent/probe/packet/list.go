// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"errors"
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
			surveyed, err := survey()
			if err != nil {
				return err
			}
			return table(c.App.Writer, surveyed)
		},
	}
}

// survey looks at the interfaces with the plan that a capture would make.
func survey() ([]hook.Surveyed, error) {
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
	all, err := hook.Survey(os.DirFS("/sys"), p.Hooks)
	if errors.Is(err, android.ErrOtherNamespace) {
		return nil, plugin.Usagef("%w", err)
	}
	for i := range all {
		all[i].Err = cmp.Or(all[i].Err, impossible)
	}
	return all, err
}

// hookOf says by what an interface would be captured. Without root the kernel does not tell.
func hookOf(s hook.Surveyed) string {
	switch {
	case errors.Is(s.Err, hook.ErrUnsupported):
		return "none: cannot be captured on"
	case os.Geteuid() != 0:
		return "unknown without root"
	case s.Err != nil:
		return "none: " + strings.ReplaceAll(s.Err.Error(), "\n", "; ")
	}
	return cmp.Or(s.Choice.Chosen, "none: see agent doctor")
}

// table prints interfaces in the order and with the numbers of -D.
func table(w io.Writer, surveyed []hook.Surveyed) error {
	var all []android.Interface
	rows := map[string][]string{"any": {"all that are up", "", "", "", ""}}
	for _, s := range surveyed {
		all = append(all, s.Interface)
		rows[s.Name] = []string{s.LinkLayer(), strings.Trim(s.Describe(), "[]"), strings.Trim(fmt.Sprint(s.Addresses), "[]"),
			strings.Join(s.DefaultRoute, ", "), hookOf(s)}
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tNAME\tTYPE\tSTATE\tADDRESSES\tDEFAULT ROUTE\tHOOK")
	for n, name := range listed(all) {
		fmt.Fprintf(t, "%d\t%s", n+1, name)
		for _, cell := range rows[name] {
			fmt.Fprintf(t, "\t%s", cmp.Or(cell, "-"))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	return nil
}
