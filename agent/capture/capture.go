// SPDX-License-Identifier: Apache-2.0

// Package capture runs a capture: it loads the objects, attaches the sources,
// reads their records, hands the blocks to the one writer, and takes everything
// down again in reverse order.
package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
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

// running is a source with what it holds in the kernel.
type running struct {
	Probe
	coll     *ebpf.Collection // the maps; its programs belong to the source
	variant  plan.Variant
	attached io.Closer
	streams  []*stream // that are read, or will be
	ended    tally     // of streams that were read to their ends
	errs     []error   // of theirs
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

// hold has the sources take their places in the kernel, beside what else has to be done before they are attached.
func (c *capture) hold(first plan.Hook) (held []io.Closer) {
	for _, p := range c.Probes {
		if h, ok := p.Source.(plugin.Holder); ok {
			held = append(held, h.Hold(first))
		}
	}
	return held
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

// mixed tells whether packets may come to have other link types than those of the interfaces at the start.
func (c *capture) mixed() bool {
	return slices.ContainsFunc(c.Probes, func(p Probe) bool {
		m, ok := p.Source.(plugin.Mixer)
		return ok && m.Mixed()
	})
}

// followers returns the sources that are to see each packet.
func (c *capture) followers() (all []plugin.Follower) {
	for _, r := range c.running {
		if f, ok := r.Source.(plugin.Follower); ok {
			all = append(all, f)
		}
	}
	return all
}

// load loads the objects of every source and opens their rings. A probe that cannot
// run here is left out, unless it was asked for by name or no other is left.
func (c *capture) load(t plugin.Target, k plan.Kernel) error {
	var left []error
	for _, p := range c.Probes {
		err := k.Lacks(p.Needs)
		if err == nil {
			err = c.loadProbe(p, t)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("probe %s: %w", p.Name, err)
		if p.Asked && !p.Optional || plugin.IsUsage(err) {
			return err
		}
		left = append(left, err)
	}
	if len(c.running) == 0 {
		return errors.Join(left...)
	}
	for _, err := range left {
		c.Log.Warn(err.Error() + ": it is left out")
	}
	return nil
}

func (c *capture) loadProbe(p Probe, t plugin.Target) error {
	coll, variant, err := load(p, t, c.Buffer)
	if err != nil {
		return err
	}
	r := &running{Probe: p, coll: coll, variant: variant}
	if m := coll.Maps[events]; m != nil {
		s := streamOf(p.Source)
		o := ringOptions{buffer: c.Buffer, wakeup: t.Wakeup, each: t.Each, most: c.most(p, m)}
		if s.ring, err = openRing(m, o, c.Log); err != nil {
			coll.Close()
			return err
		}
		r.streams = []*stream{s}
	}
	c.running = append(c.running, r)
	return nil
}

// most returns for how long a record of a probe may wait in its ring.
func (c *capture) most(p Probe, ring *ebpf.Map) time.Duration {
	follows := func(p Probe) bool { _, ok := p.Source.(plugin.Follower); return ok }
	_, settles := p.Source.(plugin.Settler)
	switch {
	case follows(p):
		return prompt
	case slices.ContainsFunc(c.Probes, follows): // it is to see packets soon
		return brief
	case settles && ring.Type() != ebpf.RingBuf: // the programs cannot wake us for what has to be asked for
		return brief
	}
	return longest
}

// async has f called beside what else is done until unload.
func (c *capture) async(f func() error) {
	c.beside.Go(func() {
		if err := f(); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.failed = append(c.failed, err)
		}
	})
}

// unload frees what load loaded, in reverse order.
func (c *capture) unload() error {
	var errs []error
	c.beside.Wait()
	errs = append(errs, c.failed...)
	for _, r := range slices.Backward(c.running) {
		for _, s := range slices.Backward(r.streams) {
			errs = append(errs, s.Close())
		}
		r.coll.Close()
	}
	return errors.Join(errs...)
}

// attach starts the sources; each describes what it captures by emit.
func (c *capture) attach(t plugin.Target) error {
	for _, r := range c.running {
		t.Variant = r.variant
		t.Load = func(p plugin.Preparer) (map[string]*ebpf.Program, error) { return c.more(r, p, t) }
		t.Stream = func(s plugin.Stream) {
			c.stream(r, &stream{ring: &foreign{Ring: s.Ring}, decode: s.Decode, settler: s.Settler})
		}
		var err error
		if r.attached, err = r.Source.Attach(r.coll, t); err != nil {
			return err
		}
	}
	return nil
}

// more loads programs of a source beside those that it has.
func (c *capture) more(r *running, p plugin.Preparer, t plugin.Target) (map[string]*ebpf.Program, error) {
	coll, err := loadVariant(object{name: r.Name, variant: r.variant, buffer: c.Buffer, shared: shareable(r.coll)}, p, t)
	if err != nil {
		return nil, err
	}
	programs := coll.Programs
	coll.Programs = nil
	coll.Close() // the programs keep its maps
	return programs, nil
}

// detach takes off what attach attached, in reverse order.
func (c *capture) detach() error {
	var errs []error
	for _, r := range slices.Backward(c.running) {
		if r.attached != nil {
			errs = append(errs, r.attached.Close())
		}
	}
	return errors.Join(errs...)
}

// end tells the sources that were attached that nothing more comes to them.
func (c *capture) end() error {
	var errs []error
	for _, r := range slices.Backward(c.running) {
		if e, ok := r.Source.(plugin.Ender); ok && r.attached != nil {
			if err := e.End(); err != nil {
				errs = append(errs, fmt.Errorf("probe %s: %w", r.Name, err))
			}
		}
	}
	return errors.Join(errs...)
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
