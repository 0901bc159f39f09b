// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// captureCPU is the processor of who captures. The sender has the first one, with all that the kernel does in its name.
const captureCPU = 1

// niceness is the same for all.
const niceness = -10

// startedFD is where enterCommand writes when the command begins.
const startedFD = 3

// enterCommand is the sub-command that becomes another command, on one processor: CPU COMMAND...
// Just before, it writes the monotonic time in ns to startedFD.
func enterCommand(argv []string) error {
	cpu, err := strconv.Atoi(argv[0])
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[1])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the thread that executes is the one that is left
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("stay on processor %d: %w", cpu, err)
	}
	if err := hurry(); err != nil {
		return err
	}
	// ip-netns(8) has mounted /sys anew for this process, without the cgroups by which the agent tells others.
	if err := unix.Mount("none", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount cgroups: %w", err)
	}
	unix.CloseOnExec(startedFD)
	if err := binary.Write(os.NewFile(startedFD, "started"), le, monotonic()); err != nil {
		return fmt.Errorf("tell the time: %w", err)
	}
	return unix.Exec(path, argv[1:], os.Environ())
}

// hurry gives the thread its niceness.
func hurry() error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, niceness); err != nil {
		return fmt.Errorf("niceness %d: %w", niceness, err)
	}
	return nil
}

// apart has a command in a process group of its own: the terminal's Ctrl-C is for this process alone.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} }
