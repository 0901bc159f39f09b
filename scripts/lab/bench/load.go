// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// traffic is a load, and how much of each packet captures keep.
type traffic struct {
	name            string
	size            int // of a frame, bytes
	packets, second int // in a round, and in a second; 0: as many as can be
	flags           string
}

var traffics = []traffic{
	{"64 B, 96 kept, 20,000/s", 64, 10_000, 20_000, "-s 96"},
	{"64 B, 96 kept, flood", 64, 20_000, 0, "-s 96"},
	{"1,400 B whole, 20,000/s", 1400, 10_000, 20_000, ""},
	{"1,400 B whole, flood", 1400, 10_000, 0, ""},
	unread,
}

// unread is more than there is room for, and comes while the capture is stopped.
var unread = traffic{"1,400 B whole, nobody reads", 1400, 5_000, 0, ""}

const tcpdump = "tcpdump"

// tools are what the loads are for.
func tools(agent string) []tool {
	all := []tool{{tcpdump, []string{"tcpdump", "-n", "-Z", "root"}}}
	for _, object := range objects {
		all = append(all, tool{"agent, " + object, []string{agent, "--object", object, "--comments", "first"}})
	}
	return all
}

// loads measures what each tool makes of each load, in turns.
func (w *wire) loads(agent string) (all []Load, err error) {
	for _, t := range traffics {
		rounds := make([][]Load, len(tools(agent)))
		for range turns {
			alone, err := w.during(nil, t)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			for i, one := range tools(agent) {
				one.argv = slices.Concat(one.argv, strings.Fields(t.flags))
				l, err := w.load(one, t, alone)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", one.name, t.name, err)
				}
				rounds[i] = append(rounds[i], l)
			}
		}
		for _, of := range rounds {
			all = append(all, sum(of))
		}
	}
	return all, nil
}

// sum returns the packets of all rounds, and the medians of what they took.
func sum(rounds []Load) Load {
	all := Load{Load: rounds[0].Load, Tool: rounds[0].Tool}
	var total, reader []float64
	for _, l := range rounds {
		all.Offered += l.Offered
		all.Captured += l.Captured
		all.Dropped += l.Dropped
		total, reader = append(total, l.Total), append(reader, l.Reader)
	}
	all.Total, all.Reader = median(total), median(reader)
	return all
}

// load measures what one tool makes of one load.
func (w *wire) load(one tool, t traffic, alone taken) (l Load, err error) {
	c, err := w.start(one, "")
	if err != nil {
		return l, err
	}
	took, err := w.during(c, t)
	o, stopped := c.stop()
	if err != nil {
		return l, err
	}
	per := func(ns int) float64 { return float64(ns) / float64(took.came) }
	return Load{
		Load: t.name, Tool: one.name, Offered: took.came, Captured: o.captured, Dropped: o.dropped,
		Total: per(took.machine - alone.machine), Reader: per(took.reader),
	}, stopped
}

// taken is how many packets came in, and what all threads of the machine took for it, and those of a capture, in ns.
type taken struct{ came, machine, reader int }

// settle is longer than any tool lets a packet wait.
const settle = 2500 * time.Millisecond

// during returns what a load takes, with a capture or without.
func (w *wire) during(c *capture, t traffic) (d taken, err error) {
	debug.FreeOSMemory() // that of the last file, which would be collected meanwhile
	time.Sleep(settle)   // what belongs to the start
	before, err := w.taken(c)
	if err != nil {
		return d, err
	}
	stopped := c != nil && t == unread
	if stopped {
		err = c.signal(unix.SIGSTOP)
	}
	if err == nil {
		err = w.far.Do(0, func() error { return send(t) })
	}
	if stopped {
		err = errors.Join(err, c.signal(unix.SIGCONT)) // or it would not end
	}
	if err != nil {
		return d, err
	}
	time.Sleep(settle)
	after, err := w.taken(c)
	return taken{after.came - before.came, after.machine - before.machine, after.reader - before.reader}, err
}

// taken returns it, from the phone's start on.
func (w *wire) taken(c *capture) (d taken, err error) {
	l, err := w.handle.LinkByIndex(w.index)
	if err != nil {
		return d, fmt.Errorf("count packets: %w", err)
	}
	d.came = int(l.Attrs().Statistics.RxPackets)
	if c != nil {
		if d.reader, err = c.processor(); err != nil {
			return d, err
		}
	}
	all, err := os.ReadFile("/proc/schedstat")
	if err != nil {
		return d, err
	}
	d.machine, err = busy(string(all))
	return d, err
}

// busy returns what all threads have taken of processors, in ns: the seventh figure of each (sched-stats.rst of the kernel).
func busy(schedstat string) (ns int, err error) {
	for line := range strings.Lines(schedstat) {
		fields := strings.Fields(line)
		if len(fields) < 8 || !strings.HasPrefix(fields[0], "cpu") {
			continue
		}
		n, err := strconv.Atoi(fields[7])
		if err != nil {
			return 0, fmt.Errorf("/proc/schedstat: %w", err)
		}
		ns += n
	}
	if ns == 0 {
		return 0, fmt.Errorf("/proc/schedstat has no processor that ran: %s", schedstat)
	}
	return ns, nil
}
