// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"droidtap/agent/plan"
	"droidtap/android"
)

// Hold attaches by TCX a program that does nothing, in the place of one that is not loaded yet: Update puts it there.
//
// The kernel returns from an attach, and from a Close, when no processor runs a program of before any more (kernel/bpf/tcx.c
// tcx_entry_sync), with the lock of all interfaces held: some 10 ms for each. From an Update it returns at once.
func Hold(ifc android.Interface, dir Direction) (Attachment, error) {
	prog, err := nothing()
	if err != nil {
		return nil, fmt.Errorf("hold %s of %s: %w", dir, ifc.Name, err)
	}
	defer prog.Close() // the link keeps it
	return Attach(plan.TCX, ifc, dir, prog)
}

// Idle has the program see no packet any more, but for those that processors are running it for: Close, of any link, waits for them.
func (l *Link) Idle() error {
	prog, err := nothing()
	if err != nil {
		return fmt.Errorf("take a tcx program off: %w", err)
	}
	defer prog.Close()
	return l.Update(prog)
}

// nothing loads a program that leaves each packet to the next one.
func nothing() (*ebpf.Program, error) {
	return ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name:         "nothing",
		Type:         ebpf.SchedCLS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TCX_NEXT
		License:      "GPL",
	}, ebpf.ProgramOptions{LogDisabled: true})
}
