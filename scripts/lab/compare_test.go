// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	linktypeEthernet = 1
	linktypeRaw      = 101
	linktypeSLL      = 113
)

// compare runs the agent (adb's args) and tcpdump (its flags and expression)
// side by side over the traffic, ends both by SIGINT, and gives the packets in
// the agent's file and in tcpdump's. The traffic must end with p.marker's echo.
func (p *phone) compare(t *testing.T, args []string, iface, tcpdump string, traffic func()) (got, want []packet) {
	t.Helper()
	// Without --immediate-mode tcpdump would lose what the kernel holds back
	// for it when it is interrupted; with it, on a link that is not Ethernet,
	// its ring has a place of snaplen bytes for each packet, and by default no
	// more than seven. -Z root: Debian's gives up root otherwise.
	d := p.start(t, "shell", "su -c 'tcpdump -Z root --immediate-mode -B 16384 -s 65535 -U -i "+iface+" -w "+truth+" "+tcpdump+"'")
	d.until(t, tcpdumpLine)
	a := p.start(t, args...)
	path := a.until(t, readyLine)[1]

	traffic()
	marker := 2
	if strings.Contains(tcpdump, "-Q") || strings.Contains(tcpdump, "bound") {
		marker = 1
	}
	eventually(t, "tcpdump's file has the marker", func() bool {
		out := p.root(t, "tcpdump -Z root -n -r "+truth+" udp port 443 2>/dev/null | wc -l")
		n, _ := strconv.Atoi(strings.TrimSpace(out))
		return n >= marker
	})
	p.root(t, "pkill -INT -x agent && pkill -INT -x tcpdump")
	if code := a.end(t); code != 0 {
		t.Fatalf("the agent's exit code is %d:\n%s", code, strings.Join(a.seen, "\n"))
	}
	if code := d.end(t); code != 0 {
		t.Fatalf("tcpdump's exit code is %d:\n%s", code, strings.Join(d.seen, "\n"))
	}
	if !slices.Contains(d.seen, "0 packets dropped by kernel") {
		t.Fatalf("tcpdump lost packets:\n%s", strings.Join(d.seen, "\n"))
	}

	gotLink, got := read(t, p.pull(t, path))
	wantLink, want := read(t, p.pull(t, truth))
	p.root(t, "rm "+path+" "+truth)
	if wantLink == linktypeSLL {
		// libpcap knows no ARPHRD_RAWIP (519, rmnet) and captures it "cooked":
		// 16 bytes before the IP header (LINKTYPE_LINUX_SLL).
		wantLink = linktypeRaw
		for i, pk := range want {
			want[i] = packet{pk.wire - 16, pk.data[16:]}
		}
	}
	if gotLink != wantLink {
		t.Errorf("link type %d, want %d", gotLink, wantLink)
	}
	for i := range got {
		got[i] = unsum(got[i], gotLink)
	}
	for i := range want {
		want[i] = unsum(want[i], wantLink)
	}
	out := strings.Join(a.seen, "\n")
	p.said = out
	if m := capturedLine.FindStringSubmatch(out); m == nil || m[1] != strconv.Itoa(len(got)) {
		t.Errorf("%d packets in the file, the agent says:\n%s", len(got), out)
	}
	if last := a.seen[len(a.seen)-1]; last != path {
		t.Errorf("last line %q, want %q", last, path)
	}
	return got, want
}

// browse makes all kinds of traffic, of which a filter takes some.
func (p *phone) browse(t *testing.T, host string) {
	t.Helper()
	p.shell(t, "/lab/phone fetch -n 3 -size 5000 https://"+host+"/ && /lab/phone fetch http://"+host+"/ && "+
		"/lab/phone udp -n 3 "+host+":53 && ping -c 2 -i 0.2 "+host)
	p.quiet(t)
	p.shell(t, "/lab/phone udp "+host+":443")
}

// quiet waits until no TCP connection has a packet to come.
func (p *phone) quiet(t *testing.T) {
	t.Helper()
	const ss = "ss -Htn state connected exclude time-wait | grep -v :5555"
	eventually(t, "connections are closed", func() bool {
		return p.root(t, ss+"; ip netns exec peer "+ss+"; true") == ""
	})
}

// same compares as multisets: the agent and tcpdump see each direction in
// order, but not both in one.
func same(t *testing.T, got, want []packet) {
	t.Helper()
	if len(want) == 0 {
		t.Fatal("tcpdump captured nothing")
	}
	if len(got) != len(want) {
		t.Errorf("%d packets, want %d", len(got), len(want))
	}
	count := map[packet]int{}
	for _, pk := range want {
		count[pk]++
	}
	for _, pk := range got {
		count[pk]--
	}
	shown := 0
	for pk, n := range count {
		if n != 0 {
			shown++
		}
		switch {
		case shown > 6:
			return
		case n > 0:
			t.Errorf("missing %d x %d bytes: %x", n, pk.wire, pk.data)
		case n < 0:
			t.Errorf("extra %d x %d bytes: %x", -n, pk.wire, pk.data)
		}
	}
}

// ports gives the TCP or UDP ports of an IPv4 packet in an Ethernet frame as
// " 443 40000 ".
func ports(frame string) string {
	if len(frame) < 14+20 || frame[12:14] != "\x08\x00" {
		return ""
	}
	ip := frame[14:]
	if l4 := int(ip[0]&15) * 4; len(ip) >= l4+4 {
		b := ip[l4:]
		return fmt.Sprintf(" %d %d ", int(b[0])<<8|int(b[1]), int(b[2])<<8|int(b[3]))
	}
	return ""
}

// unsum gives the packet without its TCP or UDP checksum if the phone sent it.
// tc sees an outgoing packet before the kernel has finished the checksum, which
// at that time is the pseudo-header's alone (CHECKSUM_PARTIAL, Linux
// include/linux/skbuff.h); tcpdump's socket gets it from the driver's door,
// finished (validate_xmit_skb in net/core/dev.c).
func unsum(pk packet, linktype uint32) packet {
	l3 := 0
	if linktype == linktypeEthernet {
		l3 = 14
	}
	b := []byte(pk.data)
	if len(b) < l3+20 || b[l3]>>4 != 4 {
		return pk
	}
	src, _ := netip.AddrFromSlice(b[l3+12 : l3+16])
	if src != netip.MustParseAddr("192.168.49.1") && src != netip.MustParseAddr("10.78.0.1") {
		return pk
	}
	at := map[byte]int{6: 16, 17: 6}[b[l3+9]] // TCP, UDP
	sum := l3 + int(b[l3]&15)*4 + at
	if at == 0 || len(b) < sum+2 {
		return pk
	}
	b[sum], b[sum+1] = 0, 0
	return packet{pk.wire, string(b)}
}
