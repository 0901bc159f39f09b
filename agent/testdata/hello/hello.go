// SPDX-License-Identifier: Apache-2.0

// Package hello is a probe that greets.
package hello

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

func init() {
	plugin.RegisterProbe(plugin.Probe{
		Name:    "hello",
		Usage:   "greetings",
		Flags:   []cli.Flag{&cli.StringFlag{Name: "hello", Category: "Greetings", Usage: "greet `WHOM`"}},
		Instead: greet,
		New:     func(*cli.Context) (plugin.Source, error) { return nil, nil },
	})
}

func greet(c *cli.Context) (bool, error) {
	if !c.IsSet("hello") {
		return false, nil
	}
	_, err := fmt.Fprintln(c.App.Writer, "hello", c.String("hello"))
	return true, err
}
