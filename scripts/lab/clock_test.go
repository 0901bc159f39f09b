// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"droidtap/scripts/nettest"
)

// ways are the sources of time stamps: the clock of either object, and the packet socket's.
var ways = []struct{ name, flags string }{
	{"automatic", ""},
	{"legacy object", "--object legacy"},
	{"packet socket", "--backend packet"},
}

// testClock sets the phone's clock while the agent and tcpdump, whose times are the kernel's, capture the same packets.
func testClock(t *testing.T, p *phone) {
	t.Cleanup(func() { p.root(t, "date -s @"+strconv.FormatInt(time.Now().Unix(), 10)) })
	send := "/lab/phone udp -n 3 " + peer + ":53"
	lines := []string{send}
	// Forward, back, and by little. date(1) drops the fraction of a second: a step is less by that.
	steps := []string{"+ 3600", "- 3600", "- 100000", "+ 100000", "+ 3", "- 2"}
	for _, seconds := range steps {
		lines = append(lines, "date -s @$(( $(date +%s) "+seconds+" ))", send)
	}
	traffic := strings.Join(lines, " && ")
	for _, c := range []struct{ name, flags string }{
		{"written at once", "-U"},
		{"read late", ""},
	} {
		for _, way := range ways {
			t.Run(way.name+", "+c.name, func(t *testing.T) {
				b := p.besideTcpdump(t, "wlan0", c.flags+" "+way.flags)
				p.root(t, traffic)
				got, want := b.end(t, 3*2*(1+len(steps)))
				sameTimes(t, got, want)
				if n := jumps(want, time.Second); n < len(steps) {
					t.Errorf("tcpdump's times jump %d times, want %d", n, len(steps))
				}
			})
		}
	}
}

// testSleep has the phone sleep in the middle of captures.
func testSleep(t *testing.T, p *phone) {
	const far = "10.79.0.2"
	p.root(t, "ip link add sleep0 type veth peer name sleep0 netns peer && ip addr add 10.79.0.1/24 dev sleep0 && "+
		"ip link set sleep0 up && ip netns exec peer ip addr add "+far+"/24 dev sleep0 && ip netns exec peer ip link set sleep0 up")
	t.Cleanup(func() {
		p.root(t, "ip link del sleep0")
		// The radios leave their cell when the phone sleeps.
		const join = "ibss join lab 2412 fixed-freq 02:11:22:33:44:55"
		p.root(t, "iw dev wlan0 "+join+"; ip netns exec peer iw dev wlan1 "+join)
		eventually(t, "wlan0 is back", func() bool {
			_, code := p.run(t, "ping -c 1 -W 1 "+peer)
			return code == 0
		})
	})
	send := "/lab/phone udp -n 3 " + far + ":53"
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			b := p.besideTcpdump(t, "sleep0", "-U -v "+way.flags)
			p.shell(t, send)
			p.sleep(t)
			if strings.Contains(way.flags, "legacy") {
				b.agent.until(t, eventLine(1)) // the kernel had switched that processor off
			}
			p.shell(t, send)
			got, want := b.end(t, 3*2*2)
			sameTimes(t, got, want)
		})
	}
	t.Run("duration", func(t *testing.T) {
		const span = 12 // seconds
		a := p.start(t, "shell", fmt.Sprintf("su -c '%s -i sleep0 --duration %d'", agent, span))
		start, _ := p.uptime(t)
		path := a.until(t, readyLine)[1]
		ready, _ := p.uptime(t)
		p.sleep(t)
		if code := a.end(t); code != 0 {
			t.Errorf("exit code %d:\n%s", code, strings.Join(a.seen, "\n"))
		}
		end, _ := p.uptime(t)
		if end-start < span {
			t.Errorf("ended after %.1f s, want %d", end-start, span)
		}
		if end-ready > span+slumber-1 {
			t.Errorf("ended after %.1f s, want %d: the sleep was not counted", end-ready, span)
		}
		t.Logf("ended %.1f s after it was ready", end-ready)
		p.root(t, "rm "+path)
	})
}

// slumber is how long the phone sleeps, in seconds: kernel/power/hibernate.c hibernation_test.
const slumber = 5

// sleep has the phone sleep. QEMU's machine has no sleep in which its clocks stop, so it is the kernel's test of
// hibernation up to that point (Documentation/power/basic-pm-debugging.rst).
func (p *phone) sleep(t *testing.T) {
	t.Helper()
	before, beforeAwake := p.uptime(t)
	p.root(t, "echo core >/sys/power/pm_test && echo disk >/sys/power/state && echo none >/sys/power/pm_test")
	after, afterAwake := p.uptime(t)
	if slept := after - before - (afterAwake - beforeAwake); slept < slumber-1 {
		t.Fatalf("the phone slept for %.1f s, want %d", slept, slumber)
	}
}

// uptime returns how long ago the phone was booted, and how much of that it was awake, in seconds.
func (p *phone) uptime(t *testing.T) (boot, awake float64) {
	t.Helper()
	out := p.root(t, "cat /proc/uptime; grep -m1 now /proc/timer_list")
	var idle, ns float64
	if _, err := fmt.Sscanf(out, "%f %f\nnow at %f nsecs", &boot, &idle, &ns); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return boot, ns / 1e9
}

// pair is the agent and tcpdump on the same packets.
type pair struct {
	p              *phone
	agent, tcpdump *process
	path           string
}

// besideTcpdump starts both on the test's UDP on an interface.
func (p *phone) besideTcpdump(t *testing.T, iface, flags string) *pair {
	t.Helper()
	const expr = "udp port 53 or udp port 443"
	b := &pair{p: p}
	b.tcpdump = p.start(t, "shell", "su -c 'tcpdump -Z root --immediate-mode -B 16384 -s 65535 -U -i "+iface+" -w "+truth+" "+expr+"'")
	b.tcpdump.until(t, tcpdumpLine)
	b.agent = p.start(t, "shell", "su -c '"+agent+" -i "+iface+" "+flags+" "+expr+"'")
	b.path = b.agent.until(t, readyLine)[1]
	return b
}

// end interrupts both when tcpdump has n packets, and gives those in the agent's file and in tcpdump's.
func (b *pair) end(t *testing.T, n int) (got, want []nettest.Packet) {
	t.Helper()
	eventually(t, "tcpdump's file has all packets", func() bool {
		out := b.p.root(t, "tcpdump -Z root -n -r "+truth+" 2>/dev/null | wc -l")
		has, _ := strconv.Atoi(strings.TrimSpace(out))
		return has >= n
	})
	b.p.root(t, "pkill -INT -x agent; pkill -INT -x tcpdump")
	for _, pr := range []*process{b.agent, b.tcpdump} {
		if code := pr.end(t); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, strings.Join(pr.seen, "\n"))
		}
	}
	for _, f := range []struct {
		path    string
		packets *[]nettest.Packet
	}{{b.path, &got}, {truth, &want}} {
		file, err := nettest.Read(b.p.pull(t, f.path))
		if err != nil {
			t.Fatal(err)
		}
		*f.packets = file.Packets
	}
	b.p.root(t, "rm "+b.path+" "+truth)
	if len(want) != n {
		t.Errorf("tcpdump has %d packets, want %d", len(want), n)
	}
	return got, want
}

// frame is what a packet is known by in both files.
func frame(p nettest.Packet) string {
	return unsum(packet{uint32(p.Length), p.Data}, linktypeEthernet).data
}

// sameTimes compares the times of the same packets. tc sees one somewhat before or after tcpdump's socket, on a busy
// host now and then by a tenth of a second; who takes the wrong side of a step is off by a second or more.
func sameTimes(t *testing.T, got, want []nettest.Packet) {
	t.Helper()
	const within, most = 20 * time.Millisecond, 500 * time.Millisecond
	times := map[string][]int64{}
	for _, p := range want {
		times[frame(p)] = append(times[frame(p)], p.Time)
	}
	var offs []time.Duration
	for n, p := range got {
		all := times[frame(p)]
		if len(all) == 0 {
			t.Fatalf("packet %d is not in tcpdump's file: %x", n, p.Data)
		}
		off := time.Duration(p.Time - all[0])
		times[frame(p)] = all[1:]
		offs = append(offs, off.Abs())
		if off.Abs() > most {
			t.Errorf("packet %d of %d at %v: %v off", n, len(got), time.Unix(0, p.Time).UTC(), off)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	slices.Sort(offs)
	if half := offs[len(offs)/2]; half > within {
		t.Errorf("half of the times are off by more than %v", half)
	}
	t.Logf("%d packets, half of the times off by at most %v, none by more than %v", len(got), offs[len(offs)/2], offs[len(offs)-1])
}

// jumps counts how often the time changes by more than a span from one packet to the next.
func jumps(packets []nettest.Packet, span time.Duration) (n int) {
	for i := 1; i < len(packets); i++ {
		if time.Duration(packets[i].Time-packets[i-1].Time).Abs() > span {
			n++
		}
	}
	return n
}
