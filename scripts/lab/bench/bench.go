// SPDX-License-Identifier: Apache-2.0

// Package bench measures on the emulated phone what captures cost packets and what they lose, beside tcpdump.
//
// It is for a phone with LAB_ICOUNT (see boot.sh), where a ns is an instruction, whatever else the host does. That is not the
// time that a phone takes, which waits for memory, too.
package bench

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Report is what one phone says.
type Report struct {
	Kernel string `json:"kernel"`
	Costs  []Cost `json:"costs"`
	Loads  []Load `json:"loads"`
}

// Cost is what the programs of a capture take for a packet, in ns above an empty program on the same packets.
type Cost struct {
	Object string  `json:"object"`
	Case   string  `json:"case"`
	Out    float64 `json:"out"`
	In     float64 `json:"in"`
}

// Load is what a capture makes of packets that come in.
type Load struct {
	Load     string `json:"load"`
	Tool     string `json:"tool"`
	Offered  int    `json:"offered"`  // came in
	Captured int    `json:"captured"` // are in the file
	Dropped  int    `json:"dropped"`  // as the tool's last lines have it
	// Total is what the processor has to do more than without a capture, in ns for each packet that came in; Reader is
	// the tool's part of it.
	Total  float64 `json:"total"`
	Reader float64 `json:"reader"`
}

// Lost returns how many packets came in and are not in the file.
func (l Load) Lost() int { return l.Offered - l.Captured }

// Check returns an error where the agent's counters differ from what it lost, or nothing was lost where nobody read.
func (r Report) Check() error {
	var errs []error
	for _, l := range r.Loads {
		if l.Tool == tcpdump {
			continue
		}
		if l.Dropped != l.Lost() {
			errs = append(errs, fmt.Errorf("%s, %s: %d packets lost, %d counted", l.Tool, l.Load, l.Lost(), l.Dropped))
		}
		if l.Load == unread.name && l.Lost() == 0 {
			errs = append(errs, fmt.Errorf("%s, %s: no packet was lost", l.Tool, l.Load))
		}
	}
	return errors.Join(errs...)
}

// objects are the variants of the agent's programs.
var objects = []string{"ring", "legacy"}

// Run measures with an agent, as root.
func Run(agent string) (r Report, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return r, fmt.Errorf("ask for the kernel's name: %w", err)
	}
	r.Kernel = unix.ByteSliceToString(name.Release[:])
	w, err := newWire()
	defer func() { err = errors.Join(err, w.close()) }()
	if err != nil {
		return r, err
	}
	if r.Costs, err = w.costs(agent); err != nil {
		return r, err
	}
	r.Loads, err = w.loads(agent)
	return r, err
}
