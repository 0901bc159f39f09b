// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"fmt"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// BenchmarkPrograms prints what a packet costs in each program by the kernel's statistics, in ns: the whole, and above an empty
// program. The best of many short runs counts, since whatever disturbs one makes it longer. All packets are the same, so every
// cache is warm; make bench has others.
func BenchmarkPrograms(b *testing.B) {
	needRoot(b)
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		b.Skipf("needs statistics of programs, 5.8: %v", err)
	}
	b.Cleanup(func() { _ = stats.Close() })
	s := newSpace(b, 65536)
	s.configure(b)
	socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "", 0}.open(b, app)
	connect(b, app)

	empty := best(b, emptyProgram(b), s.other, outgoing(udp), func() {})
	for _, tier := range tiers {
		for _, mode := range []struct {
			name  string
			owner uint32
		}{{"no owner", ignore}, {"told", tell}, {"filtered", byOwner}} {
			if mode.owner == ignore && tier.name == "flows" {
				continue // the same as lookup
			}
			for _, match := range []struct{ name, expr string }{{"all", ""}, {"match", "port 443"}, {"no match", "port 9"}} {
				if mode.owner == byOwner && match.expr != "" {
					continue
				}
				set := tier.offsets(b, settings{Snaplen: 128, Directions: both, Wakeup: 1 << 20, Owner: mode.owner})
				c := start(b, tier.object, config{
					settings: set, interfaces: []uint32{0}, slots: []uint32{s.other}, uids: []uint32{app, root},
					edit: func(spec *ebpf.CollectionSpec) {
						inject(b, spec, match.expr, pcapng.Ethernet, filter.Hybrid)
						inject(b, spec, match.expr, pcapng.Raw, filter.Hybrid)
					}})
				drain := c.drain(b)
				for _, p := range programs {
					for _, protocol := range []byte{udp, tcp} {
						b.Run(fmt.Sprintf("%s/%s/%s/%s/%s", tier.name, mode.name, match.name, p.name, map[byte]string{udp: "UDP", tcp: "TCP"}[protocol]), func(b *testing.B) {
							s.enter(b)
							packet := outgoing(protocol)
							if p.direction == ingress {
								packet = incoming("10.0.0.1", protocol, ack)
							}
							if strings.HasPrefix(p.name, "l3") {
								packet = packet[14:]
							}
							ns := best(b, c.Programs[p.name], s.other, packet, drain)
							b.ReportMetric(ns, "ns/packet")
							b.ReportMetric(ns-empty, "above-empty")
							b.ReportMetric(0, "ns/op")
						})
					}
				}
			}
		}
	}
}

// outgoing is a packet of root's socket.
func outgoing(protocol byte) []byte {
	payload := udpHead(true)
	if protocol == tcp {
		payload = tcpHead(true, ack)
	}
	return ethernet(packet4(true, protocol, 0, payload), typeIP4)
}

// best runs a program over a packet as long as the benchmark lasts, and returns ns for a packet.
func best(b *testing.B, p *ebpf.Program, ifindex uint32, packet []byte, drain func()) float64 {
	b.Helper()
	const repeat = 500
	least := math.Inf(1)
	stats := func() *ebpf.ProgramStats {
		st, err := p.Stats()
		if err != nil {
			b.Fatal(err)
		}
		return st
	}
	before := stats()
	for begin := time.Now(); time.Since(begin) < 20*time.Millisecond || b.Loop(); {
		if _, err := p.Run(&ebpf.RunOptions{Data: packet, Context: skb{Ifindex: ifindex}, Repeat: repeat}); err != nil {
			b.Fatal(err)
		}
		drain()
		after := stats()
		least = min(least, float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount))
		before = after
	}
	return least
}

func emptyProgram(b *testing.B) *ebpf.Program {
	b.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close() })
	return p
}

// drain returns a function that makes the ring empty. A perf buffer overwrites nothing, so its reader is asked.
func (c *capture) drain(b *testing.B) func() {
	b.Helper()
	_, isRing := c.ring.(ringBuffer)
	if !isRing {
		return func() {
			if err := c.ring.Flush(); err != nil {
				b.Fatal(err)
			}
			for {
				if _, err := c.ring.next(); err != nil {
					return
				}
			}
		}
	}
	page, fd := unix.Getpagesize(), c.Maps["events"].FD()
	position := func(offset int64, prot int) *uint64 {
		m, err := unix.Mmap(fd, offset, page, prot, unix.MAP_SHARED)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = unix.Munmap(m) })
		return (*uint64)(unsafe.Pointer(&m[0]))
	}
	consumer := position(0, unix.PROT_READ|unix.PROT_WRITE)
	producer := position(int64(page), unix.PROT_READ)
	const lag = 8 // as the agent's reader has, so that no record wakes by the kernel's rule
	return func() { atomic.StoreUint64(consumer, max(atomic.LoadUint64(producer), lag)-lag) }
}
