// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// tool is what captures: its name in the report, and a command line without interface and file.
type tool struct {
	name string
	argv []string
}

const buffer = 4096 // KiB, of each tool

// capture is a tool that runs.
type capture struct {
	cmd  *exec.Cmd
	file string
	rest chan string // what it says on stderr from then on
}

// start starts a tool on the device and waits until it captures.
func (w *wire) start(t tool, expr string) (c *capture, err error) {
	dir, err := os.MkdirTemp("/tmp", "bench")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	c = &capture{file: filepath.Join(dir, "capture"), rest: make(chan string, 1)}
	c.cmd = w.near.Command(slices.Concat(t.argv, []string{"-i", device, "-w", c.file, "-B", strconv.Itoa(buffer)}, strings.Fields(expr))...)
	pipe, err := c.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(pipe)
	for said := ""; ; {
		line, err := lines.ReadString('\n')
		said += line
		if err != nil {
			_ = c.cmd.Wait()
			return nil, fmt.Errorf("%s does not begin: %s", t.name, said)
		}
		if strings.Contains(line, "capturing on ") || strings.Contains(line, "listening on ") {
			break
		}
	}
	go func() {
		all, _ := io.ReadAll(lines)
		c.rest <- string(all)
	}()
	return c, nil
}

// outcome is what a capture has at its end.
type outcome struct{ captured, dropped int }

// stop ends it, counts what is in its file and removes that.
func (c *capture) stop() (o outcome, err error) {
	defer os.RemoveAll(filepath.Dir(c.file))
	if err := c.signal(unix.SIGINT); err != nil {
		return o, err
	}
	said := <-c.rest
	if err := c.cmd.Wait(); err != nil {
		return o, fmt.Errorf("%s: %w: %s", c.cmd, err, said)
	}
	if o.dropped, err = dropped(said); err != nil {
		return o, fmt.Errorf("%s: %w", c.cmd, err)
	}
	f, err := nettest.Read(c.file)
	o.captured = len(f.Packets)
	return o, err
}

func (c *capture) signal(s unix.Signal) error {
	if err := c.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %s: %w", c.cmd, err)
	}
	return nil
}

var droppedLine = regexp.MustCompile(`(?m)^(\d+) packets dropped by \w+`)

// dropped returns what a tool's last lines say that it lost: by the kernel, by the interface, by itself.
func dropped(said string) (n int, err error) {
	all := droppedLine.FindAllStringSubmatch(said, -1)
	if len(all) == 0 {
		return 0, fmt.Errorf("does not say what it lost: %s", said)
	}
	for _, one := range all {
		i, err := strconv.Atoi(one[1])
		if err != nil {
			return 0, err
		}
		n += i
	}
	return n, nil
}

// processor returns what its threads have taken of processors, in ns (schedstat, Documentation/scheduler/sched-stats.rst).
func (c *capture) processor() (ns int, err error) {
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		var took, waited, slices int
		if _, err := fmt.Sscan(string(b), &took, &waited, &slices); err != nil {
			return 0, fmt.Errorf("read %s: %w", name, err)
		}
		ns += took
	}
	return ns, nil
}
