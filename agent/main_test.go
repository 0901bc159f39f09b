// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"runtime"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/urfave/cli/v2"
)

// runAs is main with another action.
func runAs(action cli.ActionFunc) {
	app := newApp(os.Stdout, os.Stderr)
	app.Action = action
	os.Exit(report(os.Stderr, perform(app, os.Args)))
}

// A process's first thread does not end with a goroutine that was locked to it, but stays where that left it, in a namespace
// for instance, where the tests look for processes that are left: it is the main goroutine's.
func init() { runtime.LockOSThread() }

// TestMain puts an "agent" in front of PATH that is this test's own binary: what runs is the code under test.
// "agent-replace" is an agent that also reads expressions from standard input (replace_test.go), "agent-old" one on a
// kernel without TCX (fallback_test.go), "agent-flaps" one that says what it holds (flaps_test.go). "workload" makes packets whose owners are known (truth_test.go).
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"agent": main, "agent-replace": replaceMain, "agent-old": oldMain, "agent-flaps": flapsMain,
		"workload": workloadMain})
}
