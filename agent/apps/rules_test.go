// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/plugin"
)

func TestParse(t *testing.T) {
	s, err := Parse([]string{"0,10123", " 10123", "4294967293"}, []string{"1000"}, []string{"com.android.chrome,10:com.example*", "*"}, []string{"*:com.google.[a-f]*"})
	want := Selection{
		UIDs: []uint32{0, 10123, 4294967293}, NotUIDs: []uint32{1000},
		Apps: []string{"com.android.chrome", "10:com.example*", "*"}, NotApps: []string{"*:com.google.[a-f]*"},
	}
	if diff := cmp.Diff(want, s); diff != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	if s, err := Parse(nil, nil, nil, nil); err != nil || !s.All() {
		t.Errorf("of nothing: %+v, %v", s, err)
	}
	if want.All() {
		t.Error("something is all")
	}
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ flag, value, want string }{
		{"--uid", "x", `--uid "x": a user id is a number from 0 to 4294967293`},
		{"--uid", "-1", `--uid "-1": a user id is`},
		{"--uid", "4294967294", `--uid "4294967294": a user id is`},
		{"--uid", "99999999999", `--uid "99999999999": a user id is`},
		{"--uid", "2147483648", `--uid 2147483648: user ids from 2147483648 to 2147583647 cannot be told apart from app ids`},
		{"--not-uid", "2147583647", `--not-uid 2147583647: user ids from`},
		{"--uid", "", `--uid needs a user id, and "" lacks one`},
		{"--not-uid", "1,,2", `--not-uid needs a user id, and "1,,2" lacks one`},
		{"--app", "com.a,", `--app needs a package, and "com.a," lacks one`},
		{"--app", "com/a", `--app "com/a": a package's name is of letters`},
		{"--app", "com.a\nb", `--app "com.a\nb": a package's name is of letters`},
		{"--app", "10:", `--app "10:": a package's name is of letters`},
		{"--app", "x:com.a", `--app "x:com.a": before the colon stands the number of a user`},
		{"--app", "21474:com.a", `--app "21474:com.a": before the colon stands the number of a user of the phone, from 0 to 21473`},
		{"--not-app", "com.[a", `--not-app "com.[a": syntax error in pattern`},
	} {
		given := map[string][]string{c.flag: {c.value}}
		_, err := Parse(given["--uid"], given["--not-uid"], given["--app"], given["--not-app"])
		if err == nil || !plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %q: %v, want %s", c.flag, c.value, err, c.want)
		}
	}
}

func TestRules(t *testing.T) {
	const app = AppID
	type of = map[uint32]bool
	for _, c := range []struct {
		rule                     string
		uids, notUIDs            []uint32
		apps, notApps            string
		of                       of
		others                   bool
		admitted, refused, warns string // uids; warnings, one on each line
	}{
		{rule: "nothing", of: of{}, others: true, admitted: "0 10123 99999"},
		{rule: "uids", uids: []uint32{0, 10123}, of: of{0: true, 10123: true}, admitted: "0 10123", refused: "1 1010123 100000"},
		{rule: "not uids", notUIDs: []uint32{0}, of: of{0: false}, others: true, admitted: "1 100000", refused: "0"},
		{rule: "an app, for all users, and its sandbox", apps: "com.android.chrome", of: of{app | 10123: true, app | 20123: true},
			admitted: "10123 1010123 20123 1020123", refused: "0 10124 99123"},
		{rule: "an app but for one user", apps: "com.android.chrome", notUIDs: []uint32{10123, 10124}, of: of{app | 10123: true, app | 20123: true, 10123: false, 10124: false},
			admitted: "1010123 20123", refused: "10123", warns: "com.android.chrome is wanted, and its uid 10123 is not: packets of that are left out"},
		{rule: "an app of one user", apps: "10:com.android.chrome", of: of{1010123: true, 1020123: true}, admitted: "1010123 1020123", refused: "10123"},
		{rule: "an app of the first user", apps: "0:com.android.chrome", of: of{10123: true, 20123: true}, refused: "1010123"},
		{rule: "a glob", apps: "com.example.*", of: of{app | 10200: true, app | 20200: true, app | 10201: true, app | 20201: true}, refused: "10123"},
		{rule: "a glob without some", apps: "com.example.*", notApps: "com.example.two",
			of: of{app | 10200: true, app | 20200: true, app | 10201: false, app | 20201: false}, admitted: "10200", refused: "10201 1020201"},
		{rule: "not an app", notApps: "com.android.chrome", of: of{app | 10123: false, app | 20123: false}, others: true, admitted: "0 10200", refused: "10123 1020123"},
		{rule: "an app but for one user", apps: "com.android.chrome", notApps: "10:com.android.chrome",
			of: of{app | 10123: true, app | 20123: true, 1010123: false, 1020123: false}, admitted: "10123 1110123", refused: "1010123"},
		{rule: "an app but for one uid", apps: "com.android.chrome", notUIDs: []uint32{20123},
			of: of{app | 10123: true, app | 20123: true, 20123: false}, admitted: "10123 1020123", refused: "20123"},
		{rule: "a uid wanted and not", uids: []uint32{5, 6}, notUIDs: []uint32{5}, of: of{5: false, 6: true}, refused: "5",
			warns: "uid 5 is both wanted and not: its packets are left out"},
		{rule: "a uid wanted, and its app not", uids: []uint32{10123}, notApps: "com.android.chrome", of: of{10123: false, app | 10123: false, app | 20123: false}, refused: "10123",
			warns: "uid 10123 is both wanted and not: its packets are left out"},
		{rule: "an app wanted and not", apps: "com.android.chrome", notApps: "com.android.*,com.android.settings", of: of{app | 10123: false, app | 20123: false, app | 1000: false},
			warns: "uid 1000 is shared: packets of android, com.a, com.b, com.c, +1 are left out, too\ncom.android.chrome is both wanted and not, or its uid is: its packets are left out"},
		{rule: "a shared uid", apps: "com.google.android.gms", of: of{app | 10050: true, app | 20050: true},
			warns: "uid 10050 is shared: packets of com.google.android.gsf are captured, too"},
		{rule: "a shared uid, all of it", apps: "com.google.android.gms,com.google.android.gsf", of: of{app | 10050: true, app | 20050: true}},
		{rule: "a shared uid in part not", apps: "com.google.android.gms", notApps: "com.google.android.gsf", of: of{app | 10050: false, app | 20050: false},
			warns: "uid 10050 is shared: packets of com.google.android.gsf are captured, too\nuid 10050 is shared: packets of com.google.android.gms are left out, too\n" +
				"com.google.android.gms is both wanted and not, or its uid is: its packets are left out"},
		{rule: "what Android calls a uid", apps: "root", notApps: "dns", of: of{app | 0: true, app | 1051: false}, admitted: "0", refused: "1051"},
		{rule: "what is not installed", apps: "com.other", of: of{}, refused: "0 10123", warns: "com.other is not installed: it is captured when it is"},
		{rule: "what is not installed is not wanted", notApps: "com.other", of: of{}, others: true, warns: "com.other is not installed: it is left out when it is"},
		{rule: "what is spelt wrongly", apps: "com.android.crhome", of: of{}, warns: "com.android.crhome is not installed: it is captured when it is (or is it com.android.chrome?)"},
		{rule: "a part of a name", apps: "10:Settings", of: of{}, warns: "10:Settings is not installed: it is captured when it is (or is it com.android.settings?)"},
		{rule: "a glob for nothing yet", apps: "org.*", of: of{}, warns: "no package is like org.*: what is installed and is, is captured from then on"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s := Selection{UIDs: c.uids, NotUIDs: c.notUIDs, Apps: split(c.apps), NotApps: split(c.notApps)}
			r, said := book(t, phone).Rules(s)
			if diff := cmp.Diff(Rules{c.of, c.others}, r); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff(c.warns, strings.Join(said, "\n")); diff != "" {
				t.Errorf("warnings, -want +got:\n%s", diff)
			}
			checkAdmits(t, r, c.admitted, true)
			checkAdmits(t, r, c.refused, false)
		})
	}
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}

func checkAdmits(t *testing.T, r Rules, uids string, want bool) {
	t.Helper()
	for _, text := range strings.Fields(uids) {
		uid, err := parseUID("", text)
		if err != nil {
			t.Fatal(err)
		}
		if r.Admits(uid) != want {
			t.Errorf("of uid %d: %v", uid, !want)
		}
	}
}

func TestRulesWithoutList(t *testing.T) {
	b, _ := open(t, filepath.Join(t.TempDir(), "none", "packages.list"))
	r, said := b.Rules(Selection{Apps: []string{"com.a"}, NotApps: []string{"com.b"}, UIDs: []uint32{7}})
	if len(said) != 1 || said[0] != "no list of packages at "+b.path+": is this Android? --uid works" || r.Others || !r.Admits(7) || r.Admits(8) {
		t.Errorf("%v, %q", r, said)
	}
	if _, said := b.Rules(Selection{UIDs: []uint32{7}}); len(said) > 0 {
		t.Errorf("of uids it says %q", said)
	}
}

func TestIsolated(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for folders of other users")
	}
	b := book(t, phone)
	said := func() bool {
		_, said := b.Rules(Selection{Apps: []string{"com.android.chrome"}})
		return strings.Contains(strings.Join(said, "\n"), "isolated processes have user ids of their own")
	}
	for name, uid := range map[string]int{"self": 99001, "42": 10123} {
		folder := filepath.Join(b.proc, name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(folder, uid, 0); err != nil {
			t.Fatal(err)
		}
	}
	if said() {
		t.Error("without an isolated process it warns of those")
	}
	if err := os.Chown(filepath.Join(b.proc, "42"), 1099001, 0); err != nil {
		t.Fatal(err)
	}
	if !said() {
		t.Error("with an isolated process it does not warn of those")
	}
	_, others := b.Rules(Selection{NotApps: []string{"com.android.chrome"}})
	if want := "isolated processes have user ids of their own, which no file tells: packets of an app's are captured in spite of --not-app"; !slices.Equal(others, []string{want}) {
		t.Errorf("with --not-app it says %q", others)
	}
	if _, said := b.Rules(Selection{UIDs: []uint32{1}, NotApps: []string{"com.android.chrome"}}); len(said) > 0 {
		t.Errorf("with --uid it says %q", said)
	}
	if _, said := b.Rules(Selection{UIDs: []uint32{1}}); len(said) > 0 {
		t.Errorf("without --app it says %q", said)
	}
}
