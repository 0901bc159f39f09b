// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// attach attaches a program of five instructions that goes on with the filter in the slot, and keeps nothing of a
// packet while the slot is empty.
//
// The filter itself may be too long for a socket: the kernel counts its bytes, and those of the one that it replaces,
// against the option memory of the socket (net/core/filter.c __sk_filter_charge), 20 KiB in all before 6.7
// (commit 4944566706b2). The slot has no such limit, and is as atomic when it is written (kernel/bpf/arraymap.c
// bpf_fd_array_map_update_elem: xchg).
func attach(fd int, filter *ebpf.Program) (slot *ebpf.Map, err error) {
	slot, err = ebpf.NewMap(&ebpf.MapSpec{Name: "filter", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("make a place for the filter: %w", err)
	}
	if err := enter(fd, slot, filter); err != nil {
		return nil, errors.Join(err, slot.Close())
	}
	return slot, nil
}

func enter(fd int, slot *ebpf.Map, filter *ebpf.Program) error {
	entry, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:    "enter_filter",
		Type:    ebpf.SocketFilter,
		License: "Apache-2.0",
		Instructions: asm.Instructions{
			asm.LoadMapPtr(asm.R2, slot.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return fmt.Errorf("load the program that enters the filter: %w", err)
	}
	defer entry.Close()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, entry.FD()); err != nil {
		return fmt.Errorf("attach the program that enters the filter: %w", err)
	}
	if err := slot.Put(uint32(0), filter); err != nil {
		return fmt.Errorf("set the filter: %w", err)
	}
	return nil
}
