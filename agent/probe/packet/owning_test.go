// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"io"
	"slices"
	"testing"

	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
	"droidtap/agent/process"
)

// parsed returns what parseOwning makes of a command line.
func parsed(t testing.TB, args ...string) (o owning, err error) {
	t.Helper()
	app := &cli.App{
		Flags: ownerFlags(), HideVersion: true, Writer: io.Discard, ErrWriter: io.Discard,
		ExitErrHandler: func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			o, err = parseOwning(c)
			return nil
		},
	}
	if err := app.Run(append([]string{"agent"}, args...)); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return o, err
}

// TestOwning tells what the flags ask the programs for.
func TestOwning(t *testing.T) {
	for _, tc := range []struct {
		rule      string
		args      []string
		mode      uint32
		keep      bool
		filtering bool
	}{
		{"comments are told of all that have an owner or not", nil, ownerTell, true, false},
		{"the first of a flow, too", []string{"--comments", "first"}, ownerTell, true, false},
		{"without comments nobody asks", []string{"--comments", "none"}, ownerIgnore, true, false},
		{"what has no owner is left out by the programs", []string{"--comments", "none", "--unattributed", "drop"}, ownerFilter, false, true},
		{"a process is found out behind them, and what has no owner has none", []string{"--comments", "none", "--pid", "1"}, ownerFilter, false, true},
		{"unless that is to be kept", []string{"--comm", "a", "--unattributed", "keep"}, ownerTell, true, true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			o, err := parsed(t, tc.args...)
			if err != nil {
				t.Fatal(err)
			}
			if o.mode() != tc.mode || o.keep != tc.keep || o.filtering() != tc.filtering || o.told() != (tc.mode != ownerIgnore) {
				t.Errorf("mode %d, keep %t, filtering %t, told %t", o.mode(), o.keep, o.filtering(), o.told())
			}
		})
	}
	o, err := parsed(t, "--pid", "7, 8", "--pid", "7", "--comm", "a*,b c")
	if err != nil || !slices.Equal(o.by.PIDs, []int{7, 8}) || !slices.Equal(o.by.Comms, []string{"a*", "b c"}) {
		t.Errorf("%v, %q, %v", o.by.PIDs, o.by.Comms, err)
	}
}

func TestOwningRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"--pid", "0"}, {"--pid", "-1"}, {"--pid", "x"}, {"--pid", ""}, {"--pid", "1,,2"}, {"--pid", "4194305"}, {"--pid", "4294967297"},
		{"--comm", ""}, {"--comm", "a,"}, {"--comm", "[a"}, {"--comm", `a\`},
		{"--comments", "some"}, {"--comments", ""}, {"--unattributed", "some"}, {"--unattributed", ""},
		{"--packages", ""}, {"--packages", "f", "--comments", "none"},
	} {
		if _, err := parsed(t, args...); !plugin.IsUsage(err) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// TestWants matches processes by their pids, and by either of their names.
func TestWants(t *testing.T) {
	chrome := process.Process{PID: 4242, Comm: "android.chrome", Name: "com.android.chrome"}
	curl := process.Process{PID: 7, Comm: "curl", Name: "/usr/bin/curl"}
	worker := process.Process{PID: 8, Comm: "worker/0:1"}
	for _, tc := range []struct {
		args []string
		want []process.Process
	}{
		{[]string{"--pid", "7"}, []process.Process{curl}},
		{[]string{"--pid", "7", "--comm", "android.chrome"}, []process.Process{chrome, curl}},
		{[]string{"--comm", "com.android.*"}, []process.Process{chrome}},
		{[]string{"--comm", "*curl"}, []process.Process{curl}},
		{[]string{"--comm", "/usr/*"}, []process.Process{curl}},
		{[]string{"--comm", "worker/*"}, []process.Process{worker}},
		{[]string{"--comm", "worker/0:[0-9]"}, []process.Process{worker}},
		{[]string{"--comm", "url"}, nil},
		{[]string{"--comm", "Curl"}, nil},
		{nil, nil},
	} {
		o, err := parsed(t, tc.args...)
		if err != nil {
			t.Fatal(err)
		}
		var got []process.Process
		for _, p := range []process.Process{chrome, curl, worker} {
			if _, wanted := o.wants([]process.Process{p}); wanted {
				got = append(got, p)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%q: %v", tc.args, got)
		}
	}
	// The process that is wanted is named, and not the first that has the socket.
	o, _ := parsed(t, "--pid", "8")
	if p, ok := o.wants([]process.Process{curl, worker}); !ok || p != worker {
		t.Errorf("%v", p)
	}
}

func TestRecent(t *testing.T) {
	for rule, hash := range map[string]func(int) uint64{
		"spread":            func(n int) uint64 { return uint64(n) * 0x9e3779b97f4a7c15 },
		"at one place":      func(n int) uint64 { return uint64(n) << 32 },
		"0, and at the end": func(n int) uint64 { return -uint64(n) },
	} {
		t.Run(rule, func(t *testing.T) {
			const most = 200
			r := newRecent[int](most)
			for n := range 10 * most {
				r.put(hash(n), &n)
				if v := r.get(hash(n)); v != &n {
					t.Fatalf("%d is %v", n, v)
				}
				if r.get(hash(0)) == nil {
					t.Fatalf("after %d others, what is used all the time is forgotten", n)
				}
				if size := r.young.used + r.old.used; size > 2*most {
					t.Fatalf("%d are kept", size)
				}
			}
			if r.get(hash(9*most+1)) == nil {
				t.Error("what was used lately is forgotten")
			}
			if r.get(hash(5*most)) != nil {
				t.Error("what was used long ago is kept")
			}
			r.turn()
			other := -1
			r.put(hash(9*most+1), &other)
			if r.turn(); r.get(hash(0)) != nil || r.get(hash(9*most+1)) != &other {
				t.Error("it is not what was used since the last turn but one")
			}
		})
	}
}
