// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/filter"
	"droidtap/agent/plugin"
	"droidtap/android"
)

var phone = []android.Interface{
	{Index: 30, Name: "wlan0", Type: 1, Up: true, Running: true},
	{Index: 12, Name: "rmnet_data0", Type: 519, Up: true, Running: true},
	{Index: 1, Name: "lo", Type: 772, Up: true, Running: true, Loopback: true},
	{Index: 3, Name: "dummy0", Type: 1},
	{Index: 4, Name: "can0", Type: 280, Up: true, Running: true},
}

func names(of []android.Interface) string { return joinNames(of, " ") }

func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		given   []string
		uplinks []int
		want    string
		label   string
		err     string
	}{
		{"no name is any: what is up and can be captured on", nil, nil, "wlan0 rmnet_data0 lo", "any", ""},
		{"any", []string{"any"}, nil, "wlan0 rmnet_data0 lo", "any", ""},
		{"a name", []string{"rmnet_data0"}, nil, "rmnet_data0", "rmnet_data0", ""},
		{"several, each once", []string{"lo", "wlan0", "lo"}, nil, "wlan0 lo", "lo+wlan0", ""},
		{"one that is down may be named", []string{"dummy0"}, nil, "dummy0", "dummy0", ""},
		{"any and one that is down", []string{"any", "dummy0"}, nil, "wlan0 rmnet_data0 lo dummy0", "any", ""},
		{"numbers of -D's list", []string{"1", "4"}, nil, "wlan0 lo", "wlan0+lo", ""},
		{"the number of any", []string{"3"}, nil, "wlan0 rmnet_data0 lo", "any", ""},
		{"a pattern", []string{"rmnet*"}, nil, "rmnet_data0", "rmnet", ""},
		{"a pattern takes none that is down", []string{"*0"}, nil, "wlan0 rmnet_data0", "0", ""},
		{"a pattern and a name", []string{"[rw]*", "dummy0"}, nil, "wlan0 rmnet_data0 dummy0", "rw+dummy0", ""},
		{"a pattern that matches nothing yet", []string{"tun?"}, nil, "", "tun", ""},
		{"a pattern without a letter", []string{"*"}, nil, "wlan0 rmnet_data0 lo", "some", ""},
		{"what leads to the internet", []string{"@inet"}, []int{12}, "rmnet_data0", "inet", ""},
		{"by two interfaces", []string{"@inet"}, []int{30, 12}, "wlan0 rmnet_data0", "inet", ""},
		{"nothing does", []string{"@inet"}, nil, "", "inet", ""},
		{"and others", []string{"@inet", "lo"}, []int{12}, "rmnet_data0 lo", "inet+lo", ""},
		{"an interface that cannot be captured on leads there", []string{"@inet"}, []int{4}, "", "inet", ""},
		{"an unknown name", []string{"eth9"}, nil, "", "", `there is no interface "eth9": there are wlan0, rmnet_data0, lo, dummy0, can0, any and @inet; a pattern such as 'eth9*' waits for one`},
		{"a number too high", []string{"7"}, nil, "", "", `there is no interface "7"`},
		{"an empty name", []string{""}, nil, "", "", `there is no interface ""`},
		{"a link type of neither kind", []string{"can0"}, nil, "", "", "interface can0 has link type 280"},
		{"a pattern that is none", []string{"wlan[0"}, nil, "", "", `interface pattern "wlan[0"`},
		{"a pattern with a slash", []string{"a/*"}, nil, "", "", `interface pattern "a/*"`},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			got, err := choose(tc.given, phone)
			if tc.err != "" {
				if !plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), tc.err) {
					t.Fatalf("error %v, want usage error %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := names(got.of(phone, tc.uplinks)); n != tc.want || got.label() != tc.label {
				t.Errorf("%s (label %s), want %s (label %s)", n, got.label(), tc.want, tc.label)
			}
		})
	}
}

// compiledFor is an expression that fails on some framings.
func compiledFor(chosen []android.Interface, errs map[android.Framing]error) compiled {
	c := compiled{filters{wires: map[int]wire{}, of: map[wire]fitted{}}, map[wire]error{}}
	for _, ifc := range chosen {
		w := wire{framing: ifc.Framing()}
		c.wires[ifc.Index] = w
		c.errs[w] = errs[ifc.Framing()]
	}
	return c
}

func TestUsable(t *testing.T) {
	never := errors.Join(filter.ErrRejectsAll)
	wrong := errors.New("ethernet addresses supported only on ethernet")
	both := phone[:2]
	for _, tc := range []struct {
		rule string
		errs map[android.Framing]error
		any  bool
		kept string
		left int
		err  bool
	}{
		{"an expression for all", nil, false, "wlan0 rmnet_data0", 0, false},
		{"an expression that is wrong on a named interface is refused", map[android.Framing]error{android.L3: wrong}, false, "", 0, true},
		{"an expression that is wrong on one of any leaves it out", map[android.Framing]error{android.L3: wrong}, true, "wlan0", 1, false},
		{"one that never matches leaves a named interface out", map[android.Framing]error{android.L3: never}, false, "wlan0", 1, false},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			kept, left, err := compiledFor(both, tc.errs).usable(both, tc.any)
			if (err != nil) != tc.err || err != nil && !plugin.IsUsage(err) {
				t.Fatalf("error %v", err)
			}
			if names(kept) != tc.kept || len(left) != tc.left {
				t.Errorf("kept %s, left out %q", names(kept), left)
			}
			for _, why := range left {
				if !strings.Contains(why, "rmnet_data0 has no Ethernet header") {
					t.Errorf("reason %q", why)
				}
			}
		})
	}
}

func TestPoints(t *testing.T) {
	in, out := ingress, egress
	wlan, lo := phone[0], phone[2]
	for _, tc := range []struct {
		rule       string
		ifc        android.Interface
		directions uint32
		comments   commenting
		want       []point
	}{
		{"both ways", wlan, 3, commentNone, []point{in, out}},
		{"-Q in", wlan, recordIngress, commentNone, []point{in}},
		{"-Q out", wlan, recordEgress, commentNone, []point{out}},
		{"flows are learnt on the way out", wlan, recordIngress, commentFirst, []point{in, out}},
		{"a packet on lo is recorded once", lo, 3, commentNone, []point{in}},
		{"and on the way out if that is asked for", lo, recordEgress, commentNone, []point{out}},
		{"lo with owners", lo, 3, commentFirst, []point{in, out}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			s := source{options: options{directions: tc.directions, owning: owning{keep: true, comments: tc.comments}}}
			if d := cmp.Diff(tc.want, s.points(tc.ifc)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestExpression(t *testing.T) {
	files := map[string]string{"f": "# web\ntcp port 443 # TLS\n\n  or tcp port 80\n", "empty": "# nothing\n"}
	read := func(name string) ([]byte, error) {
		if text, ok := files[name]; ok {
			return []byte(text), nil
		}
		return nil, fs.ErrNotExist
	}
	for _, tc := range []struct {
		rule  string
		words []string
		file  string
		want  string
		err   bool
	}{
		{"words", []string{"tcp", "port", "443"}, "", "tcp port 443", false},
		{"one quoted word", []string{"tcp port 443"}, "", "tcp port 443", false},
		{"nothing", nil, "", "", false},
		{"an empty word", []string{""}, "", "", false},
		{"a file with comments", nil, "f", "tcp port 443 or tcp port 80", false},
		{"a file of comments only", nil, "empty", "", false},
		{"both", []string{"udp"}, "f", "", true},
		{"no such file", nil, "g", "", true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			got, err := expression(tc.words, tc.file, read)
			if (err != nil) != tc.err || err != nil && !plugin.IsUsage(err) {
				t.Fatalf("error %v", err)
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int]uint32{0: 262144, 1: 1, 96: 96, 262144: 262144, -1: 0, 262145: 0} {
		got, err := snaplen(n)
		if got != want || (err != nil) != (want == 0) || err != nil && !plugin.IsUsage(err) {
			t.Errorf("-s %d: %d, %v", n, got, err)
		}
	}
	for q, want := range map[string]uint32{"in": 1, "out": 2, "inout": 3, "": 0, "both": 0} {
		got, err := directions(q)
		if got != want || (err != nil) != (want == 0) || err != nil && !plugin.IsUsage(err) {
			t.Errorf("-Q %q: %d, %v", q, got, err)
		}
	}
}

func TestMixed(t *testing.T) {
	l2, l3 := android.Interface{Name: "wlan0", Type: 1}, android.Interface{Name: "rmnet0", Type: 519}
	for _, c := range []struct {
		rule string
		of   *source
		want bool
	}{
		{"names of one kind", &source{selection: selection{names: []string{"wlan0", "wlan1"}}, chosen: []android.Interface{l2, l2}}, false},
		{"names of both kinds", &source{selection: selection{names: []string{"wlan0", "rmnet0"}}, chosen: []android.Interface{l2, l3}}, true},
		{"a pattern", &source{selection: selection{globs: []string{"wlan*"}}, chosen: []android.Interface{l2}}, true},
		{"any", &source{selection: selection{any: true}, chosen: []android.Interface{l2}}, true},
		{"what leads to the internet", &source{selection: selection{internet: true}}, true},
	} {
		if got := c.of.Mixed(); got != c.want {
			t.Errorf("%s: %v", c.rule, got)
		}
	}
}
