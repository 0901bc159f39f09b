// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Command filter prints what filters cost a packet: ours in each form, and eCapture's way (elibpcap's injection by
// direct access and by bpf_skb_load_bytes) beside them, all above an empty program in the same run. Needs root.
package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/jschwinger233/elibpcap"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/bpf"
)

const (
	repeat = 200_000
	rounds = 7 // the best of which counts
	stub   = "filter_pcap_l2"
)

// packet is a frame of IPv4 or IPv6, TCP with timestamps, and 100 bytes of payload.
func packet(src, dst string, sport, dport uint16) []byte {
	be := binary.BigEndian
	from, to := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	tcp := be.AppendUint16(be.AppendUint16(nil, sport), dport)
	tcp = append(tcp, make([]byte, 8)...)
	tcp = append(tcp, 0x80, 0x18, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2)
	tcp = append(tcp, make([]byte, 100)...)
	frame := make([]byte, 12)
	if from.Is4() {
		frame = append(frame, 8, 0, 0x45, 0)
		frame = be.AppendUint16(frame, uint16(20+len(tcp)))
		frame = append(frame, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0)
	} else {
		frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0)
		frame = be.AppendUint16(frame, uint16(len(tcp)))
		frame = append(frame, unix.IPPROTO_TCP, 64)
	}
	return slices.Concat(frame, from.AsSlice(), to.AsSlice(), tcp)
}

// program returns the verdict of a stub that edit may fill.
func program(edit func(*ebpf.ProgramSpec) error) (*ebpf.Program, error) {
	spec, err := bpf.Open("packet", "legacy")
	if err != nil {
		return nil, err
	}
	insns := spec.Programs["l2_ingress"].Instructions
	start := slices.IndexFunc(insns, func(in asm.Instruction) bool { return in.Symbol() == stub })
	end := start + 1
	for end < len(insns) && btf.FuncMetadata(&insns[end]) == nil {
		end++
	}
	body := slices.Clone(insns[start:end])
	for i := range body {
		body[i] = body[i].WithMetadata(asm.Metadata{})
	}
	body[0] = body[0].WithSymbol(stub)
	p := &ebpf.ProgramSpec{Name: "bench", Type: ebpf.SchedCLS, License: "GPL", Instructions: slices.Concat(asm.Instructions{
		asm.Mov.Reg(asm.R2, asm.R1).WithSymbol("bench"),
		asm.Mov.Reg(asm.R3, asm.R1),
		asm.LoadMem(asm.R4, asm.R1, 76, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, 80, asm.Word),
		asm.Call.Label(stub),
		asm.Return(),
	}, body)}
	if err := edit(p); err != nil {
		return nil, err
	}
	return ebpf.NewProgram(p)
}

func empty() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: "empty", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
}

// way is a way to run an expression.
type way struct {
	name string
	make func(expr string) (*ebpf.Program, error)
}

func ours(form filter.Form) func(string) (*ebpf.Program, error) {
	return func(expr string) (*ebpf.Program, error) {
		f, err := filter.Compile(context.Background(), expr, pcapng.Ethernet, 0)
		if err != nil {
			return nil, err
		}
		return program(func(p *ebpf.ProgramSpec) error { return f.Inject(p, filter.How{Form: form}) })
	}
}

func theirs(mode elibpcap.PacketAccessMode) func(string) (*ebpf.Program, error) {
	return func(expr string) (*ebpf.Program, error) {
		return program(func(p *ebpf.ProgramSpec) (err error) {
			p.Instructions, err = elibpcap.Inject(expr, p.Instructions, elibpcap.Options{AtBpf2Bpf: stub, PacketAccessMode: mode, L2Skb: true})
			return err
		})
	}
}

var ways = []way{
	{"hybrid", ours(filter.Hybrid)},
	{"load-bytes", ours(filter.LoadBytes)},
	{"elibpcap direct", theirs(elibpcap.Direct)},
	{"elibpcap load-bytes", theirs(elibpcap.BpfSkbLoadBytes)},
}

func hosts(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("host 172.16.%d.%d", i/250, i%250+1))
	}
	return strings.Join(list, " or ")
}

// cost is ns for a packet, by what BPF_PROG_TEST_RUN says, and by what the kernel's statistics do.
type cost struct{ run, stats float64 }

func (c cost) above(d cost) cost { return cost{c.run - d.run, c.stats - d.stats} }

// measure measures programs in turns over each packet, so that all see the same machine. The best round counts.
func measure(programs []*ebpf.Program, packet []byte) ([]cost, error) {
	best := make([]cost, len(programs))
	for round := range rounds {
		for i, p := range programs {
			_, took, err := p.Benchmark(packet, repeat, nil)
			if err != nil {
				return nil, err
			}
			if ns := float64(took.Nanoseconds()); round == 0 || ns < best[i].run {
				best[i].run = ns
			}
		}
	}
	stats, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return nil, err
	}
	defer stats.Close()
	for round := range rounds {
		for i, p := range programs {
			before, err := p.Stats()
			if err != nil {
				return nil, err
			}
			if _, _, err := p.Benchmark(packet, repeat, nil); err != nil {
				return nil, err
			}
			after, err := p.Stats()
			if err != nil {
				return nil, err
			}
			ns := float64((after.Runtime - before.Runtime).Nanoseconds()) / float64(after.RunCount-before.RunCount)
			if round == 0 || ns < best[i].stats {
				best[i].stats = ns
			}
		}
	}
	return best, nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "filter:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	if err := costs(); err != nil {
		return err
	}
	return sizes()
}

// traffic is a packet and what it is to the filters.
type traffic struct {
	name   string
	packet []byte
}

func costs() error {
	other4 := traffic{"other IPv4", packet("10.1.1.1", "10.1.1.2", 40000, 8080)}
	other6 := traffic{"other IPv6", packet("2001:db8::1", "2001:db8::2", 40000, 8080)}
	match := traffic{"matches", packet("10.0.0.1", "10.1.1.2", 40000, 443)}
	fmt.Printf("ns for a packet above an empty program: by BPF_PROG_TEST_RUN / by the kernel's bpf statistics (best of %d x %d)\n\n", rounds, repeat)
	fmt.Printf("%-34s %-13s", "", "packet")
	for _, w := range ways {
		fmt.Printf(" %19s", w.name)
	}
	fmt.Println()
	for _, c := range []struct {
		name, expr string
		traffic    []traffic
	}{
		{"port 443", "port 443", []traffic{other4, other6, match}},
		{"host 10.0.0.1 and tcp port 443", "host 10.0.0.1 and tcp port 443", []traffic{other4, other6, match}},
		{"payload begins with GET", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420", []traffic{other4}},
		{"len > 1000", "len > 1000", []traffic{other4}},
		{"a list of 20 hosts", hosts(20), []traffic{other4}},
		{"a list of 100 hosts", hosts(100), []traffic{other4}},
		{"a list of 500 hosts", hosts(500), []traffic{other4}},
	} {
		if err := costsOf(c.name, c.expr, c.traffic); err != nil {
			return err
		}
	}
	return nil
}

// costsOf prints a line for each packet: what expr costs in every way that there is.
func costsOf(name, expr string, packets []traffic) error {
	nothing, err := empty()
	if err != nil {
		return err
	}
	programs := []*ebpf.Program{nothing}
	defer func() {
		for _, p := range programs {
			p.Close()
		}
	}()
	at := map[int]int{} // index of a way's program
	for i, w := range ways {
		if strings.HasPrefix(w.name, "elibpcap") && strings.Contains(name, "500") {
			continue // takes libpcap's optimiser five seconds
		}
		p, err := w.make(expr)
		if err != nil {
			continue // elibpcap refuses some
		}
		at[i] = len(programs)
		programs = append(programs, p)
	}
	for _, t := range packets {
		got, err := measure(programs, t.packet)
		if err != nil {
			return err
		}
		fmt.Printf("%-34s %-13s", name, t.name)
		for i := range ways {
			if n, there := at[i]; there {
				d := got[n].above(got[0])
				fmt.Printf(" %10.0f / %6.0f", d.run, d.stats)
			} else {
				fmt.Printf(" %19s", "-")
			}
		}
		fmt.Println()
	}
	return nil
}

// sizes prints how long lists take from the expression to the loaded program.
func sizes() error {
	fmt.Printf("\nlists: from the expression to the loaded program\n\n%-14s %10s %10s %24s %24s\n", "", "compiled", "loaded", "hybrid", "load-bytes")
	ports := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("port %d", i+1))
		}
		return strings.Join(list, " or ")
	}
	v6 := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("host 2001:db8::%x", i+1))
		}
		return strings.Join(list, " or ")
	}
	for _, c := range []struct {
		name, expr string
	}{
		{"20 hosts", hosts(20)}, {"100 hosts", hosts(100)}, {"500 hosts", hosts(500)}, {"1000 hosts", hosts(1000)},
		{"100 IPv6 hosts", v6(100)}, {"500 IPv6 hosts", v6(500)}, {"100 ports", ports(100)}, {"500 ports", ports(500)},
	} {
		start := time.Now()
		f, err := filter.Compile(context.Background(), c.expr, pcapng.Ethernet, 0)
		if err != nil {
			return err
		}
		compiled := time.Since(start)
		var insns [2]string
		var loaded time.Duration
		for i, form := range []filter.Form{filter.Hybrid, filter.LoadBytes} {
			start := time.Now()
			p, err := program(func(p *ebpf.ProgramSpec) error {
				err := f.Inject(p, filter.How{Form: form})
				insns[i] = fmt.Sprintf("%d insns", len(p.Instructions))
				return err
			})
			if i == 0 {
				loaded = time.Since(start)
			}
			if err != nil && !errors.Is(err, unix.E2BIG) && !errors.Is(err, unix.EFAULT) {
				return err
			}
			if err != nil {
				insns[i] += ", refused" // the capture then takes the next form
				continue
			}
			p.Close()
		}
		fmt.Printf("%-14s %7.0f ms %7.0f ms %24s %24s\n", c.name, 1e3*compiled.Seconds(), 1e3*loaded.Seconds(), insns[0], insns[1])
	}
	return nil
}
