// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
)

// bench has what all measurements need.
type bench struct {
	agent, self string // paths
	dir         string // for captures, in memory
	rounds      int
	proc        fs.FS
	softirq     int // an order's
	nets        map[wanted]*network
	log         io.Writer
	wrong       []string // where the agent's counter is not the true loss
}

// device is what is captured on.
func (l load) device() string {
	if l.Any || l.Of.Links > 1 {
		return "any"
	}
	return device + "0"
}

// wanted is a network with so many interfaces.
type wanted struct {
	links int
	of    purpose
}

// network is made when it is asked for the first time.
func (b *bench) network(links int, of purpose) (*network, error) {
	w := wanted{links, of}
	if n, ok := b.nets[w]; ok {
		return n, nil
	}
	n, err := newNetwork(links, of)
	b.nets[w] = n
	return n, err
}

func (b *bench) close() error {
	errs := []error{os.RemoveAll(b.dir)}
	for _, n := range b.nets {
		errs = append(errs, n.close())
	}
	return errors.Join(errs...)
}

// offer is what was sent.
type offer struct {
	sent
	Passed uint64 // packets, by the counters of the interfaces at the end where they are captured
}

// sender is the process that sends a traffic, also where nobody captures if without is not nil. The context's end kills it.
func (b *bench) sender(ctx context.Context, n, without *network, t traffic) (*exec.Cmd, error) {
	o := order{Traffic: t, Ends: n.ends(), Softirq: b.softirq}
	if without != nil {
		o.Bare = without.ends()
	}
	spec, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.self, "send", string(spec))
	apart(cmd)
	return cmd, nil
}

// send has a traffic sent; see sender.
func (b *bench) send(ctx context.Context, n, without *network, t traffic) (o offer, err error) {
	cmd, err := b.sender(ctx, n, without, t)
	if err != nil {
		return o, err
	}
	end := n.end(t)
	packets, err := n.packets(end)
	if err != nil {
		return o, err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return o, errors.Join(ctx.Err(), fmt.Errorf("send %s: %w: %s", t.Name, err, &stderr))
	}
	if err := json.Unmarshal(out, &o.sent); err != nil {
		return o, fmt.Errorf("send %s: %w", t.Name, err)
	}
	later, err := n.packets(end)
	if err != nil {
		return o, err
	}
	o.Passed = later - packets
	if t.Kind == stream {
		o.Packets = o.Passed // nobody else knows
	}
	if o.Passed != o.Packets {
		return o, fmt.Errorf("%s: %d packets were sent, %d have passed the interface", t.Name, o.Packets, o.Passed)
	}
	return o, nil
}

// capture is what one tool did with one load in one round. All ns are for a packet that was offered, matching or not. What is lost costs
// the reader nothing: Reader is what it would be if those, too, had cost what the others did.
type capture struct {
	Offered  uint64   `json:"offered"`
	Expected uint64   `json:"expected"` // of them, by the tool's filter
	InFile   uint64   `json:"in_file"`
	Said     counters `json:"said"`
	Sender   float64  `json:"sender_ns"`
	Kernel   float64  `json:"kernel_ns"` // Sender less what it is without a capture, at the same time
	Reader   float64  `json:"reader_ns"`
	Wakeups  uint64   `json:"wakeups"`
	Peak     uint64   `json:"peak_kib"`
	Bytes    uint64   `json:"file_bytes"`
}

// total is what a capture costs a packet.
func (c capture) total() float64 { return c.Kernel + c.Reader }

// part is how much of what matches is in the file, in percent.
func (c capture) part() float64 {
	if c.Expected == 0 {
		return 100
	}
	return 100 * float64(c.InFile) / float64(c.Expected)
}

// lost is how many packets are missing in the file.
func (c capture) lost() int64 { return int64(c.Expected) - int64(c.InFile) }

// bufferMiB is all tools' but where memory is measured.
const bufferMiB = 32

// running is a tool that captures a load, in one round.
type running struct {
	*process
	b      *bench
	load   load
	tool   tool
	n      *network
	dir    string
	before usage
	cancel context.CancelFunc
}

// begin starts a tool, and waits until it sleeps. It must be closed.
func (b *bench) begin(ctx context.Context, l load, t tool) (r *running, err error) {
	r = &running{b: b, load: l, tool: t}
	if r.n, err = b.network(l.Of.Links, watched); err != nil {
		return nil, err
	}
	if r.dir, err = os.MkdirTemp(b.dir, ""); err != nil {
		return nil, err
	}
	ctx, r.cancel = context.WithCancel(ctx)
	set := setting{Device: l.device(), Snaplen: l.Snaplen, Buffer: cmp.Or(l.Buffer, bufferMiB), Dir: r.dir, Rotated: l.Rotated}
	if r.process, err = b.start(ctx, r.n.end(l.Of), t, set); err != nil {
		return nil, errors.Join(err, r.close())
	}
	if r.before, err = (settling{}).await(ctx, b.proc, r.pid()); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

// close kills what still runs, and removes its files.
func (r *running) close() error {
	r.cancel()
	if r.process != nil {
		<-r.ended
	}
	return os.RemoveAll(r.dir)
}

// finish waits until all is read and written, ends the tool, and says what it has done with what was offered.
func (r *running) finish(ctx context.Context, o offer) (c capture, err error) {
	expected := r.load.Expected(o.Packets)
	after, err := settling{
		keeps: r.tool.Kind.keeps(), blocks: r.tool.Kind == tcpdump,
		complete: func() bool { return holds(r.dir, expected) },
	}.await(ctx, r.b.proc, r.pid())
	if err != nil {
		return c, err
	}
	if c.Peak, err = peakOf(r.b.proc, r.pid()); err != nil {
		return c, err
	}
	if _, err := r.stop(); err != nil {
		return c, err
	}
	if c.Said, err = r.tool.Kind.counters(r.text()); err != nil {
		return c, err
	}
	if c.InFile, c.Bytes, err = countFiles(r.dir); err != nil {
		return c, fmt.Errorf("%s: %w", r.tool, err)
	}
	used := after.minus(r.before)
	c.Offered, c.Expected, c.Wakeups = o.Passed, expected, used.wakeups
	c.Sender, c.Kernel, c.Reader = o.Each, o.Each-o.Bare, used.cpu/float64(o.Passed)
	if c.InFile > 0 {
		c.Reader *= float64(c.Expected) / float64(c.InFile)
	}
	r.b.check(r.load, r.tool, c)
	return c, nil
}

// capture has a tool capture a load.
func (b *bench) capture(ctx context.Context, l load, t tool) (c capture, err error) {
	r, err := b.begin(ctx, l, t)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	without, err := b.network(l.Of.Links, unwatched)
	if err != nil {
		return c, err
	}
	o, err := b.send(ctx, r.n, without, l.Of)
	if err != nil {
		return c, err
	}
	return r.finish(ctx, o)
}

// check holds the agent to its word: what is missing in the file must be what it says that it dropped, and no packet more.
func (b *bench) check(l load, t tool, c capture) {
	if t.Kind != agent || c.lost() == int64(c.Said.Dropped) && c.InFile == c.Said.Captured {
		return
	}
	b.wrong = append(b.wrong, fmt.Sprintf("%s, %s: %d of %d packets are in the file, and it said %d captured, %d dropped",
		l.Name, t, c.InFile, c.Expected, c.Said.Captured, c.Said.Dropped))
}

// round has each tool capture each load once. What one does in a round is compared with what another does in it.
func (b *bench) round(ctx context.Context, all []load, number int, into map[string][]capture) error {
	for _, l := range all {
		for i := range l.Tools {
			t := l.Tools[(i+number)%len(l.Tools)]
			c, err := b.capture(ctx, l, t)
			if err != nil {
				return fmt.Errorf("%s: %w", l.Name, err)
			}
			into[l.key(t)] = append(into[l.key(t)], c)
		}
	}
	return nil
}

// key names a tool's captures of a load.
func (l load) key(t tool) string { return l.Name + ": " + t.String() }

// compare is all rounds of all loads.
func (b *bench) compare(ctx context.Context, all []load) (map[string][]capture, error) {
	into := map[string][]capture{}
	for number := range b.rounds {
		fmt.Fprintf(b.log, "round %d of %d\n", number+1, b.rounds)
		if err := b.round(ctx, all, number, into); err != nil {
			return nil, err
		}
	}
	return into, nil
}
