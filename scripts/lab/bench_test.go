// SPDX-License-Identifier: Apache-2.0

//go:build bench

package lab

import (
	"cmp"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"droidtap/scripts/lab/bench"
)

// TestBench is make bench-arm64: what captures cost and lose on the kernels of DROIDTAP_LAB_SUITES, into the file DROIDTAP_BENCH.
func TestBench(t *testing.T) {
	suites := strings.Split(cmp.Or(os.Getenv("DROIDTAP_LAB_SUITES"), "bullseye,trixie"), ",")
	reports := make([]bench.Report, len(suites))
	t.Run("on", func(t *testing.T) {
		for i, suite := range suites {
			t.Run(suite, func(t *testing.T) {
				t.Parallel()
				p := boot(t, suite, "LAB_ICOUNT=1")
				p.push(t, os.Getenv("DROIDTAP_AGENT"), agent)
				cmd := p.adb("shell", "su -c '/lab/phone bench -agent "+agent+"'")
				cmd.Env = append(cmd.Env, "LAB_ADB_TIMEOUT=1500")
				cmd.Stderr = os.Stderr
				out, err := cmd.Output()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if err := json.Unmarshal(out, &reports[i]); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			})
		}
	})
	if t.Failed() {
		return
	}
	for _, r := range reports {
		if err := r.Table(os.Stdout); err != nil {
			t.Error(err)
		}
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", r.Kernel, err)
		}
	}
	b, err := json.MarshalIndent(reports, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(os.Getenv("DROIDTAP_BENCH"), append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
