// SPDX-License-Identifier: Apache-2.0

// Command phone is what the emulated phone runs besides Debian's programs: the
// traffic of the tests, the peer that answers it, the mobile-data link and su.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"droidtap/scripts/workload"
)

const usage = `usage:
  phone serve [-tls PORTS] [-http PORTS] [-tcp PORTS] [-udp PORTS]   answer on every address
  phone fetch [-n N] [-size BYTES] URL      GET, each time on a connection of its own
  phone udp [-n N] HOST:PORT                send datagrams, wait for each echo
  phone stream [-n N] [-first N] [-size BYTES] [-every D] [-marks DEVICE] HOST:PORT   numbered datagrams
  phone wait HOST:PORT...                   until all accept TCP
  phone pipe TUN1 NETNS TUN2                two tun devices, end to end
  phone flaps [-agent PATH] [-n N] [-returns N] [-hooks HOOKS]       how soon an agent is back where it was taken off
  phone bench [-agent PATH]                 what captures cost and lose, as JSON
  phone workload run [-lab] ...             packets whose owners are known
  phone netd COMMAND                        a stand-in for Android's netd; without COMMAND: which there are
  phone reboot                              kill all, unmount /data, restart
  su [USER] [-c COMMAND...]                 when called su
  netd COMMAND                              when called netd
`

var commands = map[string]func(args []string) error{
	"serve":    serve,
	"fetch":    fetch,
	"udp":      udp,
	"wait":     wait,
	"pipe":     pipe,
	"flaps":    flaps,
	"stream":   stream,
	"bench":    benchCommand,
	"reboot":   reboot,
	"netd":     netdCommand,
	"workload": func(args []string) error { return workload.Main([]string{"/lab/phone", "workload"}, args) },
}

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	run := su
	if name != "su" {
		if name != "netd" && len(args) > 0 {
			name, args = args[0], args[1:]
		}
		run = commands[name]
	}
	if run == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := run(args); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", name, strings.TrimSpace(err.Error()))
		os.Exit(1)
	}
}
