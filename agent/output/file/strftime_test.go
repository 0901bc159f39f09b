// SPDX-License-Identifier: Apache-2.0

package file

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestStrftime compares with date(1), over times at which the parts of a date change.
func TestStrftime(t *testing.T) {
	if _, err := exec.LookPath("date"); err != nil {
		t.Skip("there is no date")
	}
	var formats []string
	for _, c := range "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%" {
		formats = append(formats, "%"+string(c))
	}
	formats = append(formats, "x-%Y%m%d-%H%M%S.pcapng", "%Ey%Od", "100%%d")
	utc := time.UTC
	east := time.FixedZone("XYZ", 5*3600+45*60)
	for _, at := range []time.Time{
		time.Date(2026, 11, 27, 14, 3, 9, 0, utc), time.Date(2027, 1, 1, 0, 0, 0, 0, utc), time.Date(2027, 1, 3, 12, 0, 0, 0, utc),
		time.Date(2028, 2, 29, 23, 59, 59, 0, utc), time.Date(2028, 12, 31, 1, 0, 0, 0, utc), time.Date(2018, 12, 31, 13, 5, 0, 0, utc),
		time.Date(2023, 1, 1, 11, 0, 0, 0, utc), time.Date(2024, 1, 1, 10, 0, 0, 0, east), time.Date(2005, 1, 2, 3, 4, 5, 0, east),
	} {
		name, offset := at.Zone()
		cmd := exec.Command("date", "-d", fmt.Sprintf("@%d", at.Unix()), "+"+strings.Join(formats, "|"))
		// In POSIX, the sign of TZ is the other way round.
		cmd.Env = []string{"LC_ALL=C", fmt.Sprintf("TZ=<%s>-%02d:%02d", name, offset/3600, offset/60%60)}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Split(strings.TrimSuffix(string(out), "\n"), "|")
		for i, f := range formats {
			if got := strftime(f, at); got != want[i] {
				t.Errorf("%v: %s is %q, date says %q", at, f, got, want[i])
			}
		}
	}
}

func TestStrftimeLeavesTheRest(t *testing.T) {
	for _, format := range []string{"", "plain", "%", "x%", "%E", "%q", "%Eq", "100%-d"} {
		if got := strftime(format, time.Unix(0, 0)); got != format {
			t.Errorf("%q became %q", format, got)
		}
	}
}

func TestDated(t *testing.T) {
	for format, want := range map[string]bool{
		"x.pcapng": false, "100%%": false, "%": false, "%q": false, "%n": false,
		"%H": true, "%s": true, "%M": true, "%S": true, "%y": true, "%a": true, "%d": true, "d/%F/x": true,
	} {
		if got := dated(format); got != want {
			t.Errorf("%q: %v", format, got)
		}
	}
}
