// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// target is a figure that the agent is to have, or less.
type target struct {
	Name string  `json:"name"`
	Unit string  `json:"unit"`
	Most float64 `json:"most"`
	Got  float64 `json:"got"`
	// Known is false where it was not measured.
	Known bool `json:"known"`
}

func (t target) met() bool { return t.Known && t.Got <= t.Most }

func (t target) verdict() string {
	switch {
	case !t.Known:
		return "not measured"
	case t.met():
		return "met"
	default:
		return fmt.Sprintf("missed by %.3g", t.Got-t.Most)
	}
}

const times = "x tcpdump's"

// flat is what the dearest point of a curve may cost of the first, for noise.
const flat = 1.25

// targets holds what was measured against what is wanted.
func (r report) targets() []target {
	var all []target
	add := func(name, unit string, most float64, got float64, known bool) {
		all = append(all, target{name, unit, most, got, known})
	}
	of := func(load string, f func(result) float64) (float64, bool) {
		x, ok := r.find(load, agent)
		return f(x), ok
	}
	ratio := func(name, load string, most float64, f func(result) float64) {
		got, known := of(load, f)
		add(name, times, most, got, known)
	}
	total := func(x result) float64 { return x.TotalRatio.Median }
	ratio("kernel and reader, "+floodLoad, floodLoad, 0.5, total)
	ratio("reader, "+pacedLoad, pacedLoad, 1, func(x result) float64 { return x.ReaderRatio.Median })
	ratio("kernel and reader, "+largeFloodLoad, largeFloodLoad, 0.7, total)
	for _, p := range r.Programs {
		switch p.Name {
		case unmatchedProgram:
			add("program, "+p.Name, "ns", 25, p.Above.Median, true)
		case capturedProgram, ownedProgram:
			add("program, "+p.Name, "ns", 150, p.Above.Median, true)
		}
	}
	for _, load := range []string{pacedLoad, largePacedLoad, bulkLoad, rotatedLoad, largeFloodLoad} {
		got, known := of(load, func(x result) float64 { return float64(x.Lost) })
		add("lost, "+load, "packets", 0, got, known)
	}
	r.startTargets(add)
	for _, i := range r.Idle {
		if i.Tool == string(agent) {
			add("wake-ups when idle", "a second", 1, i.Wakeups, true)
		}
	}
	for _, b := range r.Binaries {
		if strings.Contains(b.Path, "arm64") { // the phone's
			add("binary, "+b.Path, "MB", 8, float64(b.Bytes)/1e6, true)
		}
	}
	for _, c := range r.Curves {
		add("growth with "+c.Name, "x", flat, c.growth(), true)
	}
	return all
}

func (r report) startTargets(add func(name, unit string, most, got float64, known bool)) {
	for _, s := range r.StartUps {
		if s.Tool != string(agent) {
			continue
		}
		add("memory with a ring of 4 MiB", "MiB", 24, s.Peak.Median, true)
		add("start until it captures", "ms", 40, s.Ready.Median, true)
		add("start until the first packet is in the file", times, 1, s.FirstRatio.Median, true)
		add("SIGINT until the file is closed", "ms", 30, s.Closed.Median, true)
	}
}
