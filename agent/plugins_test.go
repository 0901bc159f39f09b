// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// build builds the agent with more tags and flags than usual, and returns its path.
func build(t *testing.T, tags string, flags ...string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("go is not installed")
	}
	file := filepath.Join(t.TempDir(), "agent")
	args := append([]string{"build", "-tags", "netgo,osusergo,urfave_cli_no_docs" + tags, "-o", file}, flags...)
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return file
}

// runs runs an agent that captures nothing, and returns what it says and its exit code.
func runs(t *testing.T, argv ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		must(t, err)
	}
	return out.String(), errs.String(), code
}

// TestPluginsLeftOut builds agents without each plugin.
func TestPluginsLeftOut(t *testing.T) {
	tests := []struct {
		name, tag string
		args      []string
		says      string
		lacks     []string // options
		has       []string
	}{
		{"no probe", ",no_packet", []string{"-i", "lo"}, "no option -i", []string{"--interface", "--uid"}, []string{"--write", "--count"}},
		{"no probe asked for", ",no_packet", nil, "nothing to capture", nil, nil},
		{"no output", ",no_file", []string{"-w", "-"}, "no option -w", []string{"--write", "--output-dir"}, []string{"--interface", "--count"}},
		{"no output asked for", ",no_file", []string{"-i", "lo"}, "nowhere to write to", nil, nil},
	}
	built := map[string]string{}
	for _, tag := range []string{",no_packet", ",no_file"} {
		built[tag] = build(t, tag)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			agent := built[tt.tag]
			_, stderr, code := runs(t, append([]string{agent}, tt.args...)...)
			if code != 2 || !strings.Contains(stderr, tt.says) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("code %d, says %q", code, stderr)
			}
			help, _, code := runs(t, agent, "--help")
			if code != 0 {
				t.Errorf("--help: code %d", code)
			}
			described := func(option string) bool {
				return regexp.MustCompile(`(?m)^ +(-\w, )?` + option + `\b`).MatchString(help)
			}
			for _, o := range tt.lacks {
				if described(o) {
					t.Errorf("--help has %s", o)
				}
			}
			for _, o := range tt.has {
				if !described(o) {
					t.Errorf("--help lacks %s", o)
				}
			}
		})
	}
}

// TestPluginAdded adds a probe by two new files and no change of another.
func TestPluginAdded(t *testing.T) {
	here, err := os.Getwd()
	must(t, err)
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(here, "with_hello.go"):              filepath.Join(here, "testdata/hello/with_hello.go"),
		filepath.Join(here, "probe", "hello", "hello.go"): filepath.Join(here, "testdata/hello/hello.go"),
	}})
	must(t, err)
	file := filepath.Join(t.TempDir(), "overlay.json")
	must(t, os.WriteFile(file, overlay, 0o600))
	agent := build(t, "", "-overlay", file)
	help, _, code := runs(t, agent, "--help")
	if code != 0 || !strings.Contains(help, "--hello WHOM") || !strings.Contains(help, "Greetings") {
		t.Errorf("code %d, --help:\n%s", code, help)
	}
	stdout, stderr, code := runs(t, agent, "--hello", "world")
	if code != 0 || stdout != "hello world\n" || stderr != "" {
		t.Errorf("code %d, says %q, %q", code, stdout, stderr)
	}
}

// TestCommandHelp has --help print a command's help wherever it stands, as options of commands may.
func TestCommandHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"com.example", "--help"}, {"com.example", "-h"}} {
		stdout, stderr, code := runs(t, append([]string{"agent", "apps"}, args...)...)
		if code != 0 || stderr != "" || !strings.Contains(stdout, "agent apps [options] [PATTERN]") {
			t.Errorf("%q: code %d, %q, says %q", args, code, stdout, stderr)
		}
	}
}

// TestHelp names every option, in lines that a terminal holds.
func TestHelp(t *testing.T) {
	help, stderr, code := runs(t, "agent", "--help")
	if code != 0 || stderr != "" {
		t.Errorf("code %d, says %q", code, stderr)
	}
	for _, f := range newApp(nil, nil).Flags {
		for _, name := range f.Names() {
			dashes := "--"
			if len(name) == 1 {
				dashes = "-"
			}
			if !strings.Contains(help, dashes+name) {
				t.Errorf("--help lacks %s%s", dashes, name)
			}
		}
	}
}
