// SPDX-License-Identifier: Apache-2.0

// Command agent captures packets on a rooted Android phone and writes pcapng.
package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"droidtap/agent/capability"
	"droidtap/agent/capture"
	"droidtap/agent/daemon"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
)

func main() {
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit code.
func run(argv []string, stdout, stderr io.Writer) int {
	return report(stderr, perform(newApp(stdout, stderr), argv))
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:      "agent",
		Flags:     append(ownFlags(), unattendedFlags()...),
		Writer:    stdout,
		ErrWriter: stderr,
		Action:    action,
		Commands:  append([]*cli.Command{doctorCommand()}, controlCommands()...),
	}
	for _, p := range plugin.Probes() {
		app.Flags = append(app.Flags, p.Flags...)
		app.Commands = append(app.Commands, p.Commands...)
	}
	for _, o := range plugin.Outputs() {
		app.Flags = append(app.Flags, o.Flags...)
		app.Commands = append(app.Commands, o.Commands...)
	}
	return app
}

func ownFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "count", Aliases: []string{"c"}, Category: plugin.GroupCapture,
			Usage: "stop after `N` packets", DefaultText: "no limit"},
		&cli.StringFlag{Name: "duration", Category: plugin.GroupCapture,
			Usage: "stop after `TIME`, sleep included: 90, 90s, 1h30m", DefaultText: "no limit"},
		&cli.BoolFlag{Name: "packet-buffered", Aliases: []string{"U"}, Category: plugin.GroupCapture,
			Usage: "write each packet at once, not within a second or each 64 KiB"},
		&cli.StringFlag{Name: optionConfig, Category: plugin.GroupCapture,
			Usage: "take flags from `FILE` too, one a line, what is behind a flag its value, and last the expression; # begins a comment. Where the command line gives the same, that holds, but for lists, which have both"},
		&cli.StringFlag{Name: "format", Category: plugin.GroupOutput, Value: "pcapng",
			Usage: "write `pcapng|pcap`; pcap has no names of interfaces, apps and processes, no comments and no counters, and no Ethernet headers where interfaces have several link types (linux_sll2)"},
		&cli.BoolFlag{Name: "P", Category: plugin.GroupOutput, Usage: "the same as --format pcap, as dumpcap has it"},
		&cli.IntFlag{Name: "buffer-size", Aliases: []string{"B"}, Category: plugin.GroupCapture, Value: defaultBuffer,
			Usage: "keep up to `KIB` of packets in the kernel until they are read"},
		&cli.BoolFlag{Name: "n", Category: plugin.GroupAdvanced, Count: new(int),
			Usage: "taken for tcpdump's sake: nothing is printed that could be a name"},
		&cli.BoolFlag{Name: "p", Category: plugin.GroupAdvanced,
			Usage: "taken for tcpdump's sake: interfaces are never put into promiscuous mode"},
		&cli.StringFlag{Name: "backend", Category: plugin.GroupAdvanced, Value: "auto",
			Usage: "see packets by `auto|tcx|tc|packet`; tc is a filter in clsact, packet a packet socket"},
		&cli.StringFlag{Name: "object", Category: plugin.GroupAdvanced, Value: "auto",
			Usage: "load the variant `auto|ring|legacy` of the bpf object"},
		&cli.StringFlag{Name: "btf", Category: plugin.GroupAdvanced, Value: "auto",
			Usage: "take the kernel's types from `auto|none|FILE|DIR`; those are checked before they are used, and only what needs them does without where they are wrong"},
		&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Category: plugin.GroupAdvanced, Count: new(int),
			Usage: "say what is done and why; -vv says more"},
		&cli.BoolFlag{Name: "version", Category: plugin.GroupInstead, Usage: "print the version"},
		&cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Category: plugin.GroupInstead, Usage: "print this"},
	}
}

func action(c *cli.Context) error {
	if c.Bool("version") {
		_, err := fmt.Fprintln(c.App.Writer, versionText())
		return err
	}
	for _, p := range plugin.Probes() {
		if p.Instead == nil {
			continue
		}
		if done, err := p.Instead(c); done || err != nil {
			return err
		}
	}
	// Before anything is read that could not be read again, as an expression from a pipe.
	unshed := capability.Shed()
	if c.Bool("daemon") && !daemon.Started() {
		return startDaemon(c)
	}
	said := &messages{stderr: c.App.ErrWriter}
	c.App.ErrWriter = said
	cfg, err := configure(c)
	if err != nil {
		return err
	}
	return capturePackets(c, said, cfg, unshed)
}

// capturePackets captures as configured, and says how that went. unshed is why it has capabilities that it does not need.
func capturePackets(c *cli.Context, said *messages, cfg capture.Config, unshed error) (err error) {
	stdout, _ := cfg.Output.(plugin.Stdouter)
	toStdout := stdout != nil && stdout.Stdout()
	if toStdout && sameTerminal(os.Stdout, os.Stderr) {
		// adb exec-out gives one raw terminal for both: not a word among the packets.
		said.onlyLog()
	}
	u, err := attend(c, said, &cfg)
	defer func() { err = errors.Join(err, u.close()) }()
	if err != nil {
		return err
	}
	if unshed != nil {
		cfg.Log.Warn("the capture keeps all capabilities", "error", unshed)
	}
	for _, text := range notes(c.App) {
		cfg.Log.Warn(text)
	}
	slog.SetDefault(cfg.Log) // what a plugin says while it opens something
	ctx, abort, stop := signals(c.Context, toStdout, u)
	defer stop()
	sum, err := capture.Run(ctx, abort, cfg)
	u.phase.Store(ending) // also where it ended by itself
	if !sum.Began && !u.alone {
		return err
	}
	report(c.App.ErrWriter, err) // also in a daemon's log
	if sum.Began {
		printSummary(c.App.ErrWriter, sum)
	}
	return reported(err)
}

// defaultBuffer is KiB for packets that wait in the kernel; minBuffer holds the
// largest packet with room for others.
const (
	defaultBuffer = 4096
	minBuffer     = 512
	maxBuffer     = 1 << 20
)

// configure makes a capture of the flags, without touching the kernel.
func configure(c *cli.Context) (capture.Config, error) {
	cfg := capture.Config{
		Application: "droidtap agent " + version,
		CommandLine: strings.Join(os.Args, " "),
		Unbuffered:  c.Bool("packet-buffered"),
		Log:         newLog(c.App.ErrWriter, c.Count("verbose")),
	}
	count := c.Int("count")
	if c.IsSet("count") && count <= 0 {
		return cfg, plugin.Usagef("-c %d: a count of packets is 1 or more", count)
	}
	cfg.Most = uint64(count)
	var err error
	if cfg.Classic, err = classic(c); err != nil {
		return cfg, err
	}
	if cfg.Duration, err = duration(c); err != nil {
		return cfg, err
	}
	kib := c.Int("buffer-size")
	if kib <= 0 || kib > maxBuffer {
		return cfg, plugin.Usagef("-B %d: a buffer is 1 to %d KiB, rounded up to a power of two of at least %d", kib, maxBuffer, minBuffer)
	}
	cfg.Buffer = 1 << bits.Len(uint(max(kib, minBuffer)-1)) << 10
	if b := c.String("backend"); b != "auto" {
		cfg.Wish.Hook = plan.Hook(b)
	}
	if o := c.String("object"); o != "auto" {
		cfg.Wish.Variant = plan.Variant(o)
	}
	cfg.BTF = c.String("btf")
	if err := cfg.Wish.Check(); err != nil {
		return cfg, plugin.Usagef("%w", err)
	}
	if err := addPlugins(c, &cfg); err != nil {
		return cfg, err
	}
	limit(&cfg)
	cfg.Ready = func(file string) {
		if file == "" {
			file = "a file as soon as there is room"
		}
		fmt.Fprintf(c.App.ErrWriter, "capturing on %s to %s\n", cfg.Label, file)
	}
	return cfg, nil
}

// classic tells whether pcap is to be written, and not pcapng.
func classic(c *cli.Context) (bool, error) {
	format, short := c.String("format"), c.Bool("P")
	switch {
	case format != "pcap" && format != "pcapng":
		return false, plugin.Usagef("--format %q: a format is pcapng or pcap", format)
	case short && c.IsSet("format") && format != "pcap":
		return false, plugin.Usagef("-P is the same as --format pcap, and --format %s is given, too", format)
	}
	return short || format == "pcap", nil
}

// duration returns how long the capture is to last; 0: no limit. A plain number is one of seconds.
func duration(c *cli.Context) (time.Duration, error) {
	if !c.IsSet("duration") {
		return 0, nil
	}
	text := c.String("duration")
	withUnit := text
	if strings.Trim(text, "+-.0123456789") == "" {
		withUnit += "s"
	}
	d, err := time.ParseDuration(withUnit)
	if err != nil || d <= 0 {
		return 0, plugin.Usagef("--duration %s: a duration is a number of seconds above 0, or has units as 1h30m has", text)
	}
	return d, nil
}

// addPlugins asks the plugins what the flags want of them.
func addPlugins(c *cli.Context, cfg *capture.Config) error {
	var labels []string
	given := c.FlagNames() // once: IsSet goes through all flags, by regular expressions
	for _, p := range plugin.Probes() {
		src, err := p.New(c)
		if err != nil {
			return err
		}
		if src == nil {
			continue
		}
		cfg.Probes = append(cfg.Probes, capture.Probe{Name: p.Name, Source: src, Needs: p.Needs, Asked: anyOf(given, p.Flags), Optional: p.Optional})
		if l, ok := src.(plugin.Labeler); ok {
			labels = append(labels, l.Label())
		}
	}
	if len(cfg.Probes) == 0 {
		return plugin.Usagef("nothing to capture: this agent has no probe that the flags ask for")
	}
	cfg.Label = strings.Join(labels, "+")
	for _, o := range plugin.Outputs() {
		opener, err := o.New(c)
		if err != nil {
			return err
		}
		if opener != nil && cfg.Output != nil {
			return plugin.Usagef("a capture has one output, and the flags ask for two: %s is one of them", o.Name)
		}
		if opener != nil {
			cfg.Output = opener
		}
	}
	if cfg.Output == nil {
		return plugin.Usagef("nowhere to write to: this agent has no output that the flags ask for")
	}
	return nil
}

// limit has a capture end where its output wants that, if it does not end before.
func limit(cfg *capture.Config) {
	l, ok := cfg.Output.(plugin.Limiter)
	if !ok {
		return
	}
	d, n := l.Limits()
	if d > 0 && (cfg.Duration == 0 || d < cfg.Duration) {
		cfg.Duration = d
	}
	if n > 0 && (cfg.Most == 0 || n < cfg.Most) {
		cfg.Most = n
	}
}

// anyOf tells whether one of the flags is among the names of those that were given.
func anyOf(given []string, flags []cli.Flag) bool {
	return slices.ContainsFunc(flags, func(f cli.Flag) bool { return slices.Contains(given, f.Names()[0]) })
}

func printSummary(w io.Writer, s capture.Summary) {
	fmt.Fprintf(w, "%d packets captured\n", s.Captured)
	fmt.Fprintf(w, "%d packets received by filter\n", s.Received)
	fmt.Fprintf(w, "%d packets dropped by kernel\n", s.Dropped)
	fmt.Fprintf(w, "%d packets dropped by agent, %d unattributed\n", s.Ignored, s.Unattributed)
	if s.Refused > 0 {
		fmt.Fprintf(w, "%d packets left out in the agent, behind the kernel, by the filter or for their owner\n", s.Refused)
	}
	for _, text := range s.Instead {
		fmt.Fprintln(w, oneLine(text))
	}
	for _, text := range s.Notes {
		fmt.Fprintln(w, oneLine(text))
	}
	for _, g := range s.Gaps {
		fmt.Fprintf(w, "%d gaps on %s, of %v in all, each with a comment in the file", g.Times, g.Name, g.Missing.Round(10*time.Microsecond))
		if g.Switches > 0 {
			fmt.Fprintf(w, "; %d times its hook saw nothing", g.Switches)
		}
		fmt.Fprintln(w)
	}
	if s.File != "" {
		fmt.Fprintln(w, s.File)
	}
}

// reported marks an error whose line has been printed, and keeps its exit code.
func reported(err error) error {
	if err == nil {
		return nil
	}
	return reportedError{err}
}

type reportedError struct{ error }

func (r reportedError) Unwrap() error { return r.error }
