// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// patience is how long a tool may take for what it must do.
const patience = 20 * time.Second

// process is a tool that captures.
type process struct {
	kind kind
	cmd  *exec.Cmd
	// When it was executed, and when it said that it captures: ns of the monotonic clock.
	started, ready int64
	ended          chan struct{}
	end            int64 // when it was gone; once ended

	mu   sync.Mutex
	said strings.Builder
}

// start starts a tool in a namespace, and waits until it captures. The context's end kills it.
func (b *bench) start(ctx context.Context, s nettest.Space, t tool, set setting) (*process, error) {
	argv := t.command(b.agent, set)
	inside := s.Command(append([]string{b.self, "enter", fmt.Sprint(captureCPU)}, argv...)...)
	cmd := exec.CommandContext(ctx, inside.Path, inside.Args[1:]...)
	apart(cmd)
	p := &process{kind: t.Kind, cmd: cmd, ended: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	started, child, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer started.Close()
	cmd.ExtraFiles = []*os.File{child} // startedFD
	err = cmd.Start()
	_ = child.Close()
	if err != nil {
		return nil, err
	}
	ready := make(chan int64, 1)
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			p.add(lines.Text())
			if strings.Contains(lines.Text(), t.Kind.ready()) {
				select {
				case ready <- monotonic():
				default: // it is said again
				}
			}
		}
		_ = cmd.Wait()
		p.end = monotonic()
	}()
	if err := binary.Read(started, le, &p.started); err != nil {
		p.kill()
		return nil, fmt.Errorf("%s: %s", t, p.text())
	}
	select {
	case p.ready = <-ready:
		return p, nil
	case <-p.ended:
		return nil, errors.Join(ctx.Err(), fmt.Errorf("%s ended: %s", strings.Join(argv, " "), p.text()))
	case <-time.After(patience):
		p.kill()
		return nil, fmt.Errorf("%s does not say %q: %s", strings.Join(argv, " "), t.Kind.ready(), p.text())
	}
}

func (p *process) add(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// dumpcap writes over its count of packets.
	p.said.WriteString(line[strings.LastIndexByte(line, '\r')+1:] + "\n")
}

// text is what it has said so far.
func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// kill is for where nothing is wanted of it any more.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// stop has it end as Ctrl-C does, and returns when that was asked for, by the monotonic clock. p.end is when it was gone.
func (p *process) stop() (asked int64, err error) {
	asked = monotonic()
	if err := p.cmd.Process.Signal(unix.SIGINT); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", p.kind, err, p.text())
	}
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.kill()
		return 0, fmt.Errorf("%s does not end: %s", p.kind, p.text())
	}
	if !p.cmd.ProcessState.Success() {
		return 0, fmt.Errorf("%s: %s: %s", p.kind, p.cmd.ProcessState, p.text())
	}
	return asked, nil
}

// still is how long a process must not run to be taken for asleep.
const still = 50 * time.Millisecond

// settling is what a tool still has to do behind a load, and how that is known to be done.
type settling struct {
	keeps time.Duration
	// blocks: nothing wakes the tool but the kernel, which hands over the last block, that is not full, after a time-out (libpcap with
	// TPACKET_V3). Where it slept, ran and sleeps again it has had that.
	blocks bool
	// complete tells that nothing is left to do.
	complete func() bool
}

// await waits until the process has done all and sleeps, and returns what it has used up to there.
// A process that never sleeps is measured after patience.
func (s settling) await(ctx context.Context, proc fs.FS, pid int) (last usage, err error) {
	start := time.Now()
	var slept, ran bool
	for {
		select {
		case <-ctx.Done():
			return last, ctx.Err()
		case <-time.After(still):
		}
		u, err := usageOf(proc, pid)
		if err != nil {
			return u, err
		}
		asleep := u.cpu == last.cpu
		ran = ran || slept && !asleep
		done := time.Since(start) > s.keeps || s.blocks && ran || s.complete != nil && s.complete()
		if asleep && done || time.Since(start) > s.keeps+patience {
			return u, nil
		}
		slept = slept || asleep
		last = u
	}
}
