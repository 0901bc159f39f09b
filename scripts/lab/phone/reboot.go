// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// reboot ends the phone as Android's init does where /data is busy (system/core/init/reboot.cpp, TryUmountAndFsck): what it
// did not start itself, as nothing that came by su, is killed without a word; then /data is unmounted.
func reboot([]string) error {
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE, unix.SIGTERM) // the shell that adbd gave us ends with adbd
	for range 500 {
		if err := killAll(); err != nil {
			return err
		}
		err := unix.Unmount("/data", 0)
		if err == nil || err == unix.EINVAL { // EINVAL: it is not a mount point
			unix.Sync()
			return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		}
		time.Sleep(10 * time.Millisecond) // what was killed takes a moment to go
	}
	return fmt.Errorf("unmount /data: it stays busy")
}

// killAll kills every process but this one, PID 1 and the kernel's own.
func killAll() error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		if _, err := os.Readlink("/proc/" + e.Name() + "/exe"); err != nil {
			continue // a kernel thread has none
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	return nil
}
