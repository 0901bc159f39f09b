// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"regexp"
	"strconv"
)

// counters are what a tool says of a capture on standard error at its end.
type counters struct {
	Captured uint64 `json:"captured"`
	Dropped  uint64 `json:"dropped"` // by the kernel and by the tool
}

var (
	captured        = regexp.MustCompile(`(?m)^(\d+) packets? captured$`)
	droppedByKernel = regexp.MustCompile(`(?m)^(\d+) packets? dropped by kernel$`)
	droppedByAgent  = regexp.MustCompile(`(?m)^(\d+) packets? dropped by agent, `)
	// dumpcap's, of one interface; both numbers are in the first place of tcpdump's.
	dumpcapCounters = regexp.MustCompile(`(?m)^Packets received/dropped on interface '[^']*': (\d+)/(\d+) `)
)

// counters reads those of the tool.
func (k kind) counters(text string) (c counters, err error) {
	number := func(re *regexp.Regexp, group int) (n uint64) {
		m := re.FindStringSubmatch(text)
		if m == nil {
			err = fmt.Errorf("%s said no counters: %q", k, text)
			return 0
		}
		n, parsed := strconv.ParseUint(m[group], 10, 64)
		if parsed != nil {
			err = fmt.Errorf("%s: %w", k, parsed)
		}
		return n
	}
	switch k {
	case dumpcap:
		c = counters{number(dumpcapCounters, 1), number(dumpcapCounters, 2)}
	case agent:
		c = counters{number(captured, 1), number(droppedByKernel, 1) + number(droppedByAgent, 1)}
	default:
		c = counters{number(captured, 1), number(droppedByKernel, 1)}
	}
	return c, err
}
