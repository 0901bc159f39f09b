// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"droidtap/scripts/nettest"
)

// capture is the agent, and tcpdump on some interfaces.
type capture struct {
	p        *phone
	agent    *process
	path     string
	tcpdumps map[string]*process
}

func truthOf(iface string) string { return "/data/local/tmp/" + iface + ".pcap" }

// captureBeside starts both on the tests' UDP.
func (p *phone) captureBeside(t *testing.T, flags string, ifaces ...string) *capture {
	t.Helper()
	c := &capture{p: p, tcpdumps: map[string]*process{}}
	for _, iface := range ifaces {
		c.beside(t, iface)
	}
	c.agent = p.start(t, "shell", "su -c '"+agent+" "+flags+" udp port 53 or udp port 7'")
	c.path = c.agent.until(t, readyLine)[1]
	return c
}

func (c *capture) beside(t *testing.T, iface string) {
	t.Helper()
	d := c.p.start(t, "shell", "su -c 'tcpdump -Z root --immediate-mode -B 8192 -s 65535 -U -i "+iface+" -w "+truthOf(iface)+" udp port 53 or udp port 7'")
	d.until(t, tcpdumpLine)
	c.tcpdumps[iface] = d
}

// attached waits until our filters are there, at ingress ahead of all others, on a kernel where they are tc's.
func (c *capture) attached(t *testing.T, ifaces ...string) {
	t.Helper()
	var lines []string
	for _, iface := range ifaces {
		lines = append(lines, "tc filter show dev "+iface+" ingress | grep -m1 ' handle ' | grep -q droidtap: && "+
			"tc filter show dev "+iface+" egress | grep -q droidtap:")
	}
	eventually(t, "our filters are on "+strings.Join(ifaces, ", "), func() bool {
		_, code := c.p.run(t, strings.Join(lines, " && "))
		return code == 0
	})
}

// end waits until tcpdump has n packets of the test on each interface, ends all, and gives the agent's file and tcpdump's packets.
func (c *capture) end(t *testing.T, n map[string]int) (nettest.File, map[string][]nettest.Packet) {
	t.Helper()
	for iface, n := range n {
		eventually(t, "tcpdump's file has all packets of "+iface, func() bool {
			out := c.p.root(t, "tcpdump -Z root -n -r "+truthOf(iface)+" udp port 53 2>/dev/null | wc -l")
			has, _ := strconv.Atoi(strings.TrimSpace(out))
			return has >= n
		})
	}
	c.p.root(t, "pkill -INT -x agent; pkill -INT -x tcpdump; true")
	if code := c.agent.end(t); code != 0 {
		t.Fatalf("the agent's exit code is %d:\n%s", code, c.said())
	}
	f, err := nettest.Read(c.p.pull(t, c.path))
	if err != nil {
		t.Fatal(err)
	}
	c.p.root(t, "rm "+c.path)
	want := map[string][]nettest.Packet{}
	for iface, d := range c.tcpdumps {
		if code := d.end(t); code != 0 || !slices.Contains(d.seen, "0 packets dropped by kernel") {
			t.Fatalf("tcpdump on %s, exit code %d:\n%s", iface, code, strings.Join(d.seen, "\n"))
		}
		truth, err := nettest.Read(c.p.pull(t, truthOf(iface)))
		if err != nil {
			t.Fatal(err)
		}
		for _, pk := range truth.Packets {
			if truth.Interfaces[0].LinkType == linktypeSLL { // as in compare
				pk.Length, pk.Data = pk.Length-16, pk.Data[16:]
			}
			want[iface] = append(want[iface], pk)
		}
		c.p.root(t, "rm "+truthOf(iface))
	}
	return f, want
}

func (c *capture) said() string { return strings.Join(c.agent.seen, "\n") }

// of returns the packets of an interface in the agent's file.
func of(f nettest.File, iface string) (all []nettest.Packet) {
	for _, pk := range f.Packets {
		if f.Interfaces[pk.Interface].Name == iface {
			all = append(all, pk)
		}
	}
	return all
}

// outAndIn counts the UDP packets to a port, and those from it.
func outAndIn(all []nettest.Packet, port int) (out, in int) {
	for _, pk := range all {
		h, ok := nettest.ParseIP(pk.Data, 0)
		if !ok {
			h, ok = nettest.ParseEthernet(pk.Data)
		}
		switch {
		case !ok:
		case int(pk.Data[h.Header+2])<<8|int(pk.Data[h.Header+3]) == port:
			out++
		case int(pk.Data[h.Header])<<8|int(pk.Data[h.Header+1]) == port:
			in++
		}
	}
	return out, in
}

// ported returns the UDP packets with a port, as same compares them: without checksum, which tc sees unfinished.
func ported(all []nettest.Packet, port int) (some []packet) {
	for _, pk := range all {
		h, ok := nettest.ParseIP(pk.Data, 0)
		if !ok {
			h, ok = nettest.ParseEthernet(pk.Data)
		}
		if !ok {
			continue
		}
		b := []byte(pk.Data)
		if src, dst := int(b[h.Header])<<8|int(b[h.Header+1]), int(b[h.Header+2])<<8|int(b[h.Header+3]); src != port && dst != port {
			continue
		}
		b[h.At], b[h.At+1] = 0, 0
		some = append(some, packet{uint32(pk.Length), string(b)})
	}
	return some
}

// way returns the packets of a direction: 1 in, 2 out.
func way(all []nettest.Packet, direction int) []nettest.Packet {
	return slices.DeleteFunc(slices.Clone(all), func(pk nettest.Packet) bool { return pk.Direction != direction })
}

// gaps returns the comments of an interface in the agent's file that tell of a gap, and fails the test unless the summary
// counts them.
func (c *capture) gaps(t *testing.T, f nettest.File, iface string) (gaps []string) {
	t.Helper()
	for _, i := range f.Interfaces {
		for _, comment := range i.Comments {
			if i.Name == iface && strings.HasPrefix(comment, "gap: ") {
				gaps = append(gaps, comment)
			}
		}
	}
	counted := 0
	for _, line := range c.agent.seen {
		if n, rest, ok := strings.Cut(line, " gaps on "); ok && strings.HasPrefix(rest, iface+", of ") {
			counted, _ = strconv.Atoi(n)
			t.Log(line)
		}
	}
	if counted != len(gaps) {
		t.Errorf("%d gaps on %s are counted, and the file tells of %d:\n%s", counted, iface, len(gaps), strings.Join(gaps, "\n"))
	}
	return gaps
}
