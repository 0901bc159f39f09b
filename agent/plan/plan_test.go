// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// errors by the letter that stands for them in tables.
var lacks = map[rune]error{
	'r': errors.New("map type RingBuf: not supported"),
	'b': errors.New("program type SchedCLS: helper FnKtimeGetBootNs: not supported"),
	'x': errors.New("query tcx programs: not supported before kernel 6.6"),
	't': errors.New("try clsact: not supported"),
	's': errors.New("try a packet socket: not supported"),
	'o': errors.New("no BTF fits"),
	'c': errors.New("program type SchedCLS: helper FnSkbCgroupId: not supported"),
	'g': errors.New("global functions: not supported"),
}

// that is the kernel that lacks what the letters say.
func that(release, letters string) Kernel {
	k := Kernel{Release: release}
	places := map[rune]*error{'r': &k.RingBuf, 'b': &k.BootNs, 'x': &k.TCX, 't': &k.TC, 's': &k.Socket, 'o': &k.Types, 'c': &k.Cgroup, 'g': &k.Globals}
	for _, l := range letters {
		*places[l] = lacks[l]
	}
	k.SockUID = k.Types
	return k
}

// kernels are those whose configurations or sources were read (r, b, x, t, s, o: what each lacks), and some that lie
// about themselves. "Backport" is what Android brought to older ones.
var kernels = []struct {
	name, release, lacks string
	want                 string // variants, hooks and clock
}{
	// Android, by branch and by who built it.
	{"4.14 LineageOS sm8150", "4.14.190-perf+", "rbxo", "legacy|tc packet|monotonic"},
	{"4.14 without BPF_JIT", "4.14.117", "rbxo", "legacy|tc packet|monotonic"},
	{"4.19 GKI, backport of the boot clock", "4.19.206-android11-0", "rxo", "legacy|tc packet|boottime"},
	{"4.19 Rockchip", "4.19.206-rt87", "rxo", "legacy|tc packet|boottime"},
	{"4.19 LineageOS kona", "4.19.157-perf-g8a1d1f2", "rbxo", "legacy|tc packet|monotonic"},
	{"4.19 that says nothing", "4.19.113-HayaseYuuka-v3.5", "rbxo", "legacy|tc packet|monotonic"},
	{"4.19 without clsact", "4.19.81", "rbxto", "legacy|packet|monotonic"},
	{"5.4 qgki", "5.4.86-qgki-g2b5a0c0", "rxo", "legacy|tc packet|boottime"},
	{"5.4 Samsung A73", "5.4.289-qgki-29201", "rxo", "legacy|tc packet|boottime"},
	{"5.4 GKI of Android 12", "5.4.42-android12-0-foo", "rbxo", "legacy|tc packet|monotonic"},
	{"5.10 GKI of Android 12, no BTF", "5.10.198-android12-9-00019-g6efebf1322d6-ab11471183", "x", "ring legacy|tc packet|boottime"},
	{"5.10 GKI of Android 12, older", "5.10.66-android12-9-00021-g2c152aa32942-ab8943833", "x", "ring legacy|tc packet|boottime"},
	{"5.10 GKI of Android 13", "5.10.177-android13-4-00003-ga7208022a7ea-ab10815828", "x", "ring legacy|tc packet|boottime"},
	{"5.10 custom, KMI not in uname", "5.10.238-ack", "xo", "ring legacy|tc packet|boottime"},
	{"5.10 Rockchip rock5b", "5.10.110-rockchip-rk3588", "x", "ring legacy|tc packet|boottime"},
	{"5.10 whose SELinux refuses the ring buffer", "5.10.107-android13-4", "rx", "legacy|tc packet|boottime"},
	{"5.15 GKI of Android 13", "5.15.78-android13-8-00204-gdeaaee2a3fb0-ab9797340", "x", "ring legacy|tc packet|boottime"},
	{"5.15 GKI of Android 14", "5.15.167-android14-11", "x", "ring legacy|tc packet|boottime"},
	{"5.15 without BTF", "5.15.94-custom", "xo", "ring legacy|tc packet|boottime"},
	{"6.1 GKI of Android 14", "6.1.145-android14-11-g0f6f6e9", "x", "ring legacy|tc packet|boottime"},
	{"6.1 Pixel", "6.1.158-android14-11-gbd9b1d8bb7d9-ab14246423", "x", "ring legacy|tc packet|boottime"},
	{"6.1 GrapheneOS, locked down to confidentiality", "6.1.129-android14-11", "xo", "ring legacy|tc packet|boottime"},
	{"6.6 GKI of Android 15", "6.6.50-android15-8-00004-g1b2c3d4-4k", "", "ring legacy|tcx tc packet|boottime"},
	{"6.6 GrapheneOS, locked down", "6.6.92-android15-8-4k", "o", "ring legacy|tcx tc packet|boottime"},
	{"6.6 without NET_XGRESS", "6.6.30", "x", "ring legacy|tc packet|boottime"},
	{"6.12 GKI of Android 16", "6.12.23-android16-5-4k", "", "ring legacy|tcx tc packet|boottime"},
	{"6.12 Samsung A075F", "6.12.23-android16-5-abA075FXXS5BZD2-4k", "", "ring legacy|tcx tc packet|boottime"},
	{"6.12 OnePlus sm8850", "6.12.23-android16-5-o-g5e2b5a7", "", "ring legacy|tcx tc packet|boottime"},
	{"6.12 of 16 kB pages", "6.12.38-android16-5-16k", "", "ring legacy|tcx tc packet|boottime"},
	// Debian and others.
	{"Debian 4.19", "4.19.0-27-arm64", "rbxo", "legacy|tc packet|monotonic"},
	{"Debian 5.10", "5.10.0-32-arm64", "x", "ring legacy|tc packet|boottime"},
	{"Debian 6.1", "6.1.0-50-arm64", "x", "ring legacy|tc packet|boottime"},
	{"Debian 6.12", "6.12.107+deb13-arm64", "", "ring legacy|tcx tc packet|boottime"},
	{"Debian 7.3", "7.3.4+deb13-arm64", "", "ring legacy|tcx tc packet|boottime"},
	{"a machine without traffic control", "6.18.44", "xt", "ring legacy|packet|boottime"},
	{"a machine with TCX alone", "6.18.44", "ts", "ring legacy|tcx|boottime"},
	{"WSL2", "5.15.153.1-microsoft-standard-WSL2", "x", "ring legacy|tc packet|boottime"},
	{"an emulator's ranchu", "5.15.41-android13-8-00055-g4f5025129fe8-ab8949913", "x", "ring legacy|tc packet|boottime"},
	// What a release says counts for nothing.
	{"an old release with everything", "2.6.32", "", "ring legacy|tcx tc packet|boottime"},
	{"a new release with nothing", "9.9.9-android99-1", "rbxo", "legacy|tc packet|monotonic"},
	{"a spoofed release", "3.18.31-perf", "x", "ring legacy|tc packet|boottime"},
	{"no release", "", "rbx", "legacy|tc packet|monotonic"},
	{"a release of words", "android12-5.10-lts", "x", "ring legacy|tc packet|boottime"},
	// Backports, alone.
	{"ring buffer without boot clock", "5.7.0", "bx", "ring legacy|tc packet|monotonic"},
	{"boot clock without ring buffer", "5.4.0", "rx", "legacy|tc packet|boottime"},
}

// told puts a plan in the words of the table.
func told(p Plan) string {
	var variants, hooks []string
	for _, v := range p.Variants {
		variants = append(variants, string(v))
	}
	for _, h := range p.Hooks {
		hooks = append(hooks, string(h))
	}
	return strings.Join(variants, " ") + "|" + strings.Join(hooks, " ") + "|" + string(p.Clock)
}

func TestKernels(t *testing.T) {
	if len(kernels) < 40 {
		t.Errorf("%d kernels only", len(kernels))
	}
	for _, tc := range kernels {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Make(that(tc.release, tc.lacks), Wish{})
			if err != nil {
				t.Fatal(err)
			}
			if got := told(p); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
			checkReasons(t, p, tc.lacks)
		})
	}
}

// checkReasons wants each choice explained, and each that the kernel lacks by the kernel's own words.
func checkReasons(t *testing.T, p Plan, letters string) {
	t.Helper()
	if len(p.Choices) != 4 {
		t.Fatalf("%d reasons for 4 choices: %v", len(p.Choices), p.Choices)
	}
	var all strings.Builder
	for _, c := range p.Choices {
		if c.Chosen == "" || c.Why == "" {
			t.Errorf("no reason: %+v", c)
		}
		for _, n := range c.Not {
			if n.Why == "" || n.Name == c.Chosen {
				t.Errorf("no reason against %+v", n)
			}
		}
		all.WriteString(c.String() + "\n")
	}
	for _, l := range strings.ReplaceAll(letters, "o", "") {
		if !strings.Contains(all.String(), lacks[l].Error()) {
			t.Errorf("nobody is told %q:\n%s", lacks[l], all.String())
		}
	}
}

func TestWishes(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		lacks string
		wish  Wish
		want  string // "": ErrImpossible
	}{
		{"a variant that was asked for is the only one tried, whatever the kernel says", "rbx", Wish{Variant: Ring}, "ring|tc packet|monotonic"},
		{"tc may be asked for where TCX is", "", Wish{Hook: TC}, "ring legacy|tc|boottime"},
		{"a packet socket may be asked for where all is", "", Wish{Hook: Packet}, "ring legacy|packet|boottime"},
		{"TCX where there is none", "x", Wish{Hook: TCX}, ""},
		{"a packet socket where there is none", "s", Wish{Hook: Packet}, ""},
		{"anything where there is nothing", "xts", Wish{}, ""},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			p, err := Make(that("", tc.lacks), tc.wish)
			if tc.want == "" {
				if !errors.Is(err, ErrImpossible) {
					t.Errorf("%v, %+v", err, p)
				}
				for _, l := range tc.lacks {
					if !errors.Is(err, lacks[l]) {
						t.Errorf("%v does not tell %v", err, lacks[l])
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, told(p)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestOwners(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		lacks string
		wish  Wish
		want  Owners
		not   string // why not lookup
	}{
		{"the socket that receives is looked up where offsets hold", "", Wish{}, Lookup, ""},
		{"without offsets there are flows", "o", Wish{}, Flows, "no BTF fits"},
		{"the legacy object has no lookup", "", Wish{Variant: Legacy}, Flows, "only the object ring has it"},
		{"nor has a kernel without the ring buffer, which is what is said", "ro", Wish{}, Flows, "only the object ring has it"},
		{"behind a packet socket all is asked", "", Wish{Hook: Packet}, Afterwards, "a packet socket knows no other sockets"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			p, err := Make(that("", tc.lacks), tc.wish)
			if err != nil {
				t.Fatal(err)
			}
			c := p.Choices[len(p.Choices)-1]
			if p.Owners != tc.want || c.What != "owners" || c.Chosen != string(tc.want) {
				t.Errorf("%s, %+v, want %s", p.Owners, c, tc.want)
			}
			for _, n := range c.Not {
				if n.Name == string(Lookup) && n.Why != tc.not {
					t.Errorf("not lookup: %s, want %s", n.Why, tc.not)
				}
			}
		})
	}
	k := that("", "")
	k.SockUID = lacks['o']
	if p, err := Make(k, Wish{}); err != nil || p.Owners != Flows {
		t.Errorf("types without that of the owner: %s, %v", p.Owners, err)
	}
}

func TestCgroup(t *testing.T) {
	for letters, want := range map[string]bool{"": false, "c": true} {
		if p, err := Make(that("", letters), Wish{}); err != nil || p.NoCgroup != want {
			t.Errorf("lacks %q: %t, %v", letters, p.NoCgroup, err)
		}
	}
}

func TestGlobals(t *testing.T) {
	for letters, want := range map[string]bool{"": true, "g": false} {
		if p, err := Make(that("", letters), Wish{}); err != nil || p.Globals != want {
			t.Errorf("lacks %q: %t, %v", letters, p.Globals, err)
		}
	}
}

func TestNeeds(t *testing.T) {
	needs := []Need{NeedTypes}
	if err := that("", "").Lacks(needs); err != nil {
		t.Errorf("a kernel with all: %v", err)
	}
	if err := that("", "o").Lacks(nil); err != nil {
		t.Errorf("a probe that needs nothing: %v", err)
	}
	if err := that("", "o").Lacks(needs); !errors.Is(err, ErrImpossible) || !errors.Is(err, lacks['o']) {
		t.Errorf("a kernel without types: %v", err)
	}
}

func TestWishNamesWhatThereIs(t *testing.T) {
	for _, w := range []Wish{{Hook: "xdp"}, {Variant: "core"}} {
		if err := w.Check(); err == nil {
			t.Errorf("%+v is accepted", w)
		}
		if _, err := Make(Kernel{}, w); err == nil {
			t.Errorf("Make accepts %+v", w)
		}
	}
}
