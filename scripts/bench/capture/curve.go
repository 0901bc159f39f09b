// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
)

// curve is what the agent costs a packet as something grows.
type curve struct {
	Name   string  `json:"name"`
	Points []point `json:"points"`
}

// point is the least of the rounds, in ns for a packet. The program's is by the kernel's statistics, with what these cost: the sender's
// time would have the growth of the traffic in it.
type point struct {
	Of      int     `json:"of"`
	Program float64 `json:"program_ns"`
	Reader  float64 `json:"reader_ns"`
}

func (p point) total() float64 { return p.Program + p.Reader }

// growth is how many times as much the dearest point costs as the first.
func (c curve) growth() float64 {
	if len(c.Points) == 0 || c.Points[0].total() <= 0 {
		return 0
	}
	most := 0.0
	for _, p := range c.Points {
		most = max(most, p.total())
	}
	return most / c.Points[0].total()
}

const (
	uidCurve       = "uids in the list"
	interfaceCurve = "interfaces, -i any"
	flowCurve      = "flows of one app"
)

const curveRounds = 2

func (b *bench) curves(ctx context.Context) ([]curve, error) {
	type made struct {
		name string
		of   []int
		load func(of int) (load, tool)
	}
	var curves []curve
	for _, m := range []made{
		{uidCurve, []int{1, 10, 100, 1000}, func(of int) (load, tool) {
			return load{Of: talk, Snaplen: 96, Expected: half}, tool{Kind: agent, UIDs: of}
		}},
		{interfaceCurve, []int{1, 10, 50}, func(of int) (load, tool) {
			t := traffic{Name: "interfaces", Kind: frames, Length: 64, Count: 200_000, Flows: 256, Links: of}
			return load{Of: t, Snaplen: 96, Expected: all, Any: true}, tool{Kind: agent}
		}},
		{flowCurve, []int{1, 100, 10_000, 100_000}, func(of int) (load, tool) {
			t := traffic{Name: "flows", Kind: flows, Count: 200_000, Flows: of, Links: 1, Near: true}
			return load{Of: t, Snaplen: 96, Expected: all}, tool{Kind: agent}
		}},
	} {
		c := curve{Name: m.name}
		for _, of := range m.of {
			l, t := m.load(of)
			l.Name = fmt.Sprintf("%d %s", of, m.name)
			var best point
			for number := range curveRounds {
				p, err := b.point(ctx, l, t)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", l.Name, err)
				}
				if number == 0 || p.total() < best.total() {
					best = p
				}
			}
			best.Of = of
			c.Points = append(c.Points, best)
		}
		curves = append(curves, c)
	}
	return curves, nil
}

func (b *bench) point(ctx context.Context, l load, t tool) (p point, err error) {
	r, err := b.begin(ctx, l, t)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	programs, err := classifiers(b.proc, r.pid())
	if err != nil {
		return p, err
	}
	defer closeAll(programs)
	each, o, err := b.counted(ctx, r, programs)
	if err != nil {
		return p, err
	}
	c, err := r.finish(ctx, o)
	return point{Program: each[0], Reader: c.Reader}, err
}
