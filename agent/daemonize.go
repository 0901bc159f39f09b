// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"

	"droidtap/agent/capture"
	"droidtap/agent/control"
	"droidtap/agent/daemon"
	"droidtap/agent/plugin"
)

// groupUnattended is where --help lists the options of this file.
const groupUnattended = "Unattended"

func unattendedFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "daemon", Category: groupUnattended,
			Usage: "capture in the background, as a process of its own; returns when everything is attached"},
		&cli.StringFlag{Name: "pid-file", Category: groupUnattended,
			Usage: "write the process's number to `FILE`, and lock it: a second agent with it ends at once", DefaultText: "of a daemon " + daemonFile("pid")},
		&cli.StringFlag{Name: "socket", Category: groupUnattended,
			Usage: "listen to the agent's commands (status, stop ...) at `SOCKET`", DefaultText: "of a daemon " + daemonFile("sock")},
		&cli.StringFlag{Name: "log", Category: groupUnattended,
			Usage: "messages go to `FILE`, and to the terminal only until everything is attached; those before the last 256 KiB to FILE.1. The capture counts as unattended: it waits for room on a full disk", DefaultText: "of a daemon " + daemonFile("log")},
		&cli.StringFlag{Name: "ready-file", Category: groupUnattended,
			Usage: "make `FILE` when everything is attached, and remove it at the end"},
		&cli.IntFlag{Name: "stats", Category: groupUnattended, DefaultText: "never",
			Usage: "say the counters every `SEC` seconds, and in a log only where they have changed"},
		&cli.BoolFlag{Name: "json", Category: groupUnattended, Usage: "with --stats: say the counters as JSON, in one line each"},
	}
}

// daemonFile is where a daemon's file of that kind is, if no option says so.
func daemonFile(kind string) string { return filepath.Join(daemon.Directory(), "agent."+kind) }

// unattended is what a capture has that others may ask, or that runs by itself. Its fields are set before the capture
// starts, but for those that say otherwise.
type unattended struct {
	daemon  bool
	alone   bool // nobody looks: a daemon, or one with --log
	rotates bool // the capture can go on in another file
	json    bool
	said    *messages
	recent  *recent
	stale   string // whose pid file was taken over, and its path; "": nobody's
	ready   string // --ready-file
	stats   time.Duration

	control *capture.Control
	label   string
	since   time.Time
	expr    func() string // what is captured at present; nil where no source tells
	phase   atomic.Int32
	last    atomic.Pointer[capture.Progress]
	asking  chan struct{}  // has an element while the output is asked for something
	stops   chan os.Signal // signals that end the capture, and requests that do
	closers []func() error // in the order in which they came

	saying sync.Mutex
	before totals // guarded by saying: what was said last
}

// What phase says of a capture.
const (
	starting = iota
	capturing
	ending
)

var phases = [...]string{starting: "starting", capturing: "capturing", ending: "ending"}

// attend makes of the flags what a capture needs to be left alone, and puts it into cfg. The caller closes it also after an error.
func attend(c *cli.Context, said *messages, cfg *capture.Config) (*unattended, error) {
	u := &unattended{
		daemon: c.Bool("daemon"), alone: c.Bool("daemon") || c.IsSet("log"), json: c.Bool("json"), ready: c.String("ready-file"), said: said,
		recent: &recent{}, control: &capture.Control{}, label: cfg.Label, since: time.Now(),
		asking: make(chan struct{}, 1), stops: make(chan os.Signal, 2),
	}
	if err := u.check(c, cfg); err != nil {
		return u, err
	}
	if err := u.claim(c); err != nil {
		return u, err
	}
	cfg.Control = u.control
	for _, p := range cfg.Probes {
		if e, ok := p.Source.(interface{ Expression() string }); ok {
			u.expr = e.Expression
		}
	}
	persists, ok := cfg.Output.(interface{ Persists() bool })
	cfg.Persist = u.alone || ok && persists.Persists()
	cfg.Log = u.recent.of(cfg.Log)
	if u.stale != "" {
		cfg.Log.Warn("an agent ended without removing its pid file, which is taken over" + u.stale)
	}
	u.announce(cfg)
	return u, nil
}

// check refuses flags that go together badly.
func (u *unattended) check(c *cli.Context, cfg *capture.Config) error {
	out, _ := cfg.Output.(plugin.Stdouter)
	toStdout := out != nil && out.Stdout()
	_, rotator := cfg.Output.(plugin.Rotator)
	u.rotates = rotator && !toStdout
	for _, name := range []string{"pid-file", "socket", "log", "ready-file"} {
		if c.IsSet(name) && c.String(name) == "" {
			return plugin.Usagef("--%s needs a name", name)
		}
	}
	switch {
	case u.daemon && toStdout:
		return plugin.Usagef("a daemon has no standard output: choose a file with -w")
	case c.IsSet("stats") && c.Int("stats") <= 0:
		return plugin.Usagef("--stats %d: statistics come every second or more seldom", c.Int("stats"))
	case c.IsSet("json") && !c.IsSet("stats"):
		return plugin.Usagef("--json is how --stats says the counters, and there is no --stats")
	}
	u.stats = time.Duration(c.Int("stats")) * time.Second
	return nil
}

// claim takes the files of a capture that others may ask: from then on no other agent has them.
func (u *unattended) claim(c *cli.Context) error {
	pid, socket, log := c.String("pid-file"), c.String("socket"), c.String("log")
	if u.daemon && (pid == "" || socket == "" || log == "") {
		if err := daemon.MakeDirectory(); err != nil {
			return err
		}
		pid, socket, log = cmp.Or(pid, daemonFile("pid")), cmp.Or(socket, daemonFile("sock")), cmp.Or(log, daemonFile("log"))
	}
	if pid != "" {
		file, err := daemon.Lock(pid)
		if err != nil {
			return usable("--pid-file", err)
		}
		u.closers = append(u.closers, file.Remove)
		if file.Stale != "" {
			u.stale = file.Stale + ": " + pid
		}
	}
	if log != "" {
		l, err := daemon.OpenLog(log)
		if err != nil {
			return err
		}
		u.said.to(l)
		u.closers = append(u.closers, l.Close)
	}
	if u.daemon {
		// Nothing is lost by one that stays: a warning is all there is to do.
		if err := daemon.LeaveCgroups(); err != nil {
			fmt.Fprintf(u.said, "agent: the daemon may end with what it was started from: %s\n", oneLine(err.Error()))
		}
	}
	if u.ready != "" {
		if err := remove(u.ready); err != nil {
			return err // it would say that another capture is ready
		}
	}
	if socket == "" {
		return nil
	}
	return u.listen(c.Context, socket)
}

// usable makes a usage error of the one that a directory is open to others.
func usable(option string, err error) error {
	if errors.Is(err, daemon.ErrOpen) {
		return plugin.Usagef("%s %w", option, err)
	}
	return err
}

func (u *unattended) listen(ctx context.Context, socket string) error {
	socket, err := daemon.Resolve(socket)
	if err != nil {
		return usable("--socket", err)
	}
	s, err := control.Listen(socket)
	if err != nil {
		return err
	}
	s.Handle, s.Code, s.Refuse = u.handle, exitCode, exitPermission
	u.closers = append(u.closers, s.Close)
	go s.Serve(ctx)
	return nil
}

// announce has cfg.Ready tell those that wait for it.
func (u *unattended) announce(cfg *capture.Config) {
	ready := cfg.Ready
	cfg.Ready = func(file string) {
		u.phase.CompareAndSwap(starting, capturing) // or it is told to end already
		if u.ready != "" {
			if err := touch(u.ready); err != nil {
				cfg.Log.Warn("it is not said that the capture is ready", "because", err)
			}
			u.closers = append(u.closers, func() error { return remove(u.ready) })
		}
		ready(file)
		if !u.alone {
			return
		}
		log := u.said.onlyLog()
		if !u.daemon {
			return
		}
		if err := daemon.Ready(log); err != nil {
			cfg.Log.Warn(err.Error())
		}
	}
}

// remove removes what there may be.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// touch makes a file that is complete when it is seen.
func touch(path string) error {
	beside := path + ".new"
	if err := remove(beside); err != nil {
		return err
	}
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(beside, path)
}

// close gives back what was claimed, in reverse order.
func (u *unattended) close() error {
	var errs []error
	for _, f := range slices.Backward(u.closers) {
		errs = append(errs, f())
	}
	u.closers = nil
	return errors.Join(errs...)
}

// messages is where a capture says something: standard error, a log, or both while somebody waits for a daemon to be
// ready.
type messages struct {
	mu     sync.Mutex
	stderr io.Writer
	log    *daemon.Log
}

func (m *messages) to(l *daemon.Log) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = l
}

// onlyLog has messages go to the log alone, and returns it.
func (m *messages) onlyLog() *daemon.Log {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stderr = io.Discard
	return m.log
}

func (m *messages) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.log != nil {
		_, _ = m.log.Write(p) // never fails
	}
	return m.stderr.Write(p)
}
