// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

func TestNormalise(t *testing.T) {
	flags := newApp(io.Discard, io.Discard).Flags
	for _, tc := range []struct {
		rule  string
		typed string // words, split at |
		want  string
		err   string
	}{
		{"nothing", "", "", ""},
		{"a value in the option's word", "-s0|-iwlan0|-c10|-w-", "-s|0|-i|wlan0|-c|10|-w|-", ""},
		{"a value in the next word", "-i|wlan0|-w|-", "-i|wlan0|-w|-", ""},
		{"a value that looks like an option", "-c|-1", "-c|-1", ""},
		{"a cluster", "-Uvvi|any", "-U|-v|-v|-i|any", ""},
		{"a cluster that ends with a value", "-Us96", "-U|-s|96", ""},
		{"long options", "--count|3|--interface=wlan0|--version", "--count|3|--interface=wlan0|--version", ""},
		{"the expression stands behind --", "-i|lo|port|443", "-i|lo|--|port|443", ""},
		{"an expression in one word", "tcp port 443 and len - 4 > 0", "--|tcp port 443 and len - 4 > 0", ""},
		{"a minus in the expression", "len|-|4|>|0", "--|len|-|4|>|0", ""},
		{"a negative number in the expression", "ip[0]|=|-4", "--|ip[0]|=|-4", ""},
		{"-- ends the options", "-i|lo|--|-w", "-i|lo|--|-w", ""},
		{"an empty expression", "-i|lo|", "-i|lo|--|", ""},
		{"-dd", "-dd|ip", "-d|-d|--|ip", ""},
		{"an unknown letter", "-Y", "", `there is no option -Y in "-Y"`},
		{"an unknown letter in a cluster", "-UY", "", `there is no option -Y in "-UY"`},
		{"an unknown word", "--frobnicate", "", "there is no option --frobnicate"},
		{"a value for a flag without one", "--version=3", "", "option --version takes no value"},
		{"a command with its own options", "-v|doctor|--json", "-v|doctor|--json", ""},
		{"an option of a capture before a command", "-i|lo|doctor", "", "-i is an option of a capture"},
		{"a word like a command behind others", "udp|doctor", "--|udp|doctor", ""},
		{"no value", "-i", "", "option -i needs a value"},
		{"no value for a long option", "--count", "", "option --count needs a value"},
		{"an option behind the expression", "port|443|-w|x", "", `options come before the expression, and -w stands behind "port"`},
		{"an option with its value there", "port|443|-s0", "", "options come before the expression"},
		{"a long one there", "udp|--uid|3", "", "options come before the expression"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			argv := []string{"agent"}
			if tc.typed != "" {
				argv = append(argv, strings.Split(tc.typed, "|")...)
			}
			got, err := normalise(argv, flags, []*cli.Command{{Name: "doctor"}})
			if tc.err != "" {
				if !plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), tc.err) {
					t.Fatalf("error %v, want usage error %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, strings.Join(got[1:], "|")); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestPerform holds perform against cli's own App.Run: what an action gets is the same.
func TestPerform(t *testing.T) {
	for _, typed := range []string{ // words, split at |
		"",
		"udp|port|53",
		"-c|3|udp",
		"--count=0x10|-B|1",
		"-v|-n",
		"-vvv",
		"--verbose|--verbose|-nn",
		"-i|a,b|-i| c ",
		"--interface|a|--interface=",
		"--backend=|--duration||",
		"-U|-p|--|-w",
		"-i|a|--interface|b", // an error, as all below that have no command
		"-v|--verbose",
		"-c|x",
		"--count|x",
		"-B|99999999999999999999",
		"doctor",
		"-vv|doctor|--json|--btf|a|-b|c|word|--json",
		"doctor|--json=0|--btf=",
		"doctor|--|--json",
		"doctor|--json=x",
		"doctor|--btf",
		"doctor|--nope",
		"doctor|---json",
		"doctor|-f",
	} {
		t.Run(typed, func(t *testing.T) {
			argv := []string{"agent"}
			if typed != "" {
				argv = append(argv, strings.Split(typed, "|")...)
			}
			want := performed(func(app *cli.App) error {
				app.HideHelp, app.HideVersion = true, true
				app.OnUsageError = func(_ *cli.Context, err error, _ bool) error { return plugin.Usagef("%w", err) }
				app.Commands[0].OnUsageError = app.OnUsageError
				app.ExitErrHandler = func(*cli.Context, error) {}
				args, err := normalise(argv, app.Flags, app.Commands)
				if err != nil {
					t.Fatal(err)
				}
				return app.Run(args)
			})
			if d := cmp.Diff(want, performed(func(app *cli.App) error { return perform(app, argv) })); d != "" {
				t.Errorf("-cli +perform:\n%s", d)
			}
		})
	}
}

// performed tells what a command line makes of an app: the action that is called, with all that
// it sees, or the error.
func performed(do func(*cli.App) error) string {
	var seen strings.Builder
	see := func(name string, flags []cli.Flag) cli.ActionFunc {
		return func(c *cli.Context) error {
			fmt.Fprintf(&seen, "%s %q\n", name, c.Args().Slice())
			for _, f := range flags {
				for _, n := range f.Names() {
					fmt.Fprintf(&seen, "%s: %t %v %d %d\n", n, c.IsSet(n), c.Value(n), c.Count(n), len(c.StringSlice(n)))
				}
			}
			return nil
		}
	}
	flags := append(ownFlags(), &cli.StringSliceFlag{Name: "interface", Aliases: []string{"i"}})
	options := []cli.Flag{&cli.BoolFlag{Name: "json"}, &cli.StringSliceFlag{Name: "btf", Aliases: []string{"b"}}}
	err := do(&cli.App{
		Name: "agent", Flags: flags, Action: see("agent", flags), Writer: &seen, ErrWriter: &seen,
		Commands: []*cli.Command{{Name: "doctor", Flags: options, Action: see("doctor", append(options, flags...))}},
	})
	if err != nil {
		fmt.Fprintf(&seen, "%v, usage %t\n", err, plugin.IsUsage(err))
	}
	return seen.String()
}
