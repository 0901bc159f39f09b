// SPDX-License-Identifier: Apache-2.0

package android

import (
	"fmt"
	"regexp"
	"strconv"
)

// Release is a kernel release as uname -r tells it. It is a hint only: vendors replace the tail and some forks
// spoof it per process, so probe for a feature rather than conclude it from here.
type Release struct {
	Major, Minor, Patch int
	Android             int    // NN of androidNN; 0 on a kernel that is not a GKI
	Generation          int    // KMI generation; 0 where Android is 0
	Raw                 string // what was parsed, unchanged
}

var (
	versionForm = regexp.MustCompile(`^(\d+)\.(\d+)(?:\.(\d+))?`)
	// The form is w.x.y-androidNN-k-suffix: source.android.com, "GKI versioning".
	gkiForm = regexp.MustCompile(`^\d+\.\d+\.\d+-android(\d+)-(\d+)(?:-|$)`)
)

// ParseRelease takes the output of uname -r. It never fails: what it cannot read is 0.
func ParseRelease(uname string) Release {
	r := Release{Raw: uname}
	if m := versionForm.FindStringSubmatch(uname); m != nil {
		r.Major, r.Minor, r.Patch = number(m[1]), number(m[2]), number(m[3])
	}
	if m := gkiForm.FindStringSubmatch(uname); m != nil {
		r.Android, r.Generation = number(m[1]), number(m[2])
	}
	return r
}

// KMI returns the kernel module interface the release belongs to, such as "android13-5.15", or "" where the kernel is
// not a GKI. All kernels of one KMI lay out the structs alike (source.android.com, "Stable kernel module interface").
func (r Release) KMI() string {
	if r.Android == 0 {
		return ""
	}
	return fmt.Sprintf("android%d-%d.%d", r.Android, r.Major, r.Minor)
}

// number reads digits; those too long for an int count as 0, like those that are not there.
func number(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}
