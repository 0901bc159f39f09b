// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	turns    = 3 // of each measurement; their median counts
	messages = 500
)

// situation is what a capture is asked for, on frames of size bytes.
type situation struct {
	name, flags, expr string
	size              int
}

var situations = []situation{
	{"no match", "-s 96 --comments none", fmt.Sprint("port ", matching+1), 64},
	{"1 % match", "-s 96 --comments none", fmt.Sprint("port ", matching), 64},
	{"captured", "-s 96 --comments none", "", 64},
	{"captured, 1,400 B whole", "--comments none", "", 1400},
	{"captured, owner told", "-s 96 --comments first", "", 64},
	{"--uid, 1 uid", "-s 96 --comments none --uid " + uids(1), "", 64},
	{"--uid, 1,000 uids", "-s 96 --comments none --uid " + uids(1000), "", 64},
	{"--uid of others", "-s 96 --comments none --uid " + strconv.Itoa(app+1), "", 64},
}

// uids is a list of so many, that of the app first.
func uids(n int) string {
	var all []string
	for i := range n {
		all = append(all, strconv.Itoa(app+i))
	}
	return strings.Join(all, ",")
}

// costs measures each situation with the programs of each object.
func (w *wire) costs(agent string) (all []Cost, err error) {
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, fmt.Errorf("enable statistics of programs: %w", err)
	}
	defer func() { err = errors.Join(err, stats.Close()) }()
	for _, object := range objects {
		for _, s := range situations {
			c, err := w.cost(agent, object, s)
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", object, s.name, err)
			}
			all = append(all, c)
		}
	}
	return all, nil
}

// cost measures one situation.
func (w *wire) cost(agent, object string, s situation) (c Cost, err error) {
	argv := append([]string{agent, "--object", object}, strings.Fields(s.flags)...)
	run, err := w.start(tool{"agent", argv}, s.expr)
	if err != nil {
		return c, err
	}
	defer func() {
		_, stopped := run.stop()
		err = errors.Join(err, stopped)
	}()
	programs, err := loaded()
	if err != nil {
		return c, err
	}
	defer programs.close()
	var above [directions][]float64
	for range turns {
		ns, err := w.above(programs, s.size)
		if err != nil {
			return c, err
		}
		for d := range above {
			above[d] = append(above[d], ns[d])
		}
	}
	return Cost{object, s.name, median(above[egress]), median(above[ingress])}, nil
}

// above has the app talk, and returns what programs take above the empty ones, in ns for each packet.
func (w *wire) above(programs programs, size int) (ns [directions]float64, err error) {
	ours, err := programs.spent()
	if err != nil {
		return ns, err
	}
	empty, err := w.empty.spent()
	if err != nil {
		return ns, err
	}
	if err := w.talk(messages, size); err != nil {
		return ns, err
	}
	after, err := programs.spent()
	if err != nil {
		return ns, err
	}
	if ns, err = after.per(messages, ours); err != nil {
		return ns, err
	}
	if after, err = w.empty.spent(); err != nil {
		return ns, err
	}
	nothing, err := after.per(messages, empty)
	for d := range ns {
		ns[d] -= nothing[d]
	}
	return ns, err
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}
