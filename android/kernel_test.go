// SPDX-License-Identifier: Apache-2.0

package android

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRelease(t *testing.T) {
	for _, c := range []struct {
		rule, uname string
		want        Release
		kmi         string
	}{
		{"Pixel 6", "5.10.177-android13-4-00003-ga7208022a7ea-ab10815828", Release{5, 10, 177, 13, 4, ""}, "android13-5.10"},
		{"android12", "5.10.198-android12-9-00019-g6efebf1322d6-ab11471183", Release{5, 10, 198, 12, 9, ""}, "android12-5.10"},
		{"firmware suffix and page size", "6.12.23-android16-5-abA075FXXS5BZD2-4k", Release{6, 12, 23, 16, 5, ""}, "android16-6.12"},
		{"generation 0 is a generation", "5.4.42-android12-0-foo", Release{5, 4, 42, 12, 0, ""}, "android12-5.4"},
		{"no suffix", "5.15.41-android13-8", Release{5, 15, 41, 13, 8, ""}, "android13-5.15"},
		{"vendor kernel is no GKI", "4.14.117-perf+", Release{4, 14, 117, 0, 0, ""}, ""},
		{"qgki is no GKI", "5.4.86-qgki-g0123", Release{5, 4, 86, 0, 0, ""}, ""},
		{"replaced suffix", "5.10.101-HayaseYuuka-v3.5-android12", Release{5, 10, 101, 0, 0, ""}, ""},
		{"generation must end", "5.10.101-android12-9x", Release{5, 10, 101, 0, 0, ""}, ""},
		{"host", "6.18.44-fc-v657", Release{6, 18, 44, 0, 0, ""}, ""},
		{"no patch level", "6.12", Release{6, 12, 0, 0, 0, ""}, ""},
		{"number beyond int", "5.10.99999999999999999999-android12-9", Release{5, 10, 0, 12, 9, ""}, "android12-5.10"},
		{"empty", "", Release{}, ""},
		{"not a release", "Linux", Release{}, ""},
	} {
		t.Run(c.rule, func(t *testing.T) {
			c.want.Raw = c.uname
			got := ParseRelease(c.uname)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("ParseRelease(%q) (-want +got):\n%s", c.uname, diff)
			}
			if got.KMI() != c.kmi {
				t.Errorf("KMI() of %q is %q, want %q", c.uname, got.KMI(), c.kmi)
			}
		})
	}
}

func FuzzParseRelease(f *testing.F) {
	f.Add("5.10.177-android13-4-00003-ga7208022a7ea-ab10815828")
	f.Add("4.19.113-perf+")
	f.Add("")
	f.Fuzz(func(t *testing.T, uname string) {
		r := ParseRelease(uname)
		if r.Raw != uname || r.Major < 0 || r.Minor < 0 || r.Patch < 0 || r.Android < 0 || r.Generation < 0 {
			t.Errorf("ParseRelease(%q) = %+v", uname, r)
		}
		kmi := r.KMI()
		if kmi != "" && (!strings.Contains(uname, "-android") || kmi != fmt.Sprintf("android%d-%d.%d", r.Android, r.Major, r.Minor)) {
			t.Errorf("KMI() of %q is %q", uname, kmi)
		}
	})
}
