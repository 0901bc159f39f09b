// SPDX-License-Identifier: Apache-2.0

// Package tlskey is the probe for the secrets of TLS.
package tlskey

import (
	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

// In place of the probe itself until that is there: only its options and its word.
func init() {
	plugin.RegisterProbe(plugin.Probe{
		Name:  "tlskey",
		Usage: "secrets of TLS",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: optionTLS, Category: "TLS", Usage: "capture secrets"},
			&cli.StringFlag{Name: optionKeyLog, Category: "TLS", Usage: "write them to `FILE`, too"},
			&cli.StringSliceFlag{Name: optionLibrary, Category: "TLS", Usage: "of the library `PATH`"},
		},
		Word: word(),
		New:  func(*cli.Context) (plugin.Source, error) { return nil, nil },
	})
}
