// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// startUp is how a tool starts and ends, with a ring of startBuffer.
type startUp struct {
	Tool string `json:"tool"`
	// From its execution: until it says that it captures, and until the first packet is in the file, each being written at once.
	Ready spread `json:"ready_ms"`
	First spread `json:"first_packet_ms"`
	// From SIGINT, right behind a flood: until the file is closed, and until the process is gone.
	Closed spread `json:"closed_ms"`
	Gone   spread `json:"gone_ms"`
	// Peak is its memory with that flood.
	Peak spread `json:"peak_mib"`
	// FirstRatio is to the first tool's in the same round.
	FirstRatio spread `json:"first_packet_ratio"`
}

const startBuffer = 4 // MiB

// startUps has the tools in turns.
func (b *bench) startUps(ctx context.Context) ([]startUp, error) {
	tools := []tool{{Kind: tcpdump}, {Kind: dumpcap}, {Kind: agent}}
	var ready, first, closed, gone, peak = columns{}, columns{}, columns{}, columns{}, columns{}
	for number := range b.rounds {
		for i := range tools {
			t := tools[(i+number)%len(tools)]
			k := t.Kind
			readyMs, firstMs, err := b.firstPacket(ctx, t)
			if err != nil {
				return nil, fmt.Errorf("first packet, %s: %w", t, err)
			}
			e, err := b.ending(ctx, t)
			if err != nil {
				return nil, fmt.Errorf("end, %s: %w", t, err)
			}
			ready.add(k, readyMs)
			first.add(k, firstMs)
			closed.add(k, e.closed)
			gone.add(k, e.gone)
			peak.add(k, e.peak)
		}
	}
	var all []startUp
	for _, t := range tools {
		k := t.Kind
		all = append(all, startUp{string(k), spreadOf(ready[k]), spreadOf(first[k]), spreadOf(closed[k]), spreadOf(gone[k]), spreadOf(peak[k]),
			spreadOf(ratios(first[k], first[tools[0].Kind]))})
	}
	return all, nil
}

// columns are the rounds of each tool.
type columns map[kind][]float64

func (c columns) add(k kind, value float64) { c[k] = append(c[k], value) }

func milliseconds(ns int64) float64 { return float64(ns) / float64(time.Millisecond) }

// firstPacket starts a tool while a packet comes each half millisecond.
func (b *bench) firstPacket(ctx context.Context, t tool) (ready, first float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	n, err := b.network(1, watched)
	if err != nil {
		return 0, 0, err
	}
	dir, err := os.MkdirTemp(b.dir, "")
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	trickle := traffic{Name: "trickle", Kind: frames, Length: 64, Count: 1 << 30, Rate: 2000, Flows: 256, Links: 1}
	sender, err := b.sender(ctx, n, nil, trickle)
	if err != nil {
		return 0, 0, err
	}
	if err := sender.Start(); err != nil {
		return 0, 0, err
	}
	defer func() { cancel(); _ = sender.Wait() }()
	if err := b.awaitPackets(ctx, n); err != nil {
		return 0, 0, err
	}
	grows, stop, err := watch(dir, unix.IN_MODIFY)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	p, err := b.start(ctx, n.far, t, setting{Device: device + "0", Snaplen: 96, Buffer: startBuffer, Dir: dir, AtOnce: true})
	if err != nil {
		return 0, 0, err
	}
	defer func() { cancel(); <-p.ended }()
	for {
		select {
		case <-ctx.Done():
			return 0, 0, fmt.Errorf("no packet: %w: %s", ctx.Err(), p.text())
		case at := <-grows:
			if holds(dir, 1) {
				return milliseconds(p.ready - p.started), milliseconds(at - p.started), nil
			}
		}
	}
}

// awaitPackets waits until some pass.
func (b *bench) awaitPackets(ctx context.Context, n *network) error {
	before, err := n.packets(n.far)
	for err == nil && ctx.Err() == nil {
		var now uint64
		if now, err = n.packets(n.far); now > before {
			return nil
		}
	}
	return errors.Join(err, ctx.Err())
}

// ending is in ms and MiB.
type ending struct{ closed, gone, peak float64 }

// ending ends a tool at the end of a flood, when it has much to read and to write.
func (b *bench) ending(ctx context.Context, t tool) (e ending, err error) {
	l := load{Name: "flood, 4 MiB", Of: flood, Snaplen: 96, Expected: all, Buffer: startBuffer}
	r, err := b.begin(ctx, l, t)
	if err != nil {
		return e, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	closes, stop, err := watch(r.dir, unix.IN_CLOSE_WRITE)
	if err != nil {
		return e, err
	}
	defer stop()
	o, err := b.send(ctx, r.n, nil, l.Of)
	if err != nil {
		return e, err
	}
	peak, err := peakOf(b.proc, r.pid())
	if err != nil {
		return e, err
	}
	asked, err := r.stop()
	if err != nil {
		return e, err
	}
	select {
	case at := <-closes:
		if at < asked {
			return e, errors.New("it closed its file before it was asked to end")
		}
		e = ending{milliseconds(at - asked), milliseconds(r.end - asked), float64(peak) / 1024}
	case <-time.After(patience):
		return e, errors.New("it did not close its file")
	}
	c := capture{Offered: o.Passed, Expected: o.Passed}
	if c.Said, err = t.Kind.counters(r.text()); err != nil {
		return e, err
	}
	if c.InFile, c.Bytes, err = countFiles(r.dir); err != nil {
		return e, err
	}
	b.check(l, t, c)
	return e, nil
}

// watch gives the times, in ns of the monotonic clock, when something happens to the files of a directory.
func watch(dir string, mask uint32) (times <-chan int64, stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("inotify: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, mask); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), f.Close())
	}
	happened := make(chan int64, 1)
	go func() {
		b := make([]byte, 64<<10)
		for {
			if _, err := f.Read(b); err != nil {
				return // it was closed
			}
			select {
			case happened <- monotonic():
			default: // whoever waits has not yet seen the last one
			}
		}
	}()
	return happened, func() { _ = f.Close() }, nil
}
