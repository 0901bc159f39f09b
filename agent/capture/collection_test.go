// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
)

// TestCollection loads programs that share maps, of which the kernel may refuse one.
func TestCollection(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for bpf")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	array := func() *ebpf.MapSpec {
		return &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
	}
	// Returns what is in a map.
	reads := func(name string) *ebpf.ProgramSpec {
		return &ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.StoreImm(asm.R10, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, 0).WithReference(name),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "exit"),
			asm.LoadMem(asm.R0, asm.R0, 0, asm.DWord),
			asm.Return().WithSymbol("exit"),
		}}
	}
	broken := &ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Return()}} // of nothing
	own, err := ebpf.NewMap(array())
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := own.Put(uint32(0), uint64(7)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rule     string
		programs map[string]*ebpf.ProgramSpec
		refused  string
	}{
		{"all load", map[string]*ebpf.ProgramSpec{"a": reads("shared"), "b": reads("shared"), "c": reads("made")}, ""},
		{"one is refused", map[string]*ebpf.ProgramSpec{"a": reads("shared"), "b": broken, "c": reads("made")}, "program b: "},
		{"several are refused: the first by name is told", map[string]*ebpf.ProgramSpec{"c": broken, "b": broken.Copy()}, "program b: "},
		{"a map is missing", map[string]*ebpf.ProgramSpec{"a": reads("none")}, "program a: no map none"},
		{"there is no program", nil, ""},
	} {
		t.Run(c.rule, func(t *testing.T) {
			spec := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{"shared": array(), "made": array()}, Programs: c.programs}
			coll, err := newCollection(spec, map[string]*ebpf.Map{"shared": own}, ebpf.ProgramOptions{LogDisabled: true})
			if c.refused != "" {
				if err == nil || !strings.HasPrefix(err.Error(), c.refused) {
					t.Fatalf("error %v, want %s", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer coll.Close()
			if len(coll.Programs) != len(c.programs) || len(coll.Maps) != 2 {
				t.Fatalf("%d programs and %d maps", len(coll.Programs), len(coll.Maps))
			}
			for name, prog := range coll.Programs {
				want := map[bool]uint32{true: 7, false: 0}[name != "c"]
				if got, err := prog.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil || got != want {
					t.Errorf("program %s returns %d, want %d: %v", name, got, want, err)
				}
			}
		})
	}
}
