// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

const shell = "/system/bin/sh"

// su is a setuid-root stand-in for the su of Magisk, or of KernelSU when the
// property lab.su (or LAB_SU) is "kernelsu".
//
// Magisk: su [USER] [-c COMMAND...], the words after -c joined with spaces
// (native/src/core/su, case 'c'). KernelSU: su is /system/bin/sh with root, so
// the words after -c COMMAND become $0, $1... (KernelSU issue 305).
func su(args []string) error {
	if os.Geteuid() != 0 {
		return errors.New("not setuid root")
	}
	if style() == "kernelsu" {
		return become(0, append([]string{"sh"}, args...))
	}
	uid, argv := 0, []string{"sh"}
	for i, arg := range args {
		if arg == "-c" {
			argv = append(argv, "-c", strings.Join(args[i+1:], " "))
			break
		}
		if strings.HasPrefix(arg, "-") {
			continue // -, -l, -mm and so on make no difference here
		}
		var err error
		if uid, err = lookup(arg); err != nil {
			return err
		}
	}
	return become(uid, argv)
}

// style is the property lab.su, or LAB_SU. Not by getprop: its shell and its sed
// would be most of what a su costs under emulation.
func style() string {
	if s := os.Getenv("LAB_SU"); s != "" {
		return s
	}
	props, _ := os.ReadFile("/etc/props")
	for line := range strings.Lines(string(props)) {
		if s, ok := strings.CutPrefix(line, "lab.su="); ok {
			return strings.TrimSpace(s)
		}
	}
	return ""
}

func lookup(name string) (int, error) {
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	uid, err := strconv.Atoi(name)
	if err != nil {
		return 0, fmt.Errorf("unknown user %s", name)
	}
	return uid, nil
}

// become runs the shell as uid, in place of this process.
func become(uid int, argv []string) error {
	if err := syscall.Setgroups(nil); err != nil {
		return err
	}
	if err := syscall.Setresgid(uid, uid, uid); err != nil {
		return err
	}
	if err := syscall.Setresuid(uid, uid, uid); err != nil {
		return err
	}
	return syscall.Exec(shell, argv, os.Environ())
}
