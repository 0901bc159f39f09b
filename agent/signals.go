// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// grace is what an output gets after the second signal: one that works ends within.
const grace = time.Second

// signals returns a context that ends with the first signal, or when nobody is
// left to see what the agent writes, and a channel that is closed soon after the
// second signal: then what is on its way to the file is given up.
func signals(parent context.Context, toStdout bool) (ctx context.Context, abort <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	second := make(chan struct{})
	caught := make(chan os.Signal, 2)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	// A write to a closed pipe is an error, not the end of the process.
	signal.Ignore(syscall.SIGPIPE)
	go func() {
		<-caught
		cancel()
		<-caught
		time.AfterFunc(grace, func() { close(second) })
	}()
	watched := []int{int(os.Stdout.Fd()), int(os.Stderr.Fd())}
	if toStdout {
		watched = watched[:1]
	}
	go func() {
		if deserted(watched) {
			cancel()
		}
	}()
	return ctx, second, func() {
		signal.Stop(caught)
		cancel()
	}
}

// deserted waits until each of the descriptors that has a reader has lost it, and
// returns false at once if none has one (a file, /dev/null). An adb shell that is
// interrupted at the PC takes its ends of the pipes away and signals nobody: its
// uid may not signal root's processes.
func deserted(fds []int) bool {
	var poll []unix.PollFd
	for _, fd := range fds {
		if hasReader(fd) {
			poll = append(poll, unix.PollFd{Fd: int32(fd)}) // POLLERR and POLLHUP are always told
		}
	}
	for left := len(poll); left > 0; {
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return false
		}
		for i := range poll {
			if poll[i].Revents != 0 {
				poll[i] = unix.PollFd{Fd: -1}
				left--
			}
		}
	}
	return len(poll) > 0
}

// hasReader tells whether fd is a pipe, a socket or a terminal.
func hasReader(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return false
	}
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	kind := st.Mode & unix.S_IFMT
	return kind == unix.S_IFIFO || kind == unix.S_IFSOCK || err == nil
}

// sameTerminal tells whether two files are one terminal.
func sameTerminal(a, b *os.File) bool {
	var s, t unix.Stat_t
	if unix.Fstat(int(a.Fd()), &s) != nil || unix.Fstat(int(b.Fd()), &t) != nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(a.Fd()), unix.TCGETS)
	return err == nil && s.Rdev == t.Rdev && s.Mode&unix.S_IFMT == t.Mode&unix.S_IFMT
}
