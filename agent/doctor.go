// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/doctor"
	"droidtap/agent/kernel"
	"droidtap/agent/plugin"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "say what a capture would do here and why, and what keeps it from it; attaches nothing",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "say it as JSON"},
			&cli.StringFlag{Name: "btf", Value: "auto", Usage: "take the kernel's types from `auto|none|FILE|DIR`"},
		},
		Action: diagnose,
	}
}

func diagnose(c *cli.Context) error {
	if c.Args().Present() {
		return plugin.Usagef("doctor takes no argument, and %q is one", c.Args().First())
	}
	o := doctor.Options{BTF: c.String("btf")}
	o.Agent, _, _ = strings.Cut(versionText(), "\n")
	for _, p := range plugin.Probes() {
		o.Probes = append(o.Probes, p.Name)
	}
	r, err := doctor.Examine(o)
	if errors.Is(err, kernel.ErrChoice) {
		return plugin.Usagef("--btf %s: %w", o.BTF, err)
	}
	if err != nil {
		return err
	}
	if c.Bool("json") {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		err = e.Encode(r)
	} else {
		err = r.Text(c.App.Writer)
	}
	if err != nil {
		return err
	}
	return reported(r.Err())
}
