// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// ip runs commands of ip(8) in the namespace.
func ip(t *testing.T, s nettest.Space, commands ...string) {
	t.Helper()
	for _, line := range commands {
		nettest.Run(t, append([]string{"ip", "-n", s.Name}, strings.Fields(line)...)...)
	}
}

// join makes an interface of that name in both namespaces, joined, with addresses whose third byte is the number.
func join(t *testing.T, near, far nettest.Space, name string, number int) {
	t.Helper()
	ip(t, near, fmt.Sprintf("link add %s address %s type veth peer name %s address %s netns %s",
		name, nettest.NearMAC, name, nettest.FarMAC, far.Name))
	for n, end := range []nettest.Space{near, far} {
		ip(t, end, fmt.Sprintf("link set %s addrgenmode none", name), fmt.Sprintf("addr add 10.96.%d.%d/24 dev %s", number, n+1, name),
			fmt.Sprintf("link set %s up", name))
	}
	awaitCarrier(t, near, name)
	awaitCarrier(t, far, name)
}

// awaitCarrier has the kernel act on an interface's carrier now, which it does up to a second later by itself: until then it throws away
// what is sent. To ask for one interface does it (Linux 6.8, net/core/rtnetlink.c rtnl_getlink).
func awaitCarrier(t *testing.T, s nettest.Space, ifname string) {
	t.Helper()
	if shown := nettest.Run(t, "ip", "-n", s.Name, "link", "show", "dev", ifname); !strings.Contains(shown, "LOWER_UP") {
		t.Fatalf("no carrier: %s", shown)
	}
}

// passes sends a frame of that length into an interface from its far end, once, and waits until the file has it.
func passes(t *testing.T, far nettest.Space, ifname, file string, length int) {
	t.Helper()
	into(t, far, ifname, length)
	nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == length })
}

// into sends a frame of that length into an interface from its far end.
func into(t *testing.T, far nettest.Space, ifname string, length int) {
	t.Helper()
	awaitCarrier(t, far, ifname)
	far.Must(t, func() error { return nettest.Send(ifname, markers(length)[1]) })
}

// lengths are those of an interface's packets in the file.
func lengths(f nettest.File, ifname string) (all []int) {
	for _, p := range f.Packets {
		if f.Interfaces[p.Interface].Name == ifname {
			all = append(all, p.Length)
		}
	}
	return all
}

// described are the interfaces of a file, in its order.
func described(f nettest.File) string {
	var all []string
	for _, i := range f.Interfaces {
		all = append(all, fmt.Sprintf("%s %d", i.Name, i.LinkType))
	}
	return strings.Join(all, ", ")
}

// stop ends a capture and reads its file, in which each interface must have counted what it has there.
func stop(t *testing.T, p *nettest.Process, file string) nettest.File {
	t.Helper()
	p.Stop(t, syscall.SIGINT)
	f, err := nettest.Read(file)
	must(t, err)
	packets := make([]uint64, len(f.Interfaces))
	for _, p := range f.Packets {
		packets[p.Interface]++
	}
	for number, i := range f.Interfaces {
		// 6: accepted by the filter, 7: dropped, 8: in the file
		if n := packets[number]; i.Statistics[6] != n || i.Statistics[7] != 0 || i.Statistics[8] != n {
			t.Errorf("%d packets on %s are in the file, and it counts %v", n, i.Name, i.Statistics)
		}
	}
	return f
}

// like fails the test unless an interface has in the file, between the marks, what tcpdump saw.
func like(t *testing.T, f nettest.File, ifname, reference string, longest int) {
	t.Helper()
	ref, err := nettest.Read(reference)
	must(t, err)
	for i := range ref.Packets {
		p := &ref.Packets[i]
		p.Data = p.Data[:min(len(p.Data), longest)]
	}
	var packets []nettest.Packet
	for _, p := range f.Packets {
		if f.Interfaces[p.Interface].Name == ifname {
			packets = append(packets, p)
		}
	}
	want, got := describe(cut(ref.Packets)), describe(cut(packets))
	if len(want) < 5 {
		t.Errorf("%s: tcpdump has %d packets only", ifname, len(want))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %d packets, tcpdump has %d (-tcpdump +agent):\n%s", ifname, len(got), len(want), abbreviate(diff))
	}
}

// TestAnyComes begins where only lo is up. An interface comes up, one is made, and one without Ethernet headers is made, for which
// no program was loaded: each is captured as tcpdump captures it.
func TestAnyComes(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		ip(t, near, "link set veth0 down")
		dir := t.TempDir()
		file := filepath.Join(dir, "any.pcapng")
		p := startAgent(t, near, file, append([]string{"-v", "-B", "16384", "-i", "any"}, variant...)...)
		ip(t, near, "link set veth0 up")
		p.Await(t, "agent: veth0 is captured from now on (hook "+variant[3]+")\n")
		join(t, near, far, "veth1", 1)
		p.Await(t, "agent: veth1 is captured from now on (hook "+variant[3]+")\n")
		tun := openTun(t, near)
		p.Await(t, "agent: tun0 is captured from now on (hook "+variant[3]+")\n")

		var running []*nettest.Process
		reference := func(ifname string) string { return filepath.Join(dir, ifname+".pcap") }
		names := []string{"lo", "veth0", "veth1", "tun0"}
		for _, name := range names {
			if name != "lo" {
				awaitCarrier(t, near, name)
			}
			running = append(running, startTcpdump(t, near, reference(name), "-i", name))
		}
		awaitCarrier(t, far, "veth0")
		marks := func(out, in int) {
			for _, name := range names[1:3] {
				near.Must(t, func() error { return nettest.Send(name, markers(out)...) })
				far.Must(t, func() error { return nettest.Send(name, markers(in)...) })
			}
			near.Must(t, func() error { return nettest.Send("lo", markers(in)...) })
			markTun(t, near, tun, out, in)
		}
		marks(startOut, startIn)
		serve(t, near, 0)
		near.Must(t, func() error { return talkAll("127.0.0.1", "::1") })
		for _, name := range names[1:3] {
			near.Must(t, func() error {
				return nettest.Send(name, oddFrames(nettest.NearMAC, otherMAC, "10.97.0.1", "10.97.0.2", "fd00:97::1", "fd00:97::2")...)
			})
			far.Must(t, func() error {
				return nettest.Send(name, oddFrames(nettest.FarMAC, otherMAC, "10.97.0.2", "10.97.0.1", "fd00:97::2", "fd00:97::1")...)
			})
		}
		exchangeTun(t, near, tun)
		marks(endOut, endIn)
		for number, name := range names {
			nettest.Await(t, reference(name), func(p nettest.Packet) bool { return p.Length == endIn })
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == endIn && p.Interface == number })
		}
		for _, p := range running {
			p.Stop(t, syscall.SIGINT)
		}
		f := stop(t, p, file)
		if d := cmp.Diff("lo 1, veth0 1, veth1 1, tun0 101", described(f)); d != "" {
			t.Fatalf("interfaces (-want +got):\n%s", d)
		}
		for _, name := range names {
			like(t, f, name, reference(name), longest(variant))
		}
		nothingLeft(t, near)
	})
}

// twoVariants runs a test by a classifier and by a packet socket.
func twoVariants(t *testing.T, f func(t *testing.T, variant []string)) {
	t.Helper()
	for _, variant := range [][]string{variants[0], variants[4]} {
		t.Run(variant[3], func(t *testing.T) { f(t, variant) })
	}
}

// TestAnyRenamed renames an interface that is captured: down, as older kernels want it, and up.
func TestAnyRenamed(t *testing.T) {
	nettest.Require(t, "agent")
	twoVariants(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		join(t, near, far, "first", 1)
		file := filepath.Join(t.TempDir(), "renamed.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "any"}, variant...), "udp")...)
		passes(t, far, "first", file, 101)
		ip(t, near, "link set first down", "link set first name second", "link set second up")
		p.Await(t, "agent: second is captured from now on")
		passes(t, far, "first", file, 102)
		passes(t, far, "first", file, 103)
		want := "lo 1, veth0 1, first 1, second 1"
		live := near.Command("ip", "link", "set", "second", "name", "third").Run() == nil // Linux 6.2
		if live {
			want += ", third 1"
			p.Await(t, "agent: third is captured from now on")
			passes(t, far, "first", file, 104)
		}
		f := stop(t, p, file)
		if d := cmp.Diff(want, described(f)); d != "" {
			t.Errorf("interfaces (-want +got):\n%s", d)
		}
		for name, want := range map[string][]int{"first": {101}, "second": {102, 103}, "third": {104}} {
			if got := lengths(f, name); !slices.Equal(got, want) && (live || name != "third") {
				t.Errorf("%s has packets of %d bytes, not %d", name, got, want)
			}
		}
		nothingLeft(t, near)
	})
}

// TestAnyLeaves has an interface move to another namespace, where nothing of it is captured, and back.
func TestAnyLeaves(t *testing.T) {
	nettest.Require(t, "agent")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		join(t, near, far, "leaver", 1)
		elsewhere := nettest.NewSpace(t)
		file := filepath.Join(t.TempDir(), "moved.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "any"}, variant...), "udp")...)
		passes(t, far, "leaver", file, 101)
		ip(t, near, "link set leaver netns "+elsewhere.Name)
		p.Await(t, "agent: interface leaver went away: it is captured again when it comes back\n")
		ip(t, elsewhere, "link set leaver up")
		into(t, far, "leaver", 102)
		nothingLeft(t, elsewhere)
		passes(t, far, "veth0", file, 103)
		ip(t, elsewhere, "link set leaver netns "+near.Name)
		ip(t, near, "link set leaver up")
		p.Await(t, "agent: leaver was gone for ")
		passes(t, far, "leaver", file, 104)
		f := stop(t, p, file)
		if d := cmp.Diff("lo 1, veth0 1, leaver 1", described(f)); d != "" {
			t.Errorf("interfaces (-want +got):\n%s", d)
		}
		if got := lengths(f, "leaver"); !slices.Equal(got, []int{101, 104}) {
			t.Errorf("it has packets of %d bytes", got)
		}
		told(t, p, file, "leaver", 1)
		nothingLeft(t, near)
	})
}

// TestAnyChangesType has a captured interface get another link type under its name and index: the file knows it as another one.
func TestAnyChangesType(t *testing.T) {
	nettest.Require(t, "agent")
	twoVariants(t, func(t *testing.T, variant []string) {
		near := nettest.NewSpace(t)
		tun := openTun(t, near)
		file := filepath.Join(t.TempDir(), "type.pcapng")
		p := startAgent(t, near, file, append([]string{"-v", "-i", "any"}, variant...)...)
		arrive := func(length int) {
			_, err := tun.Write(nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_UDP, 0x2000, nil, make([]byte, length-20)))
			must(t, err)
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == length })
		}
		arrive(101)
		ip(t, near, "link set tun0 down")
		must(t, unix.IoctlSetInt(int(tun.Fd()), unix.TUNSETLINK, unix.ARPHRD_ETHER))
		ip(t, near, "link set tun0 up")
		p.Await(t, "agent: tun0 is captured from now on")
		arrive(102)
		arrive(103)
		f := stop(t, p, file)
		if d := cmp.Diff("lo 1, tun0 101, tun0 1", described(f)); d != "" {
			t.Errorf("interfaces (-want +got):\n%s", d)
		}
	})
}

// TestPattern waits for the interfaces that a pattern means, and for none else.
func TestPattern(t *testing.T) {
	nettest.Require(t, "agent")
	twoVariants(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		file := filepath.Join(t.TempDir(), "pattern.pcapng")
		argv := append([]string{"agent", "-v", "-U", "-w", file, "-i", "rmnet*"}, variant...)
		argv = append(argv, "udp")
		p := nettest.Start(t, near.Command(argv...), "agent: no interface is captured yet: there is none that -i means; the capture waits for one\n")
		join(t, near, far, "wlan0", 1)
		join(t, near, far, "rmnet_data0", 2)
		p.Await(t, "agent: rmnet_data0 is captured from now on")
		passes(t, far, "rmnet_data0", file, 101)
		tun := nettest.OpenTun(t, near, "rmnet_ipa0")
		p.Await(t, "agent: rmnet_ipa0 is captured from now on")
		join(t, near, far, "rmnet_data1", 3)
		p.Await(t, "agent: rmnet_data1 is captured from now on")
		passes(t, far, "rmnet_data1", file, 102)
		ip(t, near, "link del rmnet_data0")
		into(t, far, "wlan0", 103)
		_, err := tun.Write(nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_UDP, 0, nil, nettest.UDP(5, 9, make([]byte, 104-28))))
		must(t, err)
		nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 104 })
		passes(t, far, "rmnet_data1", file, 105)
		f := stop(t, p, file)
		if d := cmp.Diff("rmnet_data0 1, rmnet_ipa0 101, rmnet_data1 1", described(f)); d != "" {
			t.Errorf("interfaces (-want +got):\n%s", d)
		}
		for name, want := range map[string][]int{"rmnet_data0": {101}, "rmnet_ipa0": {104}, "rmnet_data1": {102, 105}} {
			if got := lengths(f, name); !slices.Equal(got, want) {
				t.Errorf("%s has packets of %d bytes, not %d", name, got, want)
			}
		}
		nothingLeft(t, near)
	})
}

// TestAnyTooMany has 300 interfaces come at once, more than can be captured: it is said which are left out, and they are taken in
// when others go.
func TestAnyTooMany(t *testing.T) {
	nettest.Require(t, "agent")
	const pairs, most = 150, 255
	const captured, left = " is captured from now on", " is not captured: 255 interfaces are captured, which is the most\n"
	near := nettest.NewSpace(t)
	near.Run(t, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
	dir := t.TempDir()
	file, batch := filepath.Join(dir, "many.pcapng"), filepath.Join(dir, "batch")
	// One direction: the kernel takes a hundredth of a second to attach at one point, and to detach.
	p := startAgent(t, near, file, "-v", "-Q", "in", "-i", "any")
	var lines strings.Builder
	for n := range pairs {
		fmt.Fprintf(&lines, "link add a%d up type veth peer name b%d\nlink set b%d up\n", n, n, n)
	}
	must(t, os.WriteFile(batch, []byte(lines.String()), 0o600))
	near.Run(t, "ip", "-batch", batch)
	p.AwaitTimes(t, captured, most-1) // and lo
	p.AwaitTimes(t, left, 2*pairs-(most-1))
	var in, out []string
	for line := range strings.Lines(p.Stderr()) {
		name := strings.Fields(line)[1]
		if strings.Contains(line, captured) {
			in = append(in, name)
		} else if strings.HasSuffix(line, left) {
			out = append(out, name)
		}
	}
	arrive := func(ifname string, length int) {
		awaitCarrier(t, near, ifname)
		near.Must(t, func() error {
			return nettest.Send(strings.NewReplacer("a", "b", "b", "a").Replace(ifname), markers(length)[1])
		})
	}
	arrive(out[0], 101)
	for n, ifname := range []string{in[0], in[most-2]} {
		arrive(ifname, 102+n)
		nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 102+n })
	}
	// Both ends of each are captured.
	ip(t, near, "link del "+in[0], "link del "+in[2])
	p.AwaitTimes(t, captured, most-1+4)
	arrive(out[0], 104)
	nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 104 })
	f := stop(t, p, file)
	for _, packet := range f.Packets {
		if packet.Length == 101 {
			t.Errorf("a packet of an interface that was left out is in the file, on %s", f.Interfaces[packet.Interface].Name)
		}
	}
	if len(f.Interfaces) != most+4 || strings.Count(p.Stderr(), left) != 2*pairs-(most-1) {
		t.Errorf("%d interfaces are in the file:\n%s", len(f.Interfaces), p.Stderr())
	}
	nothingLeft(t, near)
}
