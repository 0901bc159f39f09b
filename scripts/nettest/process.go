// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience is how long a test waits for what must happen.
const Patience = 20 * time.Second

// Process is a command that runs beside the test.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{}

	mu     sync.Mutex
	stderr strings.Builder
	grown  chan struct{} // closed and replaced when stderr grows
}

// Start starts cmd, whose standard error it reads, and waits until ready stands there. With "" it does not wait.
func Start(t testing.TB, cmd *exec.Cmd, ready string) *Process {
	t.Helper()
	hangUps()
	p := &Process{cmd: cmd, ended: make(chan struct{}), grown: make(chan struct{})}
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.ended
	})
	go func() {
		defer close(p.ended)
		lines := bufio.NewReader(pipe)
		for {
			line, err := lines.ReadString('\n')
			p.add(line)
			if err != nil {
				break
			}
		}
		_ = cmd.Wait()
	}()
	if ready != "" {
		p.Await(t, ready)
	}
	return p
}

// hangUps has commands end by SIGHUP where the tests do not, under nohup: what is ignored is inherited, and what is caught is not.
var hangUps = sync.OnceFunc(func() {
	if signal.Ignored(syscall.SIGHUP) {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
})

func (p *Process) add(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stderr.WriteString(line)
	close(p.grown)
	p.grown = make(chan struct{})
}

// Stderr returns what the process has said so far.
func (p *Process) Stderr() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// Pid is that of the process.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Await waits until text stands in the standard error.
func (p *Process) Await(t testing.TB, text string) {
	t.Helper()
	p.AwaitTimes(t, text, 1)
}

// AwaitTimes waits until it stands there so many times.
func (p *Process) AwaitTimes(t testing.TB, text string, times int) {
	t.Helper()
	patience := time.After(Patience)
	for {
		p.mu.Lock()
		said, grown := p.stderr.String(), p.grown
		p.mu.Unlock()
		if strings.Count(said, text) >= times {
			return
		}
		select {
		case <-grown:
		case <-p.ended:
			if strings.Count(p.Stderr(), text) < times {
				t.Fatalf("%s ended, code %d, without %q:\n%s", p.cmd, p.cmd.ProcessState.ExitCode(), text, p.Stderr())
			}
		case <-patience:
			t.Fatalf("%s does not say %q:\n%s", p.cmd, text, said)
		}
	}
}

// Signal sends a signal.
func (p *Process) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal %s: %v\n%s", p.cmd, err, p.Stderr())
	}
}

// Wait waits for the end and returns the exit code, -1 for a signal.
func (p *Process) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(Patience):
		t.Fatalf("%s does not end:\n%s", p.cmd, p.Stderr())
		return -1
	}
}

// Stop sends a signal and fails the test if the exit code is not 0.
func (p *Process) Stop(t testing.TB, s os.Signal) {
	t.Helper()
	p.Signal(t, s)
	if code := p.Wait(t); code != 0 {
		t.Fatalf("%s: code %d\n%s", p.cmd, code, p.Stderr())
	}
}

// HeldByPerf says how many descriptors this process has, and how many rings of perf events it has mapped.
func HeldByPerf(t testing.TB) string {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d descriptors, %d rings mapped", len(files), bytes.Count(maps, []byte("anon_inode:[perf_event]")))
}
