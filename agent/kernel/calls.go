// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Calls are the answers to system calls that a capture begins with; nil is a yes.
type Calls struct {
	// Command is bpf(2) with a command that no kernel has. The kernel itself says unix.EINVAL to whoever may use bpf(2),
	// and SELinux is not asked (security/selinux/hooks.c selinux_bpf); nil: not made.
	Command error
	Map     error // BPF_MAP_CREATE of an array of four bytes
	Program error // BPF_PROG_LOAD of two instructions for tc
	Packet  error // socket(2) of AF_PACKET
}

// AskCalls makes the calls, and undoes them at once. Nothing is attached or bound.
//
// Ask to explain a refusal, not before: the filter that Android's zygote puts on apps kills for a call that it does not
// allow (SECCOMP_RET_TRAP, which the runtime does not survive).
func AskCalls() Calls {
	return Calls{Command: askCommand(), Map: askMap(), Program: askProgram(), Packet: askPacket()}
}

func askCommand() error {
	const command = 1 << 30
	var attr [128]byte
	_, _, errno := unix.Syscall(unix.SYS_BPF, command, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno == 0 {
		return errors.New("bpf command 2^30: done")
	}
	return fmt.Errorf("bpf command 2^30: %w", errno)
}

func askMap() error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return err
	}
	return m.Close()
}

func askProgram() error {
	prog, err := trivial(ebpf.SchedCLS, 0)
	if err != nil {
		return err
	}
	return prog.Close()
}

func askPacket() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	return unix.Close(fd)
}

// trialName is for whoever lists programs while ours are loaded.
const trialName = "trial"

// trivial loads a program that returns a number. Nothing is in it that a verifier could refuse.
func trivial(kind ebpf.ProgramType, result int32) (*ebpf.Program, error) {
	return ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name:         trialName,
		Type:         kind,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, result), asm.Return()},
		License:      "GPL",
	}, ebpf.ProgramOptions{LogDisabled: true})
}
