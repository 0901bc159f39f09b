// SPDX-License-Identifier: Apache-2.0

// Package daemon makes the agent a process of its own: in a session of its own and out of the cgroup of whoever started
// it, with a pid file that is locked, and a log that does not grow without end.
package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// mark is set in the environment of the process that Start starts.
const mark = "DROIDTAP_DAEMON"

// readiness is what the daemon says last on the standard error that it shares with who started it.
const readiness = 0

// Start runs this program once more, with the same arguments, in a session of its own: there Started returns true. What
// it says on its standard error goes to stderr, and its standard input is the caller's, until it calls Ready or ends, and then Start
// returns: with 0, or the exit code. A signal
// that ends the caller ends the new process, too.
func Start(stderr io.Writer) (code int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("start a daemon: %w", err)
	}
	defer r.Close()
	defer w.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("start a daemon: %w", err)
	}
	defer null.Close()
	inheritNothing()
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(caught)
	// Not by its path, behind which something else may be by now. os/exec would be 14 kB more on the phone.
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env: append(os.Environ(), mark+"=1"), Files: []*os.File{os.Stdin, null, w}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start a daemon: %w", err)
	}
	w.Close() // or relay would never see the other end close
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-caught:
				_ = child.Signal(syscall.SIGTERM) // it may have ended by itself
			case <-over:
				return
			}
		}
	}()
	if relay(stderr, r) {
		return 0, nil
	}
	state, err := child.Wait()
	if err != nil {
		return 0, fmt.Errorf("wait for the daemon: %w", err)
	}
	if state.ExitCode() < 0 {
		return 0, fmt.Errorf("the daemon ended before it was ready: %v", state)
	}
	return state.ExitCode(), nil
}

// inheritNothing keeps what the caller was given from the daemon: adb shell would wait for the end of whoever holds its pipes.
func inheritNothing() {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// relay copies what the daemon says, and returns whether it is ready.
func relay(to io.Writer, from io.Reader) bool {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		text, _, ready := bytes.Cut(b[:n], []byte{readiness})
		_, _ = to.Write(text) // a reader that went away is no reason to stop
		if ready || err != nil {
			return ready
		}
	}
}

// Started tells whether Start has started this process. It is called once, before others are started, which are not to
// take themselves for a daemon, too.
func Started() bool {
	started := os.Getenv(mark) != ""
	if started {
		_ = os.Unsetenv(mark) // fails for no name that is a constant
	}
	return started
}

// Ready has Start return 0 in the process that started this one. Standard input is empty from then on, and standard error
// the log, for what the runtime says.
func Ready(l *Log) error {
	// Standard output is /dev/null already. Before somebody hears that it is ready, who may wait for the ends of what it was given.
	failed := unix.Dup3(int(os.Stdout.Fd()), int(os.Stdin.Fd()), 0)
	_, err := os.Stderr.Write([]byte{readiness})
	if errors.Is(err, unix.EPIPE) {
		err = nil // whoever started it has not waited
	}
	return errors.Join(failed, err, l.takeStderr())
}
