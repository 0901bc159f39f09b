// SPDX-License-Identifier: Apache-2.0

// Package wireshark tests droidtap.lua by tshark.
package wireshark

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"droidtap/agent/pcapng"
	"droidtap/scripts/nettest"

	"github.com/google/go-cmp/cmp"
)

// packet is one of a capture: an IP packet and its comments.
type packet struct {
	ip       []byte
	comments []string
}

func told(ip []byte, comments ...string) packet { return packet{ip, comments} }

func capture(t *testing.T, packets ...packet) string {
	t.Helper()
	var file bytes.Buffer
	w := pcapng.NewWriter(&file, pcapng.Section{Comment: "uid=1 app=section"})
	blocks := []pcapng.Block{&pcapng.Interface{Name: "rmnet_data0", LinkType: pcapng.Raw, Description: "uid=2 app=interface"}}
	for i, p := range packets {
		blocks = append(blocks, &pcapng.Packet{Time: 1e18 + int64(i)*1e6, Data: p.ip, Length: uint32(len(p.ip)), Comments: p.comments})
	}
	for _, b := range append(blocks, &pcapng.Statistics{Comment: "uid=3 app=statistics"}) {
		if err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(public(t), "capture.pcapng")
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// public returns a temporary folder that every user may read.
func public(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tshark returns its lines for a capture, with the script.
func tshark(t *testing.T, path string, argv ...string) []string {
	t.Helper()
	nettest.Require(t, "tshark")
	text, err := os.ReadFile("droidtap.lua")
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(public(t), "droidtap.lua")
	if err := os.WriteFile(script, text, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tshark", append([]string{"-X", "lua_script:" + script, "-r", path}, argv...)...)
	cmd.Dir, cmd.Env = "/", append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8", "TZ=UTC")
	if os.Geteuid() == 0 { // for root, Wireshark 4.4 runs no scripts
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	complaints := stderr.String()
	// tshark tells of an error of a script on standard output or in the packet, and goes on.
	if err != nil || complaints != "" || strings.Contains(stdout.String(), "Lua Error") {
		t.Fatalf("tshark %s: %v\n%s%s", strings.Join(argv, " "), err, complaints, stdout.String())
	}
	if stdout.Len() == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(stdout.String(), "\n"), "\n")
}

// owners returns for each packet uid|app|pid|comm|the packet that tells them. The name of each app is followed by a semicolon.
func owners(t *testing.T, path string, argv ...string) []string {
	t.Helper()
	argv = append(argv, "-T", "fields", "-E", "separator=|", "-E", "aggregator=;")
	for _, field := range []string{"uid", "app", "pid", "comm", "frame"} {
		argv = append(argv, "-e", "droidtap."+field)
	}
	lines := tshark(t, path, argv...)
	for i, line := range lines {
		lines[i] = strings.ReplaceAll(line, `\\`, `\`) // Wireshark 4.2 and later double them
	}
	return lines
}

func equal(t *testing.T, what string, want, got []string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

const phone, server, other = "10.0.0.2", "192.0.2.1", "192.0.2.9"

func udp(src string, sport uint16, dst string, dport uint16) []byte {
	return nettest.IPv4(src, dst, 17, 0, nil, nettest.UDP(sport, dport, []byte("x")))
}

func TestComments(t *testing.T) {
	long := strings.Repeat("n", 60000)
	many := strings.Repeat("com.example.some,", 1000)
	cases := []struct {
		comments []string
		want     string
	}{
		{[]string{"uid=10123 app=com.example pid=4242 comm=some name"}, "10123|com.example|4242|some name|"},
		{[]string{"uid=10123 app=com.example"}, "10123|com.example|||"},
		{[]string{"uid=0 pid=1 comm=init"}, "0||1|init|"},
		{[]string{"uid=1000 app=android,com.android.settings"}, "1000|android;com.android.settings|||"},
		{[]string{"uid=4294967294"}, "4294967294||||"},
		{[]string{"uid=unknown"}, "||||"},
		{[]string{"uid=unknown pid=7 comm=x"}, "||7|x|"},
		{[]string{"from here on the filter is: udp", "uid=1"}, "1||||"},
		{[]string{"uid=1", "uid=2", "my own comment"}, "1||||"},
		{[]string{"uid=1 later=x,y app=a pid=2"}, "1|a|2||"},
		{[]string{"uid=1 comm=app=evil pid=9 uid=0"}, "1|||app=evil pid=9 uid=0|"},
		{[]string{"uid=1 comm="}, "1||||"},
		{[]string{"uid=1 comm= "}, "1||| |"},
		{[]string{`uid=1 comm=a\x1b[31m\n"'%s{}`}, `1|||a\x1b[31m\n"'%s{}|`},
		{[]string{"uid=1 comm=ünïcode 漢字"}, "1|||ünïcode 漢字|"},
		{[]string{"uid=1 app=,,a,,"}, "1|a|||"},
		{[]string{"uid=1 app= pid= comm=x"}, "1|||x|"},
		{[]string{"uid=1 pid=99999999999"}, "1||||"},
		{[]string{"uid=1 comm=" + long}, "1|||" + long + "|"},
		{[]string{"uid=1 app=" + many}, "1|" + strings.TrimSuffix(strings.ReplaceAll(many, ",", ";"), ";") + "|||"},
		// What is none of the agent's.
		{[]string{"from here on the filter is: uid=1"}, "||||"},
		{[]string{"uid=1 is root"}, "||||"},
		{[]string{"uid=1, app=a"}, "||||"},
		{[]string{"uid=4294967296"}, "||||"},
		{[]string{"uid=00000000001"}, "||||"},
		{[]string{"uid=-1"}, "||||"},
		{[]string{"uid=0x10"}, "||||"},
		{[]string{"uid="}, "||||"},
		{[]string{" uid=1"}, "||||"},
		{[]string{"UID=1"}, "||||"},
		{[]string{"uid=1\x00 app=a"}, "1||||"},
		{nil, "||||"},
	}
	var packets []packet
	var want []string
	for i, c := range cases {
		packets = append(packets, told(udp(phone, uint16(1000+i), server, 53), c.comments...))
		want = append(want, c.want)
	}
	path := capture(t, packets...)
	equal(t, "fields", want, owners(t, path))
	equal(t, "in two passes", want, owners(t, path, "-2"))
}

// Bytes that are no text, as another writer might leave them, do no harm.
func TestHostileBytes(t *testing.T) {
	path := capture(t, told(udp(phone, 1, server, 53), "uid=1 comm=a\x1b\x07\x01\xff\xfe\x80b"), told(udp(phone, 2, server, 53), "uid=2\xff"),
		told(udp(phone, 3, server, 53), "uid=3 app=a\xff pid=4"))
	got := tshark(t, path, "-T", "fields", "-e", "droidtap.uid", "-e", "droidtap.pid", "-E", "separator=|")
	equal(t, "fields", []string{"1|", "|", "3|4"}, got)
}

func TestFilters(t *testing.T) {
	path := capture(t,
		told(udp(phone, 1000, server, 53), "uid=10123 app=com.example,com.other pid=7 comm=some name"),
		told(udp(phone, 1001, server, 53), "uid=10124 app=com.example.more"),
		told(udp(server, 53, phone, 1000)),
		told(udp(phone, 1002, server, 53)),
		told(udp(phone, 1003, server, 53), "uid=unknown"),
	)
	for filter, want := range map[string]string{
		`droidtap.app == "com.example"`:            "1 3",
		`droidtap.app == "com.other"`:              "1 3",
		`droidtap.app contains "example"`:          "1 2 3",
		`droidtap.uid == 10124`:                    "2",
		`droidtap.uid >= 10000`:                    "1 2 3",
		`droidtap.pid == 7`:                        "1 3",
		`droidtap.comm == "some name"`:             "1 3",
		`droidtap && !droidtap.uid`:                "5",
		`!droidtap`:                                "4",
		`droidtap.frame == 1`:                      "3",
		`droidtap.app == "com.example" && udp`:     "1 3",
		`droidtap.app == "com.example" && tcp`:     "",
		`droidtap.app matches "^com\\.example$"`:   "1 3",
		`ip.src == 192.0.2.1 && droidtap.pid == 7`: "3",
		`frame.comment && droidtap.uid == 10123`:   "1",
		`!frame.comment && droidtap.uid == 10123`:  "3",
	} {
		for _, passes := range [][]string{{"-Y", filter}, {"-2", "-R", filter}} {
			got := tshark(t, path, append(passes, "-T", "fields", "-e", "frame.number")...)
			if passes[0] == "-2" { // it numbers what is left anew, so that no other packet can be named
				if n := len(strings.Fields(want)); len(got) != n && filter != "droidtap.frame == 1" {
					t.Errorf("-R %s: %d packets, want %d", filter, len(got), n)
				}
				continue
			}
			equal(t, filter, strings.Fields(want), append([]string{}, got...))
		}
	}
	columns := tshark(t, path, "-o", `gui.column.format:"No","%m","App","%Cus:droidtap.app","Process","%Cus:droidtap.comm"`)
	equal(t, "columns", []string{"1 com.example,com.other some name", "2 com.example.more", "3 com.example,com.other some name", "4", "5"}, trim(columns))
}

func trim(lines []string) []string {
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return lines
}

// tcp is an empty segment with an ACK.
func tcp(sport, dport uint16) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, sport)
	binary.BigEndian.PutUint16(h[2:], dport)
	h[12], h[13] = 5<<4, 0x10
	return h
}

func icmp(kind, code byte, id uint16, payload []byte) []byte {
	h := append([]byte{kind, code, 0, 0, 0, 0, 0, 1}, payload...)
	binary.BigEndian.PutUint16(h[4:], id)
	return h
}

// With --comments first the first packet of a flow tells for all of it.
func TestFlows(t *testing.T) {
	const phone6, server6 = "2001:db8::2", "2001:db8::1"
	v4 := func(src, dst string, protocol byte, payload []byte) []byte {
		return nettest.IPv4(src, dst, protocol, 0, nil, payload)
	}
	datagram := nettest.UDP(7000, 7001, bytes.Repeat([]byte("f"), 24))
	steps := []struct {
		what    string
		ip      []byte
		comment string
		want    string
	}{
		{"TCP", v4(phone, server, 6, tcp(1000, 443)), "uid=1 app=a", "1|a|||"},
		{"its answer", v4(server, phone, 6, tcp(443, 1000)), "", "1|a|||1"},
		{"more of it", v4(phone, server, 6, tcp(1000, 443)), "", "1|a|||1"},
		{"UDP of the same ports", udp(phone, 1000, server, 443), "", "||||"},
		{"TCP of another port", v4(phone, server, 6, tcp(1001, 443)), "", "||||"},
		{"TCP to another host", v4(phone, other, 6, tcp(1000, 443)), "", "||||"},
		{"ports the other way round", v4(server, phone, 6, tcp(1000, 443)), "", "||||"},
		{"a comment of somebody's", v4(phone, server, 6, tcp(1000, 443)), "look here", "1|a|||1"},
		{"the tuple is used again", v4(phone, server, 6, tcp(1000, 443)), "uid=2 pid=9 comm=b", "2||9|b|"},
		{"its answer", v4(server, phone, 6, tcp(443, 1000)), "", "2||9|b|9"},
		{"an owner that is not found", v4(phone, server, 6, tcp(1000, 443)), "uid=unknown", "||||"},
		{"its answer", v4(server, phone, 6, tcp(443, 1000)), "", "||||11"},

		{"IPv6", nettest.IPv6(phone6, server6, 17, nettest.UDP(5, 6, nil)), "uid=3", "3||||"},
		{"its answer", nettest.IPv6(server6, phone6, 17, nettest.UDP(6, 5, nil)), "", "3||||13"},
		{"ping", v4(phone, server, 1, icmp(8, 0, 77, nil)), "uid=4", "4||||"},
		{"its answer", v4(server, phone, 1, icmp(0, 0, 77, nil)), "", "4||||15"},
		{"another ping", v4(phone, server, 1, icmp(8, 0, 78, nil)), "", "||||"},
		{"unreachable, of the first ping", v4(other, phone, 1, icmp(3, 1, 0, v4(phone, server, 1, icmp(8, 0, 77, nil)))), "", "4||||15"},
		{"UDP", udp(phone, 2000, server, 9), "uid=5", "5||||"},
		{"unreachable", v4(server, phone, 1, icmp(3, 3, 0, udp(phone, 2000, server, 9))), "", "5||||19"},
		{"unreachable by a router", v4(other, phone, 1, icmp(3, 1, 0, udp(phone, 2000, server, 9))), "", "5||||19"},
		{"unreachable, of another flow", v4(server, phone, 1, icmp(3, 3, 0, udp(phone, 2001, server, 9))), "", "||||"},
		{"ESP", v4(phone, server, 50, make([]byte, 32)), "uid=6", "6||||"},
		{"its answer", v4(server, phone, 50, make([]byte, 32)), "", "6||||23"},

		{"first fragment", nettest.IPv4(phone, server, 17, 0x2000, nil, datagram[:16]), "uid=7", "7||||"},
		{"the last fragment", nettest.IPv4(phone, server, 17, 2, nil, datagram[16:]), "", "7||||25"},
		{"the answer to what it was", udp(server, 7001, phone, 7000), "", "7||||25"},
		{"a fragment of another host", nettest.IPv4(phone, other, 17, 2, nil, datagram[16:]), "", "||||"},
	}
	var packets []packet
	var want []string
	for _, s := range steps {
		p := told(s.ip)
		if s.comment != "" {
			p.comments = []string{"note: uid=9", s.comment}
		}
		packets, want = append(packets, p), append(want, s.what+": "+s.want)
	}
	path := capture(t, packets...)
	for _, argv := range [][]string{nil, {"-2"}, {"-2", "-Y", "ip || ipv6"}} {
		got := owners(t, path, argv...)
		for i := range got {
			got[i] = steps[min(i, len(steps)-1)].what + ": " + got[i]
		}
		equal(t, fmt.Sprint("flows ", argv), want, got)
	}
}

// With --comments all a packet without a comment has no owner, whosever its flow is.
func TestEveryPacketTells(t *testing.T) {
	out, in := udp(phone, 1000, server, 53), udp(server, 53, phone, 1000)
	path := capture(t, told(out, "uid=1"), told(in, "uid=1"), told(out, "uid=1"), told(in), told(in, "uid=1"), told(in), told(out, "uid=2"), told(in))
	equal(t, "owners", []string{"1||||", "1||||", "1||||", "||||", "1||||", "||||", "2||||", "2||||7"}, owners(t, path))

	// The first packet of a flow on each of two interfaces.
	path = capture(t, told(out, "uid=1"), told(out, "uid=1"), told(in), told(in))
	equal(t, "on two interfaces", []string{"1||||", "1||||", "1||||2", "1||||2"}, owners(t, path))
}
