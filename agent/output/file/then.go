// SPDX-License-Identifier: Apache-2.0

package file

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
)

// mostCommands is how many commands of -z may run at once: one that never ends must not fill up the phone.
const mostCommands = 16

// commands are those of -z. Files are closed on a goroutine of its own, and each command is waited for on another one.
type commands struct {
	text    string // for the shell
	running atomic.Int32
	ended   func(path string, err error) // for tests; nil: nothing
}

// run starts the command for a file. The name is its argument and never part of what the shell reads, since it may be anyone's.
func (c *commands) run(path string) {
	if c.running.Add(1) > mostCommands {
		c.running.Add(-1)
		slog.Warn("the command of -z is not run: so many still do", "path", path, "running", mostCommands)
		return
	}
	argument := path
	if strings.HasPrefix(path, "-") {
		argument = "./" + path // an option otherwise
	}
	p, err := c.start(argument)
	if err != nil {
		c.end(path, err)
		return
	}
	go func() {
		state, err := p.Wait()
		if err == nil && !state.Success() {
			err = fmt.Errorf("%v", state)
		}
		c.end(path, err)
	}()
}

func (c *commands) start(argument string) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	shell := "/system/bin/sh"
	if _, err := os.Stat(shell); err != nil {
		shell = "/bin/sh"
	}
	return os.StartProcess(shell, []string{"sh", "-c", c.text + ` "$1"`, "sh", argument}, &os.ProcAttr{
		// Not standard output: a program may read that. A session of its own, or Ctrl-C would end it, too.
		Files: []*os.File{null, os.Stderr, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
}

func (c *commands) end(path string, err error) {
	c.running.Add(-1)
	if err != nil {
		slog.Warn("the command of -z failed", "path", path, "because", err)
	}
	if c.ended != nil {
		c.ended(path, err)
	}
}
