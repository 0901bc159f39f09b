// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// anothers are the words of another program: its -x has a value, its -d none, and -p has one, too.
func anothers() []*plugin.Word {
	return []*plugin.Word{{
		Name: "another", Usage: "what another does",
		Flags: []cli.Flag{&cli.StringFlag{Name: "exit", Aliases: []string{"x"}}, &cli.BoolFlag{Name: "d"}, &cli.IntFlag{Name: "p"}},
		Rewrite: func(typed []plugin.Option) ([]plugin.Option, []string, error) {
			for i, o := range typed {
				switch o.Name {
				case "x", "exit":
					typed[i] = plugin.Option{Name: "write", Valued: true, Value: o.Value}
				case "d":
					return nil, nil, plugin.Usagef("not -d")
				}
			}
			return typed, []string{"noted"}, nil
		},
	}}
}

func TestReword(t *testing.T) {
	flags := newApp(io.Discard, io.Discard).Flags
	for _, tc := range []struct {
		rule  string
		typed string // words, split at |
		want  string
		err   string
	}{
		{"nothing", "", "", ""},
		{"only -v", "-vv", "-vv", ""},
		{"no word", "-i|lo|udp", "-i|lo|udp", ""},
		{"a word behind another option is none", "-i|lo|another", "-i|lo|another", ""},
		{"a word that is a value is none", "-w|another", "-w|another", ""},
		{"a word alone", "another", "", ""},
		{"behind -v", "-v|-vv|--verbose|another|-n", "-v|-vv|--verbose|-n", ""},
		{"its options and the agent's", "another|-x|f|-i|lo", "--write|f|-i|lo", ""},
		{"in one word, and with =", "another|-Uxf|--interface=lo|--exit=|-p3", "-U|--write|f|--interface|lo|--write||-p|3", ""},
		{"a value that looks like an option", "another|-x|-i", "--write|-i", ""},
		{"the expression", "another|-x|f|tcp|port|443", "--write|f|--|tcp|port|443", ""},
		{"in one word", "another|tcp port 443", "--|tcp port 443", ""},
		{"behind --", "another|-U|--|-d", "-U|--|-d", ""},
		{"an empty one", "another|-U|", "-U|--|", ""},
		{"an error of its own", "another|-d", "", "not -d"},
		{"no option of either", "another|-Y", "", "there is no option -Y"},
		{"no value", "another|-x", "", "option -x needs a value"},
		{"an option behind the expression", "another|udp|-x|f", "", "options come before the expression"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			argv := []string{"agent"}
			if tc.typed != "" {
				argv = append(argv, strings.Split(tc.typed, "|")...)
			}
			before := slices.Clone(argv)
			got, err := reword(argv, flags, anothers())
			if d := cmp.Diff(before, argv); d != "" {
				t.Errorf("what was typed is changed: %s", d)
			}
			if tc.err != "" {
				if !plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), tc.err) {
					t.Fatalf("error %v, want usage error %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, strings.Join(got.argv[1:], "|")); d != "" {
				t.Error(d)
			}
			if (got.word != nil) != (got.notes != nil) {
				t.Errorf("word %v, notes %q", got.word, got.notes)
			}
		})
	}
}

// TestRewordHelp has --help of a word wherever an option may stand, even where the others are wrong.
func TestRewordHelp(t *testing.T) {
	for _, argv := range [][]string{{"agent", "another", "--help"}, {"agent", "-v", "another", "-d", "-h"}} {
		got, err := reword(argv, newApp(io.Discard, io.Discard).Flags, anothers())
		if err != nil || !got.help {
			t.Errorf("%q: help %t, %v", argv, got.help, err)
			continue
		}
		text := commandHelp(commandOf(got.word))
		if !strings.Contains(text, "agent another [options] [pcap-filter expression]") || !strings.Contains(text, "-x, --exit") {
			t.Errorf("%q: %s", argv, text)
		}
	}
}

// TestRewordPerformed has a command line of a word be that of a capture, to the expression and a file of flags.
func TestRewordPerformed(t *testing.T) {
	path := flagFile(t, "-s 64\n-c 3\nudp port 53\n")
	for _, tc := range []struct {
		rule, typed string // words, split at |
		snaplen     int
		args        string
		err         string
	}{
		{"an expression", "tls|-i|lo|-s|96|tcp|port|443", 96, "tcp|port|443", ""},
		{"a file of flags", "-v|tls|--ifname|lo|--config|" + path, 64, "udp port 53", ""},
		{"the command line counts more", "tls|-s|96|--config|" + path + "|tcp", 96, "tcp", ""},
		{"a command in place of the expression is none", "tls|-s|96|status", 96, "status", ""},
		{"a word behind options", "-i|lo|tls|tcp", 0, "", "tls is the first word of a command line"},
		{"a word behind a word", "tls|tls", 0, "", "tls is the first word of a command line"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			app := newApp(io.Discard, io.Discard)
			called := false
			app.Action = func(c *cli.Context) error {
				called = true
				if got := c.Int("snapshot-length"); got != tc.snaplen || !c.Bool("tls") {
					t.Errorf("snapshot length %d, --tls %t", got, c.Bool("tls"))
				}
				if got := strings.Join(c.Args().Slice(), "|"); got != tc.args {
					t.Errorf("expression %q, want %q", got, tc.args)
				}
				return nil
			}
			err := perform(app, append([]string{"agent"}, strings.Split(tc.typed, "|")...))
			if tc.err != "" && (!plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), tc.err)) || tc.err == "" && err != nil {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if called != (tc.err == "") {
				t.Errorf("called: %t", called)
			}
		})
	}
}

// TestWords holds the words and the commands against pcap-filter: "host X" asks for the address of X, unless that is a word of
// pcap-filter's.
func TestWords(t *testing.T) {
	asksFor := func(name string) bool {
		_, err := filter.Compile(t.Context(), "host "+name, pcapng.Ethernet, 0)
		return err != nil && strings.Contains(err.Error(), "unknown host")
	}
	if asksFor("vlan") {
		t.Fatal("vlan is a word of pcap-filter, and would be taken for a name")
	}
	app := newApp(io.Discard, io.Discard)
	names := map[string]bool{}
	for _, c := range append(app.Commands, commandsOf(words())...) {
		if names[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		names[c.Name] = true
		if !asksFor(c.Name) {
			t.Errorf("%s is a word of pcap-filter", c.Name)
		}
	}
	if !names["tls"] {
		t.Error("tls is no word")
	}
}
