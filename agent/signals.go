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

// signals returns a context that ends with the first signal that ends a process, or when nobody is
// left to see what the agent writes, and a channel that is closed soon after the
// second signal: then what is on its way to the file is given up. The signals that ask for something are u's, which may be nil.
func signals(parent context.Context, toStdout bool, u *unattended) (ctx context.Context, abort <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancel(parent)
	second := make(chan struct{})
	caught := make(chan os.Signal, 2)
	if u != nil {
		caught = u.stops
	}
	ends := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT}
	if (u == nil || !u.rotates) && !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		ends = append(ends, syscall.SIGHUP)
	}
	signal.Notify(caught, ends...)
	// A write to a closed pipe is an error, not the end of the process.
	signal.Ignore(syscall.SIGPIPE)
	if u != nil {
		u.hear(ctx)
	}
	go func() {
		<-caught
		cancel()
		<-caught
		time.AfterFunc(grace, func() { close(second) })
	}()
	if u == nil || !u.daemon { // nobody looks at a daemon
		watched := []int{int(os.Stdout.Fd()), int(os.Stderr.Fd())}
		if toStdout {
			watched = watched[:1]
		}
		go func() {
			if deserted(watched) {
				cancel()
			}
		}()
	}
	return ctx, second, func() {
		signal.Stop(caught)
		cancel()
	}
}

// hear does what signals ask for, one after the other: SIGUSR1 for the counters, SIGUSR2 for what was captured so far to be written,
// and SIGHUP for another file where there may be one.
func (u *unattended) hear(ctx context.Context) {
	context.AfterFunc(ctx, func() { u.phase.Store(ending) })
	asked := make(chan os.Signal, 4)
	wanted := []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2}
	if u.rotates {
		wanted = append(wanted, syscall.SIGHUP)
	}
	nohup := signal.Ignored(syscall.SIGHUP)
	// For good: they would end the process that is about to end well.
	signal.Notify(asked, wanted...)
	hadTerminal := hasTerminal()
	go func() {
		for s := range asked {
			switch {
			case s == syscall.SIGUSR1:
				u.say(true)
			case s == syscall.SIGUSR2:
				u.told("flush", u.flush())
			case hadTerminal && !hasTerminal(): // it was hung up, and did not ask for a file
				if !nohup {
					u.stop()
				}
				hadTerminal = false // the next one is somebody's who asks
			default:
				_, err := u.rotate()
				u.told("rotate", err)
			}
		}
	}()
	if u.stats > 0 {
		go u.repeat(ctx)
	}
}

// hasTerminal tells whether the process has a controlling terminal. It loses one that is hung up (drivers/tty/tty_io.c
// __tty_hangup).
func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
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
