// SPDX-License-Identifier: Apache-2.0

// Command owner prints what it costs a packet that its owner is found: each way to find it beside the program that finds
// none, all on the same packets of real connections over a veth. Needs root and TCX (6.6).
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"droidtap/agent/kernel"
)

const (
	turns    = 3    // of each order
	messages = 4000 // each way in a round
	app      = 10123
)

// budget is what an owner may cost, in ns: of what leaves, and of what comes in and is found by its flow.
var budget = [directions]float64{60, 120}

const (
	egress = iota
	ingress
	directions
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "owner:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	u, err := kernel.ReadUname()
	if err != nil {
		return err
	}
	types, missing := kernel.FindTypes("auto", u.Release)
	if types.SockUID == 0 {
		fmt.Printf("no lookup: %v\n", missing)
	}
	w, err := newWire()
	if err != nil {
		return errors.Join(err, w.close())
	}
	defer func() { err = errors.Join(err, w.close()) }()
	fmt.Printf("ns for a packet by the kernel's bpf statistics, and above the program without owners (medians; rounds of %d messages each way)\n\n", messages)
	fmt.Printf("%-30s", "")
	for _, p := range protocols {
		fmt.Printf(" %18s %18s", p.name+" out", p.name+" in")
	}
	fmt.Println()
	for _, object := range []string{"ring", "legacy"} {
		if err := w.compare(object, ways(object, types.Offsets)); err != nil {
			return err
		}
	}
	fmt.Printf("%-30s", "budget, by flow")
	for range protocols {
		fmt.Printf(" %8s %+9.0f %8s %+9.0f", "", budget[egress], "", budget[ingress])
	}
	fmt.Println()
	return nil
}

// compare prints a line for each way; the first is what the others are compared with.
func (w *wire) compare(object string, all []way) error {
	table := make([]string, len(all))
	for i, way := range all {
		table[i] = fmt.Sprintf("%-30s", object+", "+way.name)
	}
	for _, p := range protocols {
		var costs, above [directions][][]float64 // by way and round
		for d := range directions {
			costs[d], above[d] = make([][]float64, len(all)), make([][]float64, len(all))
		}
		for round := range turns * len(all) {
			got, err := w.round(object, all, p, round)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", object, p.name, err)
			}
			for i := range all {
				for d := range directions {
					costs[d][i] = append(costs[d][i], got[i][d])
					above[d][i] = append(above[d][i], got[i][d]-got[0][d])
				}
			}
		}
		for i := range all {
			for d := range directions {
				if table[i] += fmt.Sprintf(" %8.0f", median(costs[d][i])); i == 0 {
					table[i] += fmt.Sprintf(" %9s", "")
				} else {
					table[i] += fmt.Sprintf(" %+9.0f", median(above[d][i]))
				}
			}
		}
	}
	for _, line := range table {
		fmt.Println(line)
	}
	return nil
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// round has the packets of one conversation pass all ways, one behind the other. Which comes first, and finds the packet in
// no cache, changes from round to round. The result is ns for a packet.
func (w *wire) round(object string, all []way, p protocol, round int) (cost [][directions]float64, err error) {
	programs := make([][directions]*ebpf.Program, len(all))
	var closers []func() error
	defer func() {
		for _, c := range slices.Backward(closers) {
			err = errors.Join(err, c())
		}
	}()
	for n := range all {
		i := (n + round) % len(all)
		coll, err := all[i].load(object)
		if err != nil {
			return nil, fmt.Errorf("load %s: %w", all[i].name, err)
		}
		closers = append(closers, func() error { coll.Close(); return nil })
		programs[i] = [directions]*ebpf.Program{coll.Programs["l2_egress"], coll.Programs["l2_ingress"]}
		for d, at := range [directions]ebpf.AttachType{ebpf.AttachTCXEgress, ebpf.AttachTCXIngress} {
			var l link.Link
			err := w.near.Do(0, func() (err error) {
				l, err = link.AttachTCX(link.TCXOptions{Interface: w.index, Program: programs[i][d], Attach: at})
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("attach: %w", err)
			}
			closers = append(closers, l.Close)
		}
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, err
	}
	closers = append(closers, stats.Close)
	if err := w.talk(p); err != nil {
		return nil, err
	}
	for _, of := range programs {
		var c [directions]float64
		for d, p := range of {
			s, err := p.Stats()
			if err != nil {
				return nil, err
			}
			if s.RunCount < messages {
				return nil, fmt.Errorf("%d packets only", s.RunCount)
			}
			c[d] = float64(s.Runtime.Nanoseconds()) / float64(s.RunCount)
		}
		cost = append(cost, c)
	}
	return cost, nil
}
