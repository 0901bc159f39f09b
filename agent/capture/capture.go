// SPDX-License-Identifier: Apache-2.0

// Package capture runs a capture: it loads the objects, attaches the sources,
// reads their records, hands the blocks to the one writer, and takes everything
// down again in reverse order.
package capture

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/cilium/ebpf/rlimit"

	"droidtap/agent/boottime"
	"droidtap/agent/kernel"
	"droidtap/agent/pcapng"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
)

// Probe is a source and the name of its objects.
type Probe struct {
	Name   string
	Source plugin.Source
	Needs  []plan.Need
	Asked  bool // for by name: that it cannot run is an error, and no reason to leave it out
	// Optional is plugin.Probe's.
	Optional bool
}

// Config is what to capture, and where to.
type Config struct {
	Probes      []Probe
	Output      plugin.Opener
	Label       string // what is captured, for file names
	Application string // for the file's head: the tool and its version
	CommandLine string // for the file's head
	Wish        plan.Wish
	BTF         string        // "auto", "none", a file or a directory; "" is auto
	Buffer      int           // bytes for records in the kernel, a power of two
	Most        uint64        // packets after which to stop; 0: no limit
	Duration    time.Duration // after which to stop, sleep included, from Ready on; 0: no limit
	Unbuffered  bool          // each packet is written at once
	Classic     bool          // write pcap files, not pcapng
	Persist     bool          // where the output fails, packets are counted as ignored until it works again
	Log         *slog.Logger
	Ready       func(file string)                // called when everything is attached
	Control     *Control                         // of this capture; nil: nobody changes it while it runs
	Ask         func(release string) plan.Kernel // what the kernel can do; nil: it is asked
}

// Summary is what became of the packets. One that was received is captured,
// dropped or ignored, unless it came after Config.Most.
type Summary struct {
	Began    bool   // it came to capturing; else nothing of this is there
	File     string // the last one; "" if there was never room for one
	Files    int
	Captured uint64 // in the file
	Ignored  uint64 // records that the agent could not decode or write
	plugin.Counts
}

// ErrAborted is returned when the capture was told to end at once: what was still
// on its way to the file is lost.
var ErrAborted = errors.New("stopped at once: what was not yet written is lost")

// capture is one run.
type capture struct {
	Config
	writer  *writer
	start   time.Time
	failure chan error // from the sources; the first counts
	abort   <-chan struct{}

	running []*running
	readers sync.WaitGroup

	ignored uint64
	counts  plugin.Counts

	mu      sync.Mutex     // of what follows, and of the streams of those that run
	started bool           // streams are read
	beside  sync.WaitGroup // what sources do beside the end of the capture
	failed  []error        // of that
}

// Run captures until ctx ends, cfg.Duration is over, cfg.Most packets are in the file, the output fails
// or the sources have nothing left to watch; the last two are errors. The summary
// is valid with an error too, once it has begun.
//
// When abort is closed Run detaches and returns without waiting for the output.
// The error wraps ErrKernel, plan.ErrImpossible or os.ErrPermission, or is a usage error.
func Run(ctx context.Context, abort <-chan struct{}, cfg Config) (sum Summary, err error) {
	c := &capture{Config: cfg, start: time.Now(), failure: make(chan error, 1), abort: abort}
	rotator, _ := cfg.Output.(plugin.Rotator)
	c.writer = newWriter(newFiles(func() (plugin.File, error) { return cfg.Output.Next(cfg.Label) }, rotator, cfg.Log), cfg.Most, cfg.Unbuffered)
	c.writer.counts, c.writer.persist = c.interfaces, cfg.Persist
	if cfg.Classic {
		c.writer.format = func(out io.Writer, _ pcapng.Section) *pcapng.Writer { return pcapng.NewClassic(out, c.mixed()) }
	}
	u, err := kernel.ReadUname()
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, c.unload()) }()
	// The file comes last: a capture that cannot start leaves none, and spoils none.
	target, err := c.prepare(u.Release)
	if err != nil {
		return sum, errors.Join(err, c.detach(), c.end())
	}
	if err := c.writer.start(); err != nil {
		return sum, errors.Join(err, c.detach(), c.end())
	}
	sum.Began, sum.File = true, c.writer.path
	err = c.run(ctx, target, &sum, pcapng.Section{
		Hardware:    u.Machine,
		OS:          u.Sysname + " " + u.Release,
		Application: cfg.Application,
		Comment:     cfg.CommandLine,
	})
	return sum, err
}

// prepare finds out what the kernel can do, loads the objects and attaches the sources.
func (c *capture) prepare(release string) (t plugin.Target, err error) {
	// Before 5.11 maps count against RLIMIT_MEMLOCK. Without root it fails, and so
	// does the load, with the better message.
	if err := rlimit.RemoveMemlock(); err != nil {
		c.Log.Debug("raise the memory lock limit", "error", err)
	}
	if c.Ask == nil {
		c.Ask = kernel.Ask
	}
	find := c.findTypes(release)
	k := c.Ask(release)
	// Types say nothing of the hooks.
	p, err := plan.Make(k, c.Wish)
	if err != nil {
		return t, err
	}
	for _, held := range c.hold(p.Hooks[0]) {
		defer func() { err = errors.Join(err, held.Close()) }()
	}
	types, err := c.types(<-find, &k)
	if err != nil {
		return t, err
	}
	if p, err = plan.Make(k, c.Wish); err != nil {
		return t, err
	}
	c.Log.Info("kernel "+release, "KMI", android.ParseRelease(release).KMI())
	for _, choice := range p.Choices {
		c.Log.Info("plan: " + choice.String())
	}
	t = plugin.Target{Plan: p, Types: types, Log: c.Log, Buffer: c.Buffer, Wakeup: c.Buffer / 4, Each: c.Unbuffered, Emit: c.emit, Go: c.async, Fail: c.fail}
	if err := c.load(t, k); err != nil {
		return t, err
	}
	return t, c.attach(t)
}

// run reads and writes until the end, then detaches, drains the rings and closes
// the file. It fills in sum.
func (c *capture) run(ctx context.Context, t plugin.Target, sum *Summary, head pcapng.Section) error {
	c.writer.hold = newHold(c.followers(), c.Classic)
	written := make(chan error, 1)
	go func() { written <- c.writer.run(head) }()
	c.begin()
	c.Control.begin(c, t)
	err := c.wait(ctx, sum.File)
	c.Control.end()
	err = errors.Join(err, c.detach(), c.drain(), c.end(), c.statistics())
	close(c.writer.in)
	sum.Counts = c.counts
	select {
	case failed := <-written:
		err = errors.Join(err, failed)
	case <-c.abort:
		sum.Captured = c.writer.written.Load()
		if left := sum.Dropped + sum.Captured; left < sum.Received {
			sum.Ignored = sum.Received - left // all that is on its way
		}
		return errors.Join(err, ErrAborted)
	}
	sum.File, sum.Files = c.writer.path, c.writer.opened
	sum.Captured = c.writer.written.Load()
	sum.Ignored = c.ignored + c.writer.lost()
	sum.Notes = append(sum.Notes, c.writer.remarks()...)
	return err
}

// wait says that the capture to file is ready, and returns when it is to end, with what makes that an error.
func (c *capture) wait(ctx context.Context, file string) (err error) {
	var over <-chan struct{}
	if c.Duration > 0 {
		t, failed := boottime.NewTimer(c.Duration)
		if failed != nil {
			return failed
		}
		defer func() { err = errors.Join(err, t.Stop()) }()
		over = t.C
	}
	c.Ready(file)
	select {
	case <-ctx.Done():
	case <-over:
	case <-c.writer.enough:
	case <-c.writer.failed:
	case err = <-c.failure:
	}
	return err
}

// send gives a batch to the writer; on an abort nobody takes it any more.
func (c *capture) send(b *batch) {
	select {
	case c.writer.in <- b:
	case <-c.abort:
	}
}

// emit hands a block that is no record to the writer, ahead of the records that
// are not yet read. It does not wait.
func (c *capture) emit(b pcapng.Block) { c.writer.put(b) }

// fail ends the capture.
func (c *capture) fail(err error) {
	select {
	case c.failure <- err:
	default: // the first failure ends the capture already
	}
}
