// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"droidtap/agent/kernel"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/btf"
)

// wanting is a source that would like to have types.
type wanting struct{ numbered }

func (wanting) WantsTypes() bool { return true }

// TestTypesSaid has probes that need, want or ignore types, on kernels whose types hold, hold in part or cannot be had.
func TestTypesSaid(t *testing.T) {
	none := errors.New("no BTF fits")
	own := btf.Source{Kind: btf.Kernel, Name: "vmlinux"}
	all := kernel.Types{Offsets: kernel.Offsets{SockUID: 592, TaskTgid: 1484}, Source: own}
	tasks := kernel.Types{Offsets: kernel.Offsets{TaskTgid: 1484}, Source: own}
	ignores := Probe{Source: numbered{}}
	wants := Probe{Source: wanting{}}
	needs := Probe{Source: numbered{}, Needs: []plan.Need{plan.NeedTypes}}
	for _, tc := range []struct {
		rule           string
		probe          Probe
		btf            string
		found          found
		said           string // the level of what is said, "" for nothing
		types, sockUID error  // of the kernel, by then
	}{
		{"all hold", wants, "", found{all, nil}, "INFO", nil, nil},
		{"nobody asks for any", ignores, "", found{err: kernel.ErrNoTypes}, "", kernel.ErrNoTypes, kernel.ErrNoTypes},
		{"a probe would like to have some", wants, "auto", found{err: none}, "INFO", none, none},
		{"it may have none", wants, "none", found{err: kernel.ErrNoTypes}, "", kernel.ErrNoTypes, kernel.ErrNoTypes},
		{"a probe needs some", needs, "", found{err: none}, "WARN", none, none},
		{"a probe needs some and may have none", needs, "none", found{err: kernel.ErrNoTypes}, "WARN", kernel.ErrNoTypes, kernel.ErrNoTypes},
		{"the user chose some", wants, "/btf", found{err: none}, "WARN", none, none},
		{"that of the owner is not among those that hold", wants, "", found{tasks, none}, "INFO", nil, none},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			var said bytes.Buffer
			c := &capture{Config: Config{Probes: []Probe{tc.probe}, BTF: tc.btf, Log: slog.New(slog.NewTextHandler(&said, nil))}}
			var k plan.Kernel
			got, err := c.types(tc.found, &k)
			if err != nil || got != tc.found.types {
				t.Errorf("%+v, %v", got, err)
			}
			if k.Types != tc.types || k.SockUID != tc.sockUID {
				t.Errorf("the kernel's types: %v, that of the owner: %v, want %v and %v", k.Types, k.SockUID, tc.types, tc.sockUID)
			}
			if text := said.String(); tc.said == "" && text != "" || !strings.Contains(text, "level="+tc.said) && tc.said != "" {
				t.Errorf("it is said: %q, want %q", text, tc.said)
			}
		})
	}
}

// TestTypesLookedFor has what asks for types, of a folder that is not there.
func TestTypesLookedFor(t *testing.T) {
	const nowhere = "/nowhere"
	for _, tc := range []struct {
		rule  string
		probe Probe
		btf   string
		want  error
	}{
		{"the user", Probe{Source: numbered{}}, nowhere, kernel.ErrChoice},
		{"nobody", Probe{Source: numbered{}}, "auto", kernel.ErrNoTypes},
		{"a probe, and the user does not want it", Probe{Source: wanting{}}, "none", kernel.ErrNoTypes},
	} {
		c := &capture{Config: Config{Probes: []Probe{tc.probe}, BTF: tc.btf, Log: slog.New(slog.DiscardHandler)}}
		f := <-c.findTypes("6.1.0")
		if !errors.Is(f.err, tc.want) {
			t.Errorf("%s: %v, want %v", tc.rule, f.err, tc.want)
		}
		if _, err := c.types(f, &plan.Kernel{}); plugin.IsUsage(err) != (tc.want == kernel.ErrChoice) {
			t.Errorf("%s: error %v", tc.rule, err)
		}
	}
}
