// SPDX-License-Identifier: Apache-2.0

// Command capture measures captures: the agent beside tcpdump and dumpcap, in turns, on the same traffic in namespaces that it makes and
// removes. It prints tables, and writes JSON and a chart. The exit code is 1 where something failed, and where the agent's counter of
// what it dropped is not what is missing in its file; of no clock. Needs root, two processors, TCX (6.6), ip, sysctl, tcpdump and dumpcap.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

func main() {
	if err := command(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(argv []string) error {
	switch {
	case len(argv) > 2 && argv[0] == "enter":
		return enterCommand(argv[1:])
	case len(argv) == 2 && argv[0] == "send":
		return sendCommand(argv[1])
	}
	var o options
	f := flag.NewFlagSet("capture", flag.ExitOnError)
	f.StringVar(&o.agent, "agent", "build/host/agent", "the agent")
	f.StringVar(&o.phone, "phone", "build/arm64/agent", "the phone's agent, for its size alone")
	f.IntVar(&o.rounds, "rounds", 5, "rounds")
	f.StringVar(&o.load, "load", "", "only loads whose names match this regular expression")
	f.StringVar(&o.only, "only", strings.Join(sections, ","), "what to measure")
	f.StringVar(&o.json, "json", "", "write all figures to this file")
	f.StringVar(&o.chart, "chart", "", "draw the chart to this file")
	_ = f.Parse(argv) // it exits
	if f.NArg() > 0 {
		return fmt.Errorf("%q is not expected", f.Args())
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	return o.run(ctx)
}

// options are those of the command line.
type options struct {
	agent, phone, load, only, json, chart string
	rounds                                int
}

var sections = []string{"loads", "programs", "growth", "start", "idle"}

func (o options) run(ctx context.Context) error {
	if err := o.check(); err != nil {
		return err
	}
	r, err := o.measure(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted; all that was made is removed")
		}
		return err
	}
	if err := o.save(r); err != nil {
		return err
	}
	if len(r.Wrong) > 0 {
		return fmt.Errorf("%d times the agent's counters were wrong", len(r.Wrong))
	}
	return nil
}

// check tells what is missing.
func (o options) check() error {
	if os.Geteuid() != 0 {
		return errors.New("not root, which namespaces and bpf need")
	}
	if runtime.NumCPU() < 2 {
		return errors.New("one processor: sender and capture need one each")
	}
	for name, of := range map[string]string{"tcpdump": "tcpdump", "dumpcap": "wireshark-common", "ip": "iproute2", "sysctl": "procps"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is missing: apt install %s", name, of)
		}
	}
	for s := range strings.SplitSeq(o.only, ",") {
		if !slices.Contains(sections, s) {
			return fmt.Errorf("-only %s: there are %s", s, strings.Join(sections, ","))
		}
	}
	return nil
}

// measure measures what was asked for, and removes what it has made, also where it is interrupted.
func (o options) measure(ctx context.Context) (r report, err error) {
	b, err := o.bench()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	leave, err := enterCgroup(b.proc)
	if err != nil {
		return r, fmt.Errorf("make a cgroup: %w", err)
	}
	defer func() { err = errors.Join(err, leave()) }()
	chosen, err := regexp.Compile(o.load)
	if err != nil {
		return r, err
	}
	r = report{Machine: describe(), Rounds: o.rounds, Binaries: sizes(o.agent, o.phone)}
	var asked []load
	for _, l := range loads() {
		if chosen.MatchString(l.Name) {
			asked = append(asked, l)
		}
	}
	steps := map[string]func() error{
		"loads": func() error {
			rounds, err := b.compare(ctx, asked)
			for _, l := range asked {
				r.Results = append(r.Results, summarize(l, rounds)...)
			}
			return err
		},
		"programs": func() (err error) { r.Programs, err = b.programCosts(ctx); return err },
		"growth":   func() (err error) { r.Curves, err = b.curves(ctx); return err },
		"start":    func() (err error) { r.StartUps, err = b.startUps(ctx); return err },
		"idle":     func() (err error) { r.Idle, err = b.idles(ctx); return err },
	}
	for _, s := range sections {
		if !slices.Contains(strings.Split(o.only, ","), s) {
			continue
		}
		start := time.Now()
		if err := steps[s](); err != nil {
			return r, err
		}
		fmt.Fprintf(b.log, "%s: %.0f s\n", s, time.Since(start).Seconds())
	}
	r.Wrong, r.Targets = b.wrong, r.targets()
	return r, nil
}

func (o options) bench() (*bench, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, err
	}
	b := &bench{rounds: o.rounds, proc: os.DirFS("/proc"), nets: map[wanted]*network{}, log: os.Stderr}
	var err error
	if b.agent, err = filepath.Abs(o.agent); err != nil {
		return nil, err
	}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.softirq, err = pidOf(b.proc, "ksoftirqd/0"); err != nil {
		return nil, err
	}
	// In memory, where writing is the same for all.
	b.dir, err = os.MkdirTemp("/dev/shm", "droidtap-bench-")
	return b, err
}

// save prints and writes the report.
func (o options) save(r report) error {
	if err := r.write(os.Stdout); err != nil {
		return err
	}
	if o.json != "" {
		text, err := json.MarshalIndent(r, "", "\t")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	groups, ok := r.chart()
	if o.chart == "" || !ok {
		return nil
	}
	m := r.Machine
	note := fmt.Sprintf("make bench, medians of %d rounds: Linux %s, %s, rings of %d MiB", r.Rounds, m.Kernel, m.CPU, bufferMiB)
	var chart strings.Builder
	if err := writeChart(&chart, groups, note); err != nil {
		return err
	}
	return os.WriteFile(o.chart, []byte(chart.String()), 0o644)
}
