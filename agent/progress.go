// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"droidtap/agent/capture"
	"droidtap/agent/control"
	"droidtap/agent/plugin"
)

// totals are what became of the packets so far, as README describes them.
type totals struct {
	Captured     uint64 `json:"captured"`
	Received     uint64 `json:"received"`
	Dropped      uint64 `json:"dropped"`
	Ignored      uint64 `json:"ignored"`
	Unattributed uint64 `json:"unattributed"`
	Refused      uint64 `json:"refused"`
	Gaps         int    `json:"gaps"`
	File         string `json:"file"`
	Files        int    `json:"files"`
	Paused       string `json:"paused,omitempty"`
}

func totalsOf(p capture.Progress) totals {
	n := totals{
		Captured: p.Captured, Received: p.Received, Dropped: p.Dropped, Ignored: p.Ignored, Unattributed: p.Unattributed,
		Refused: p.Refused, File: p.File, Files: p.Files, Paused: oneLine(p.Failing),
	}
	for _, g := range p.Gaps {
		n.Gaps += g.Times
	}
	return n
}

// String is what SIGUSR1 and --stats print: tcpdump's words in one line.
func (n totals) String() string {
	text := fmt.Sprintf("%d packets captured, %d received by filter, %d dropped by kernel, %d dropped by agent, %d unattributed, %d left out, %d gaps, %d files, %s",
		n.Captured, n.Received, n.Dropped, n.Ignored, n.Unattributed, n.Refused, n.Gaps, n.Files, n.File)
	if n.Paused != "" {
		text += ", paused: " + n.Paused
	}
	return text
}

// write writes one fact a line.
func (n totals) write(w io.Writer) {
	fmt.Fprintf(w, "%d packets captured\n", n.Captured)
	fmt.Fprintf(w, "%d packets received by filter\n", n.Received)
	fmt.Fprintf(w, "%d packets dropped by kernel\n", n.Dropped)
	fmt.Fprintf(w, "%d packets dropped by agent\n", n.Ignored)
	fmt.Fprintf(w, "%d packets unattributed\n", n.Unattributed)
	fmt.Fprintf(w, "%d packets left out in the agent, behind the kernel\n", n.Refused)
	fmt.Fprintf(w, "%d gaps\n", n.Gaps)
	fmt.Fprintf(w, "%d files\n", n.Files)
	if n.File != "" {
		fmt.Fprintf(w, "file %s\n", n.File)
	}
	if n.Paused != "" {
		fmt.Fprintf(w, "paused: %s\n", n.Paused)
	}
}

// stats are counters at a time.
type stats struct {
	Time time.Time `json:"time"`
	totals
}

// status is what agent status tells.
type status struct {
	Pid     int       `json:"pid"`
	Version string    `json:"version"`
	State   string    `json:"state"`
	Label   string    `json:"label"`
	Filter  string    `json:"filter"`
	Since   time.Time `json:"since"`
	totals
	Warnings []warning `json:"warnings"` // the last ones, the oldest first
}

func (s status) write(w io.Writer) {
	fmt.Fprintf(w, "%s on %s since %s\n", s.State, s.Label, s.Since.Format(time.DateTime))
	fmt.Fprintf(w, "pid %d\n", s.Pid)
	if s.Filter != "" {
		fmt.Fprintf(w, "filter %s\n", strings.Join(strings.Fields(s.Filter), " ")) // it may have several lines
	}
	if s.State == phases[capturing] { // else there are none
		s.totals.write(w)
	}
	for _, warned := range s.Warnings {
		fmt.Fprintf(w, "warning %s\n", warned)
	}
}

// errIgnored is an error that says when something can be asked for.
var errIgnored = errors.New("the capture has not begun, or has ended")

// errStuck is that of a capture whose output blocks: a FIFO that nobody reads.
var errStuck = errors.New("what it is written to takes nothing at present")

// outputPatience is how long the output may take for what is asked of it.
const outputPatience = 3 * time.Second

// ask has f, which waits for the output, done for as long as outputPatience. The error is errStuck, and then f may go on: status and stop
// must be answered all the same.
func (u *unattended) ask(f func()) error {
	late := time.After(outputPatience)
	select {
	case u.asking <- struct{}{}:
	case <-late:
		return errStuck
	}
	done := make(chan struct{})
	go func() {
		f()
		close(done)
		<-u.asking
	}()
	select {
	case <-done:
		return nil
	case <-late:
		return errStuck
	}
}

// progress is what has become of the capture so far; with errStuck, until it was asked the last time.
func (u *unattended) progress() (capture.Progress, error) {
	var p capture.Progress
	var err error
	if stuck := u.ask(func() { p, err = u.control.Progress() }); stuck != nil {
		if last := u.last.Load(); last != nil {
			return *last, stuck
		}
		return capture.Progress{}, stuck
	}
	if err == nil {
		u.last.Store(&p)
	}
	return p, err
}

func (u *unattended) flush() error {
	var err error
	if stuck := u.ask(func() { err = u.control.Flush() }); stuck != nil {
		return stuck
	}
	return err
}

// handle does what is asked for over the socket.
func (u *unattended) handle(ctx context.Context, r control.Request) (any, error) {
	var result any
	var err error
	switch r.Do {
	case control.Status:
		return u.status()
	case control.Stop:
		u.stop()
		return struct{}{}, nil
	case control.Rotate:
		result, err = u.rotate()
	case control.Stats:
		var p capture.Progress
		p, err = u.progress()
		result = stats{time.Now(), totalsOf(p)}
	case control.Flush:
		result, err = struct{}{}, u.flush()
	case control.Filter:
		result, err = struct{}{}, u.control.Replace(ctx, *r.Expression)
	}
	if errors.Is(err, capture.ErrNotRunning) {
		err = errIgnored
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Do, err)
	}
	return result, nil
}

// rotated is the answer to rotate: the file that was ended, "" where it has no packets yet.
type rotated struct {
	File string `json:"file"`
}

func (r rotated) write(w io.Writer) {
	if r.File == "" {
		fmt.Fprintln(w, "the file has no packets yet")
	} else {
		fmt.Fprintln(w, r.File)
	}
}

func (u *unattended) rotate() (any, error) {
	if !u.rotates {
		return nil, plugin.Usagef("what this capture is written to cannot be followed by another file")
	}
	var r rotated
	var err error
	if stuck := u.ask(func() { r.File, err = u.control.Rotate() }); stuck != nil {
		return nil, stuck
	}
	return r, err
}

func (u *unattended) status() (any, error) {
	s := status{Pid: os.Getpid(), Version: version, State: phases[u.phase.Load()], Label: u.label, Since: u.since}
	if u.expr != nil {
		s.Filter = u.expr()
	}
	p, err := u.progress()
	s.totals = totalsOf(p)
	s.Warnings = u.recent.all() // not before: they tell of what the totals say
	switch {
	case err == errStuck:
		s.Paused = err.Error()
	case err != nil && !errors.Is(err, capture.ErrNotRunning):
		return nil, err
	}
	return s, nil
}

// stop ends the capture as a signal does: the second one gives up what is on its way to the file.
func (u *unattended) stop() {
	select {
	case u.stops <- syscall.SIGTERM:
	default: // two of them wait already
	}
}

// told says where something that a signal asked for could not be done.
func (u *unattended) told(what string, err error) {
	if err != nil && !errors.Is(err, capture.ErrNotRunning) {
		fmt.Fprintf(u.said, "agent: %s: %s\n", what, oneLine(err.Error()))
	}
}

// repeat says the counters time and again, without waking a phone that sleeps.
func (u *unattended) repeat(ctx context.Context) {
	ticker := time.NewTicker(u.stats)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			u.say(!u.alone)
		}
	}
}

// say says the counters, and without always only if they have changed: a log is on the phone's flash.
func (u *unattended) say(always bool) {
	p, err := u.progress()
	if err != nil {
		u.told("statistics", err)
		return
	}
	n := totalsOf(p)
	u.saying.Lock()
	defer u.saying.Unlock()
	if !always && n == u.before {
		return
	}
	u.before = n
	if !u.json {
		fmt.Fprintf(u.said, "agent: %s\n", n)
		return
	}
	var line bytes.Buffer
	if err := json.NewEncoder(&line).Encode(stats{time.Now(), n}); err == nil {
		_, _ = u.said.Write(line.Bytes()) // it is standard error that cannot be written to
	}
}
