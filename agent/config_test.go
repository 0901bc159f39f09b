// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

// flagFile writes a file of flags, and returns its path.
func flagFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "args")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestExpand has a command line and a file of flags; what is to come of both is another command line.
func TestExpand(t *testing.T) {
	for _, tc := range []struct {
		rule        string
		typed, file string // words, split at |; lines, split at |
		want        string
		err         string // behind "FILE:"
	}{
		{"the file alone", "", "-i lo|--count 3|-U", "-i|lo|--count|3|-U", ""},
		{"flags of plugins", "", "--app com.example|--not-uid=0|-s 96", "--app|com.example|--not-uid|0|-s|96", ""},
		{"a value has blanks and quotes", "", `-w /sdcard/a  "b".pcapng`, `-w|/sdcard/a  "b".pcapng`, ""},
		{"a value in the flag's word", "", "-iwlan0|-s0", "-i|wlan0|-s|0", ""},
		{"and goes on behind it", "", "-w/sdcard/a b", "-w|/sdcard/a b", ""},
		{"a value with a dash", "", "-w -", "-w|-", ""},
		{"an empty value behind =", "", "--object=", "--object|", ""},
		{"a cluster", "", "-Uvvi any", "-U|-v|-v|-i|any", ""},
		{"the expression", "", "-U|tcp and|not port 22", "-U|--|tcp and not port 22", ""},
		{"an expression with a dash in front", "", "--|-4 < len", "--|-4 < len", ""},
		{"a word like a command", "", "doctor", "--|doctor", ""},
		{"a value of the command line wins", "-c|5|-U", "-c 3|-B 1024", "-B|1024|-c|5|-U", ""},
		{"by any spelling", "--count|5|-U", "-c 3", "--count|5|-U", ""},
		{"a switch is not counted twice", "-v", "-vv", "-v", ""},
		{"lists have both", "-i|lo", "-i wlan0|-i rmnet0", "-i|wlan0|-i|rmnet0|-i|lo", ""},
		{"by any spelling", "--interface=lo", "-i wlan0", "--interface|wlan0|--interface=lo", ""},
		{"two spellings in the file", "", "-i a|--interface b", "-i|a|-i|b", ""},
		{"the expression of the command line wins", "udp", "-U|tcp", "-U|--|udp", ""},
		{"an empty one, too", "--|", "tcp", "--|", ""},
		{"an unknown flag", "", "-U|# more|--frobnicate 3", "", "3: there is no option --frobnicate"},
		{"an unknown letter", "", "-UM", "", `1: there is no option -M in "-UM"`},
		{"no value", "", "-U|-i", "", "2: option -i needs a value"},
		{"a value for a flag without one", "", "-U yes", "", "1: option -U takes no value"},
		{"and behind =", "", "--packet-buffered=yes", "", "1: option --packet-buffered takes no value"},
		{"the library's own errors", "", "-U|-c many", "", `2: invalid value "many" for flag -c`},
		{"of what the command line gives better", "-c|5", "-c many", "", `1: invalid value "many" for flag -c`},
		{"a value twice", "", "-c 3|-U|--count 4", "", "3: option --count has a value already, by line 1"},
		{"a flag behind the expression", "", "tcp|-c 3", "", `2: options come before the expression, and -c stands behind "tcp"`},
		{"in a line of it", "", "tcp -c 3", "", "1: options come before the expression"},
		{"another file", "", "-U|--config x", "", "2: a file of flags names no other one"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			path := flagFile(t, strings.ReplaceAll(tc.file, "|", "\n"))
			argv := []string{"agent", "--config", path}
			if tc.typed != "" {
				argv = append(argv, strings.Split(tc.typed, "|")...)
			}
			flags := newApp(io.Discard, io.Discard).Flags
			args, err := normalise(argv, flags, nil)
			must(t, err)
			e, err := expand(args[1:], flags)
			if err != nil || tc.err != "" {
				if !plugin.IsUsage(err) || tc.err == "" || !strings.HasPrefix(err.Error(), path+":"+tc.err) {
					t.Fatalf("error %v, want usage error %q", err, tc.err)
				}
				return
			}
			got := strings.Join(e.args(-1), "|")
			if d := cmp.Diff(tc.want, strings.Replace(strings.Replace(got, "--config|"+path+"|", "", 1), "|--config|"+path, "", 1)); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestBlamed has errors that come only when a capture is made of the flags.
func TestBlamed(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		typed string // words, split at |
		file  string // lines, split at |
		err   string // behind FILE, with %s for it
	}{
		{"a value", "", "-U|-c 0|-B 1024", "%s:2: -c 0: "},
		{"a value with a better one", "-c|1", "-c 0|-B 0", "%s:2: -B 0: "},
		{"a list", "", "-i lo|--uid 3|--uid x|-U", "%s:3: "},
		{"the command line is to blame", "-c|0", "-U", "-c 0: "},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			path := flagFile(t, strings.ReplaceAll(tc.file, "|", "\n"))
			app := newApp(io.Discard, io.Discard)
			app.Action = func(c *cli.Context) error { _, err := configure(c); return err }
			argv := []string{"agent", "--config", path}
			if tc.typed != "" {
				argv = append(argv, strings.Split(tc.typed, "|")...)
			}
			err := perform(app, argv)
			if want := strings.ReplaceAll(tc.err, "%s", path); !plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
		})
	}
}

// TestUnlistedFile has files of flags that cannot be read, and --config where it does not belong.
func TestUnlistedFile(t *testing.T) {
	path := flagFile(t, "-U")
	for _, tc := range []struct{ typed, err string }{
		{"--config|" + path + ".not", "--config: "},
		{"--config=", "--config: a file of flags has a name"},
		{"--config|" + path + "|--config|" + path, "there is one file of flags"},
		{"--config|" + path + "|doctor", "--config is an option of a capture"},
		{"--config", "option --config needs a value"},
	} {
		err := perform(newApp(io.Discard, io.Discard), append([]string{"agent"}, strings.Split(tc.typed, "|")...))
		if !plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), tc.err) {
			t.Errorf("%s: error %v, want %q", tc.typed, err, tc.err)
		}
	}
}
