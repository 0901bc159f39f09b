// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// datagrams sends n UDP datagrams from far to near, where nobody listens.
func datagrams(t *testing.T, far nettest.Space, n int) {
	t.Helper()
	far.Must(t, func() error {
		for range n {
			if err := sendUDP(nettest.Near4, 100); err != nil {
				return err
			}
		}
		return nil
	})
}

// counters reads the lines that a capture ends with.
func counters(t *testing.T, stderr string) map[string]int {
	t.Helper()
	found := map[string]int{}
	for _, m := range regexp.MustCompile(`(\d+) (?:packets )?([a-z ]+)`).FindAllStringSubmatch(stderr, -1) {
		found[strings.TrimSpace(m[2])], _ = strconv.Atoi(m[1])
	}
	return found
}

// wireshark runs one of Wireshark's tools; what it has to complain about fails the test.
func wireshark(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8", "TZ=UTC")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	complaints := strings.ReplaceAll(stderr.String(), "Running as user \"root\" and group \"root\". This could be dangerous.\n", "")
	if err != nil || complaints != "" {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, complaints)
	}
	return stdout.String()
}

// TestCount ends by itself.
func TestCount(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	for _, variant := range variants {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "five.pcapng")
			argv := append([]string{"agent", "-i", "veth0", "-c", "5", "-w", file}, variant...)
			p := nettest.Start(t, near.Command(append(argv, "udp")...), "capturing on veth0 to "+file)
			datagrams(t, far, 9)
			if code := p.Wait(t); code != 0 {
				t.Errorf("code %d", code)
			}
			f, err := nettest.Read(file)
			must(t, err)
			if said := counters(t, p.Stderr())["captured"]; len(f.Packets) != 5 || said != 5 {
				t.Errorf("%d packets in the file, %d on stderr:\n%s", len(f.Packets), said, p.Stderr())
			}
		})
	}
}

// TestFile has Wireshark's tools read a capture.
func TestFile(t *testing.T) {
	nettest.Require(t, "agent", "tcpdump", "tshark", "capinfos")
	for _, variant := range variants {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			dir := t.TempDir()
			file, reference := filepath.Join(dir, "agent.pcapng"), filepath.Join(dir, "reference.pcap")
			tcpdump := startTcpdump(t, near, reference, "-i", "veth0", "udp port 9 and udp")
			args := append([]string{"-i", "veth0", "--comments", "all"}, variant...)
			agent := startAgent(t, near, file, append(args, "udp port 9", "and", "udp")...)
			near.Must(t, func() error { return sendUDP(nettest.Far4, 50) })
			datagrams(t, far, 3)
			far.Must(t, func() error { return nettest.Send("veth0", markers(endIn)...) })
			last := func(p nettest.Packet) bool { return p.Length == endIn && p.Data[12] == 0x86 }
			nettest.Await(t, file, last)
			nettest.Await(t, reference, last)
			agent.Stop(t, syscall.SIGTERM)
			tcpdump.Stop(t, syscall.SIGINT)

			f, err := nettest.Read(file)
			must(t, err)
			ref, err := nettest.Read(reference)
			must(t, err)
			if len(f.Packets) != len(ref.Packets) || len(f.Packets) != 6 {
				t.Fatalf("%d packets, tcpdump has %d, and 6 were sent", len(f.Packets), len(ref.Packets))
			}
			for i, p := range f.Packets {
				if d := time.Duration(p.Time - ref.Packets[i].Time).Abs(); d > 5*time.Millisecond {
					t.Errorf("packet %d: %v from tcpdump's time", i, d)
				}
				if want := 1 + btoi(leaves(p) && p.Length != endIn); p.Direction != want {
					t.Errorf("packet %d has direction %d, not %d", i, p.Direction, want)
				}
			}

			// Nobody has a socket for what comes in.
			unattributed := 0
			for _, p := range f.Packets {
				unattributed += btoi(p.Comment == "" || p.Comment == "uid=unknown")
			}
			if d := cmp.Diff([]string{fmt.Sprintf("unattributed=%d kept", unattributed)}, f.Interfaces[0].Comments); d != "" || unattributed < 5 {
				t.Errorf("%d packets have no owner (-want +got):\n%s", unattributed, d)
			}
			said := counters(t, agent.Stderr())
			wantSaid := map[string]int{"captured": 6, "received by filter": 6, "dropped by kernel": 0, "dropped by agent": 0, "unattributed": unattributed}
			for name, n := range wantSaid {
				if got, ok := said[name]; !ok || got != n {
					t.Errorf("stderr: %d %s, not %d", got, name, n)
				}
			}
			s := f.Interfaces[0].Statistics
			// if_recv counts what passed the hook; UDP unreachable answers and ARP at least did, too.
			if s[4] <= 6 || s[5] != 0 || s[6] != 6 || s[7] != 0 || s[8] != 6 {
				t.Errorf("interface statistics %v", s)
			}
			if i := f.Interfaces[0]; i.Name != "veth0" || i.Filter != "udp port 9 and udp" || i.Snaplen != 262144 {
				t.Errorf("interface %+v", i)
			}

			fields := wireshark(t, "tshark", "-r", file, "-T", "fields", "-e", "frame.interface_name", "-e", "frame.packet_flags_direction", "-e", "udp.dstport")
			want := "veth0\t0x00000002\t9\n" + strings.Repeat("veth0\t0x00000001\t9\n", 5)
			if diff := cmp.Diff(want, fields); diff != "" {
				t.Errorf("tshark (-want +got):\n%s", diff)
			}
			about := wireshark(t, "capinfos", file)
			uname := strings.TrimSpace(nettest.Run(t, "uname", "-sr"))
			for _, want := range []string{
				"Capture oper-sys:    " + uname, "Capture application: droidtap agent ", "Capture hardware:    x86_64",
				"Number of packets:   6", "Strict time order:   True", "nanoseconds (9)", "Name = veth0", "Capture length = 262144",
				"agent -U -w " + file + " -i veth0 --comments all " + strings.Join(variant, " ") + " udp port 9 and udp",
			} {
				if !strings.Contains(about, want) {
					t.Errorf("capinfos does not say %q:\n%s", want, about)
				}
			}
			blocks := wireshark(t, "tshark", "-r", file, "-X", "read_format:MIME Files Format", "-O", "file-pcapng", "-V")
			for _, want := range []string{"Interface Statistics Block", "Number of Accepted by Filter Packets: 6"} {
				if !strings.Contains(blocks, want) {
					t.Errorf("tshark shows no %q", want)
				}
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// network is what tc says of the namespace.
func network(t *testing.T, s nettest.Space) string {
	t.Helper()
	return s.Run(t, "tc", "qdisc", "show") +
		s.Run(t, "tc", "filter", "show", "dev", "veth0", "ingress") +
		s.Run(t, "tc", "filter", "show", "dev", "veth0", "egress")
}

// TestHarmless leaves the network as it was.
func TestHarmless(t *testing.T) {
	nettest.Require(t, "agent", "tc")
	before := map[string][][]string{
		"nothing before": nil,
		"a foreign clsact before": {
			{"tc", "qdisc", "add", "dev", "veth0", "clsact"},
		},
		"foreign filters before": {
			{"tc", "qdisc", "add", "dev", "veth0", "clsact"},
			{"tc", "filter", "add", "dev", "veth0", "ingress", "pref", "1", "protocol", "ip", "u32", "match", "u32", "0", "0", "flowid", "1:1"},
			{"tc", "filter", "add", "dev", "veth0", "egress", "pref", "4", "bpf", "direct-action", "bytecode", "1,6 0 0 4294967295"},
		},
	}
	for name, commands := range before {
		t.Run(name, func(t *testing.T) {
			near, far := nettest.Pair(t)
			for _, argv := range commands {
				near.Run(t, argv...)
			}
			was := network(t, near)
			dir := t.TempDir()
			for i, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT} {
				for _, variant := range variants[:2] {
					file := filepath.Join(dir, fmt.Sprint(i, variant[3]))
					p := startAgent(t, near, file, append([]string{"-i", "veth0"}, variant...)...)
					datagrams(t, far, 1)
					p.Stop(t, sig)
					if diff := cmp.Diff(was, network(t, near)); diff != "" {
						t.Errorf("%s, %v (-before +after):\n%s", variant[3], sig, diff)
					}
					if f, err := nettest.Read(file); err != nil || len(f.Packets) == 0 {
						t.Errorf("%s, %v: %d packets, %v", variant[3], sig, len(f.Packets), err)
					}
				}
			}
			killed := startAgent(t, near, filepath.Join(dir, "killed"), "-i", "veth0", "--backend", "tc")
			killed.Signal(t, syscall.SIGKILL)
			killed.Wait(t)
			if network(t, near) == was {
				t.Error("a killed agent left no filter: this tests nothing")
			}
			next := startAgent(t, near, filepath.Join(dir, "next"), "-i", "veth0", "--backend", "tc")
			next.Stop(t, syscall.SIGINT)
			if diff := cmp.Diff(was, network(t, near)); diff != "" {
				t.Errorf("after a killed run and another (-before +after):\n%s\n%s", diff, next.Stderr())
			}
			if !strings.Contains(next.Stderr(), "left by a killed run") {
				t.Errorf("nothing is said of the leftovers:\n%s", next.Stderr())
			}
		})
	}
}

// TestTwoAgents has two on one interface, and the first one leave.
func TestTwoAgents(t *testing.T) {
	nettest.Require(t, "agent", "tc")
	for _, variant := range variants {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			was := network(t, near)
			dir := t.TempDir()
			one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
			args := append([]string{"-i", "veth0"}, variant...)
			first, second := startAgent(t, near, one, args...), startAgent(t, near, two, args...)
			mark(t, near, far, startOut, startIn)
			datagrams(t, far, 20)
			mark(t, near, far, endOut, endIn)
			last := func(p nettest.Packet) bool { return p.Length == endIn }
			nettest.Await(t, one, last)
			nettest.Await(t, two, last)
			first.Stop(t, syscall.SIGINT)
			if diff := cmp.Diff(describe(between(t, one)), describe(between(t, two))); diff != "" {
				t.Errorf("two captures of the same packets:\n%s", abbreviate(diff))
			}
			if n := len(between(t, one)); n < 20 {
				t.Errorf("%d packets, and 20 were sent", n)
			}
			far.Must(t, func() error { return nettest.Send("veth0", markers(1010)...) })
			nettest.Await(t, two, func(p nettest.Packet) bool { return p.Length == 1010 })
			second.Stop(t, syscall.SIGINT)
			if diff := cmp.Diff(was, network(t, near)); diff != "" {
				t.Errorf("after both (-before +after):\n%s", diff)
			}
		})
	}
}
