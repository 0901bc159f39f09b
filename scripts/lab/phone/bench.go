// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"flag"
	"os"

	"droidtap/scripts/lab/bench"
)

// benchCommand prints what captures cost and lose, as JSON.
func benchCommand(args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	binary := flags.String("agent", "/data/local/tmp/agent", "the agent")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := bench.Run(*binary)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
