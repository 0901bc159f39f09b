// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// programCost is what a packet costs in the agent's programs.
type programCost struct {
	Name  string    `json:"name"`
	Above spread    `json:"above_empty_ns"` // above an empty program, on the same packets
	Empty spread    `json:"empty_ns"`
	Each  []float64 `json:"rounds_ns"`
}

const (
	unmatchedProgram = "not matched, headers alone (port 9)"
	capturedProgram  = "captured, of nobody"
	ownedProgram     = "captured, owner found"
)

const programRounds = 3

// programCosts is by the kernel's statistics. They cost time themselves: these are rounds of their own.
func (b *bench) programCosts(ctx context.Context) ([]programCost, error) {
	short := func(t traffic, count int) traffic { t.Count = count; return t }
	of := func(t traffic) load { return load{Of: t, Snaplen: 96, Expected: all} }
	cases := []struct {
		name string
		load load
		tool tool
	}{
		{unmatchedProgram, of(short(flood, 100_000)), tool{Kind: agent, Expr: "port 9"}},
		{capturedProgram, of(short(flood, 100_000)), tool{Kind: agent}},
		{ownedProgram, of(short(talk, 10*cycle)), tool{Kind: agent}},
		{"half of them captured, by 1,000 uids", of(short(talk, 10*cycle)), tool{Kind: agent, UIDs: 1000}},
	}
	var costs []programCost
	for _, c := range cases {
		cost := programCost{Name: c.name}
		var empties []float64
		for number := range min(b.rounds, programRounds) {
			ours, empty, err := b.programCost(ctx, c.load, c.tool, number%2 == 0)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			cost.Each, empties = append(cost.Each, ours-empty), append(empties, empty)
		}
		cost.Above, cost.Empty = spreadOf(cost.Each), spreadOf(empties)
		costs = append(costs, cost)
	}
	return costs, nil
}

// programCost is one round: ns of the agent's programs and of an empty one beside them. Which comes first has the packet in no cache.
func (b *bench) programCost(ctx context.Context, l load, t tool, first bool) (ours, empty float64, err error) {
	n, err := b.network(l.Of.Links, watched)
	if err != nil {
		return 0, 0, err
	}
	var nothing *empties
	defer func() {
		if nothing != nil {
			err = errors.Join(err, nothing.close())
		}
	}()
	if first {
		if nothing, err = attachEmpty(n.end(l.Of)); err != nil {
			return 0, 0, err
		}
	}
	r, err := b.begin(ctx, l, t)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	programs, err := classifiers(b.proc, r.pid())
	if err != nil {
		return 0, 0, err
	}
	defer closeAll(programs)
	if !first {
		if nothing, err = attachEmpty(n.end(l.Of)); err != nil {
			return 0, 0, err
		}
	}
	each, _, err := b.counted(ctx, r, programs, []*ebpf.Program{nothing.program})
	if err != nil {
		return 0, 0, err
	}
	return each[0], each[1], nil
}

// counted sends the load, and returns ns for a run of each group of programs.
func (b *bench) counted(ctx context.Context, r *running, groups ...[]*ebpf.Program) (each []float64, o offer, err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, o, fmt.Errorf("enable statistics of programs: %w", err)
	}
	defer func() { err = errors.Join(err, stats.Close()) }()
	var before []runs
	for _, g := range groups {
		n, err := runsOf(g)
		if err != nil {
			return nil, o, err
		}
		before = append(before, n)
	}
	if o, err = b.send(ctx, r.n, nil, r.load.Of); err != nil {
		return nil, o, err
	}
	for i, g := range groups {
		n, err := runsOf(g)
		if err != nil {
			return nil, o, err
		}
		if n.count-before[i].count < o.Passed {
			return nil, o, fmt.Errorf("programs ran %d times for %d packets", n.count-before[i].count, o.Passed)
		}
		each = append(each, (n.ns-before[i].ns)/float64(n.count-before[i].count))
	}
	return each, o, nil
}

// runs are those of programs so far.
type runs struct {
	ns    float64
	count uint64
}

func runsOf(programs []*ebpf.Program) (n runs, err error) {
	for _, p := range programs {
		s, err := p.Stats()
		if err != nil {
			return n, fmt.Errorf("statistics of %s: %w", p, err)
		}
		n.ns += float64(s.Runtime.Nanoseconds())
		n.count += s.RunCount
	}
	return n, nil
}

// classifiers are the programs that a process holds, or has links of, and that see packets.
func classifiers(proc fs.FS, pid int) (programs []*ebpf.Program, err error) {
	ids, err := programIDs(proc, pid)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			continue // it was a probe
		}
		if p.Type() == ebpf.SchedCLS {
			programs = append(programs, p)
		} else {
			_ = p.Close()
		}
	}
	if len(programs) == 0 {
		return nil, errors.New("the agent has no programs that see packets")
	}
	return programs, nil
}

func closeAll(programs []*ebpf.Program) {
	for _, p := range programs {
		_ = p.Close()
	}
}

// empties is a program that does nothing, at both hooks of an interface.
type empties struct {
	program *ebpf.Program
	links   []link.Link
}

func attachEmpty(s nettest.Space) (e *empties, err error) {
	e = &empties{}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	const next = -1 // TCX_NEXT
	e.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{Name: "empty", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, next), asm.Return()}})
	if err != nil {
		return e, fmt.Errorf("load the empty program: %w", err)
	}
	return e, s.Do(0, func() error {
		ifc, err := net.InterfaceByName(device + "0")
		if err != nil {
			return err
		}
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			l, err := link.AttachTCX(link.TCXOptions{Interface: ifc.Index, Program: e.program, Attach: at})
			if err != nil {
				return fmt.Errorf("attach the empty program: %w", err)
			}
			e.links = append(e.links, l)
		}
		return nil
	})
}

func (e *empties) close() error {
	var errs []error
	for _, l := range e.links {
		errs = append(errs, l.Close())
	}
	if e.program != nil {
		errs = append(errs, e.program.Close())
	}
	return errors.Join(errs...)
}
