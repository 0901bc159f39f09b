// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestChoose(t *testing.T) {
	const all, ip = unix.ETH_P_ALL, unix.ETH_P_IP
	at := func(pref uint16, proto uint16, kind string, handles ...uint32) (fs []filter) {
		for _, h := range append([]uint32{0}, handles...) {
			fs = append(fs, filter{pref: pref, proto: proto, kind: kind, handle: h})
		}
		return fs
	}
	for _, c := range []struct {
		rule    string
		there   [][]filter
		refused map[uint16]int
		pref    uint16
		handle  uint32
	}{
		{"nothing there", nil, nil, 1, handleBase},
		{"netd's own are no obstacle", [][]filter{at(2, unix.ETH_P_IPV6, "bpf", 1), at(4, ip, "bpf", 1), at(5, all, "bpf", 1)}, nil, 1, handleBase},
		{"bpf and all is shared", [][]filter{at(1, all, "bpf", 1)}, nil, 1, handleBase},
		{"another agent's handle", [][]filter{at(1, all, "bpf", 1, handleBase, handleBase+1)}, nil, 1, handleBase + 2},
		{"a free handle in between", [][]filter{at(1, all, "bpf", handleBase+1)}, nil, 1, handleBase},
		{"another protocol at 1", [][]filter{at(1, ip, "bpf", 1)}, nil, 6, handleBase},
		{"police at 1", [][]filter{at(1, all, "matchall", 1)}, nil, 6, handleBase},
		{"the lowest free from 6 up", [][]filter{at(1, all, "matchall", 1), at(6, all, "bpf", 1), at(7, ip, "u32", 1), at(9, ip, "u32", 1)}, nil, 8, handleBase},
		{"a preference refused once is tried again", nil, map[uint16]int{1: 1}, 1, handleBase},
		{"a preference refused twice is passed over", nil, map[uint16]int{1: 2, 6: 2}, 7, handleBase},
	} {
		t.Run(c.rule, func(t *testing.T) {
			var there []filter
			for _, fs := range c.there {
				there = append(there, fs...)
			}
			if pref, handle := choose(there, c.refused, handleBase); pref != c.pref || handle != c.handle {
				t.Errorf("choose = %d, %#x, want %d, %#x", pref, handle, c.pref, c.handle)
			}
		})
	}
}
