// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"droidtap/agent/plan"
	"droidtap/agent/plugin"
)

// refusing is a source whose programs no kernel takes.
type refusing struct{ numbered }

func (refusing) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	if t.Attempt > 0 {
		return plugin.ErrSmallest
	}
	for _, p := range spec.Programs {
		p.Instructions = p.Instructions[:1]
	}
	return nil
}

// TestProbesLeftOut has probes that cannot run on a kernel beside one that can.
func TestProbesLeftOut(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to load bpf programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	lacks := errors.New("no BTF fits")
	good := Probe{Name: "packet", Source: numbered{}}
	needy := Probe{Name: "needy", Source: numbered{}, Needs: []plan.Need{plan.NeedTypes}}
	refused := Probe{Name: "packet", Source: refusing{}}
	asked := func(p Probe) Probe { p.Asked = true; return p }
	for _, tc := range []struct {
		rule   string
		probes []Probe
		runs   int
		err    error
		said   string
	}{
		{"one whose needs are not met is left out", []Probe{needy, good}, 1, nil, "probe needy: offsets in the kernel's structs: not possible on this kernel: no BTF fits: it is left out"},
		{"one that the kernel refuses is left out", []Probe{good, refused}, 1, nil, "probe packet: this kernel cannot run the capture: "},
		{"one that was asked for is an error", []Probe{good, asked(needy)}, 1, plan.ErrImpossible, ""},
		{"one that was asked for and is refused is an error", []Probe{good, asked(refused)}, 1, ErrKernel, ""},
		{"the last one is an error", []Probe{needy}, 0, plan.ErrImpossible, ""},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			var said bytes.Buffer
			c := &capture{Config: Config{Probes: tc.probes, Buffer: 1 << 19, Log: slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn}))}}
			target := plugin.Target{Plan: plan.Plan{Variants: []plan.Variant{plan.Legacy}}, Log: c.Log, Wakeup: 1}
			err := c.load(target, plan.Kernel{Types: lacks})
			t.Cleanup(func() {
				if err := c.unload(); err != nil {
					t.Error(err)
				}
			})
			if !errors.Is(err, tc.err) {
				t.Errorf("error %v, want %v", err, tc.err)
			}
			if len(c.running) != tc.runs {
				t.Errorf("%d probes run, want %d", len(c.running), tc.runs)
			}
			if !strings.Contains(said.String(), tc.said) || tc.said == "" && said.Len() > 0 {
				t.Errorf("it is said:\n%s", said.String())
			}
		})
	}
}
