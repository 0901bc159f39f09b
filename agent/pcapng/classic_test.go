// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	wlan0  = &Interface{Index: 0, Name: "wlan0", LinkType: Ethernet, Snaplen: 1000, Kernel: 12, Hardware: 1}
	lo     = &Interface{Index: 1, Name: "lo", LinkType: Ethernet, Snaplen: 1000, Kernel: 1, Hardware: 772}
	rmnet0 = &Interface{Index: 2, Name: "rmnet_data0", LinkType: Raw, Snaplen: 1000, Kernel: 300_000, Hardware: 519}
	tun0   = &Interface{Index: 3, Name: "tun0", LinkType: Raw, Snaplen: 1000}
)

// udp6 is an IPv6 packet of 52 bytes from 2001:db8::1 port 40000 to 2001:db8::2 port 53 with a payload of 4 bytes.
var udp6 = unhex("60000000000c1140 20010db8000000000000000000000001 20010db8000000000000000000000002 9c400035000c0000 61626364")

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// frame is an Ethernet frame from 02:00:00:00:00:01.
func frame(to, protocol string, payload []byte) []byte {
	return append(unhex(to+"020000000001"+protocol), payload...)
}

// traffic is packets of each kind, and what is not in pcap files between them.
func traffic(ethernet, raw *Interface) (blocks []Block) {
	ours := "020000000002"
	add := func(i *Interface, d Direction, data []byte, more int) {
		at := int64(start + len(blocks)*1_000_000_007)
		blocks = append(blocks, &Packet{
			Interface: i.Index, Time: at, Data: data, Length: uint32(len(data) + more), Direction: d, Comments: []string{"not in pcap"},
		})
	}
	if ethernet != nil {
		add(ethernet, Inbound, frame(ours, "0800", udp), 0)
		add(ethernet, Outbound, frame("ffffffffffff", "0800", udp), 0)
		add(ethernet, Inbound, frame("ffffffffffff", "0800", udp), 0)
		add(ethernet, Inbound, frame("333300000001", "86dd", udp6), 0)
		add(ethernet, DirectionUnknown, frame(ours, "0800", udp[:30]), 1000)
		add(ethernet, Inbound, frame(ours, "8100", append([]byte{0x20, 7, 8, 0}, udp...)), 0)
		add(ethernet, Inbound, frame("0180c2000000", "0026", unhex("424203 0000000000 8000020000000001 00000000 8000020000000001 8001 0000 1400 0200 0f00")), 0)
		add(ethernet, Inbound, frame("ffffffffffff", "001e", unhex("ffff001e0001 00000000ffffffffffff0453 00000000020000000001 0453")), 0)
		for _, n := range []int{15, 14, 13, 12, 11, 0} {
			add(ethernet, Inbound, frame(ours, "0800", udp)[:n], 46-n)
		}
		blocks = append(blocks, &Statistics{Interface: ethernet.Index, Received: 9}, sampleSecrets)
	}
	if raw != nil {
		add(raw, Inbound, udp, 0)
		add(raw, Outbound, udp6, 0)
		add(raw, Outbound, udp6[:41], 11)
		add(raw, Inbound, nil, 32)
	}
	return blocks
}

// tshark returns fields of the packets of a file, one in a line.
func tshark(t *testing.T, name string, newWriter func(io.Writer) *Writer, blocks []Block, fields string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, fileOf(t, newWriter, blocks), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t, dir, "tshark -n -r "+file+" -T fields -E separator=| -e "+strings.Join(strings.Fields(fields), " -e "))
}

// inner are fields of what is behind the link layer.
const inner = "frame.time_epoch ip.src ip.dst ipv6.src ipv6.dst udp.srcport udp.dstport data.data vlan.id stp.root.hw ipx.dst.net"

// TestClassic compares pcap files with the pcapng ones of the same blocks.
func TestClassic(t *testing.T) {
	for _, tt := range []struct {
		rule     string
		mixed    bool
		blocks   []Block
		linkType string // WTAP_ENCAP_* of Wireshark
	}{
		{"Ethernet alone is Ethernet", false, append([]Block{wlan0, lo}, traffic(wlan0, nil)...), "1"},
		{"raw IP alone is raw IP", false, append([]Block{rmnet0, tun0}, traffic(nil, rmnet0)...), "7"},
		{"interfaces that differ are cooked", false, append([]Block{wlan0, rmnet0}, traffic(wlan0, rmnet0)...), "210"},
		{"Ethernet that may not stay alone is cooked", true, append([]Block{lo}, traffic(lo, nil)...), "210"},
		{"an interface may come later then", true, append(append([]Block{wlan0}, traffic(wlan0, nil)...), append([]Block{tun0}, traffic(nil, tun0)...)...), "210"},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			fields := inner
			if tt.linkType != "210" {
				fields += " frame.len frame.cap_len frame.protocols eth.src eth.dst eth.type"
			}
			pcap := func(out io.Writer) *Writer { return NewClassic(out, tt.mixed) }
			want := tshark(t, "a.pcapng", formats["pcapng"], tt.blocks, fields)
			got := tshark(t, "a.pcap", pcap, tt.blocks, fields)
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("packets (-pcapng +pcap):\n%s", diff)
			}
			for _, of := range strings.Fields(tshark(t, "a.pcap", pcap, tt.blocks, "frame.encap_type")) {
				if of != tt.linkType {
					t.Fatalf("a packet of encapsulation %s, want %s", of, tt.linkType)
				}
			}
			if n := strings.Count(want, "\n"); n < 4 {
				t.Errorf("%d packets", n)
			}
		})
	}
}

// TestCooked compares what Wireshark reads in a file of several link types with a golden text.
func TestCooked(t *testing.T) {
	blocks := append([]Block{wlan0, lo, rmnet0, tun0}, traffic(wlan0, rmnet0)...)
	blocks = append(blocks, &Packet{Interface: 1, Data: frame("000000000000", "0800", udp)}, &Packet{Interface: 3, Data: udp}, &Packet{Interface: 2, Data: []byte{0}})
	got := tshark(t, "a.pcap", formats["pcap"], blocks, "frame.len frame.cap_len sll.pkttype sll.ifindex sll.hatype sll.halen sll.src.eth sll.unused sll.etype sll.ltype frame.protocols")
	checkGolden(t, "cooked", got)
}

// TestTcpdump has tcpdump read what TestClassic and TestCooked have Wireshark read, and print the same of both formats.
func TestTcpdump(t *testing.T) {
	blocks := slices.DeleteFunc(append([]Block{wlan0}, traffic(wlan0, nil)...), func(b Block) bool {
		p, ok := b.(*Packet)
		return ok && len(p.Data) < 40 // what is cut has lengths of the link layer in its text
	})
	for _, mixed := range []bool{false, true} {
		dir := t.TempDir()
		text := map[string]string{}
		for name, newWriter := range map[string]func(io.Writer) *Writer{
			"pcap": func(out io.Writer) *Writer { return NewClassic(out, mixed) }, "pcapng": formats["pcapng"],
		} {
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, fileOf(t, newWriter, blocks), 0o644); err != nil {
				t.Fatal(err)
			}
			text[name] = run(t, dir, "tcpdump -n -tt --nano -r "+file)
		}
		if strings.Count(text["pcap"], "10.0.0.1.40000 > 10.0.0.2.53") < 5 {
			t.Errorf("tcpdump reads %s", text["pcap"])
		}
		got, want := strings.Split(text["pcap"], "\n"), strings.Split(text["pcapng"], "\n")
		for n := range min(len(got), len(want)) {
			want[n] = strings.TrimSpace(want[n])
			if words := strings.Fields(got[n]); mixed && len(words) > 2 {
				// Before each packet stand its interface and direction, and behind a VLAN tag the protocol.
				got[n] = strings.Replace(strings.Join(append(words[:1], words[3:]...), " "), "ethertype IPv4, ", "", 1)
				want[n] = strings.Join(strings.Fields(want[n]), " ")
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("mixed %v (-pcapng +pcap):\n%s", mixed, diff)
		}
	}
}

// TestLinkType writes packets whose link type a file does not have.
func TestLinkType(t *testing.T) {
	var first, second, third bytes.Buffer
	w := NewClassic(&first, false)
	must := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Fatalf("error %v, want %v", err, want)
		}
	}
	packets := func(f *bytes.Buffer, linkType LinkType, want uint64) {
		t.Helper()
		must(w.Flush(), nil)
		if _, n, err := Whole(bytes.NewReader(f.Bytes())); n != want || err != nil || LinkType(le.Uint32(f.Bytes()[20:])) != linkType {
			t.Errorf("%d packets of link type %d, %v; want %d of %d", n, le.Uint32(f.Bytes()[20:]), err, want, linkType)
		}
	}
	must(w.Write(&Packet{Interface: 0}), ErrInterface)
	must(w.Flush(), nil)
	if first.Len() != 0 {
		t.Errorf("%d bytes, and nothing says what the link type is", first.Len())
	}
	must(w.Write(wlan0), nil)
	packets(&first, Ethernet, 0)
	must(w.Write(rmnet0), nil)
	must(w.Write(&Packet{Interface: 2, Data: udp}), ErrLinkType)
	must(w.Write(&Packet{Interface: 0, Data: ethernet}), nil)
	must(w.Write(&Interface{Index: 0, Name: "wlan0", LinkType: Raw}), nil)
	must(w.Write(&Packet{Interface: 0, Data: udp}), ErrLinkType)
	packets(&first, Ethernet, 1)
	w.Next(&second)
	must(w.Write(&Packet{Interface: 0, Data: udp}), nil)
	must(w.Write(wlan0), nil)
	must(w.Write(&Packet{Interface: 0, Data: ethernet}), ErrLinkType)
	packets(&second, Raw, 1)
	w.Next(&third)
	must(w.Write(&Packet{Interface: 0, Data: ethernet}), nil)
	must(w.Write(&Packet{Interface: 2, Data: udp}), nil)
	packets(&third, linuxSLL2, 2)
	if w.Packets() != 4 {
		t.Errorf("%d packets in all, want 4", w.Packets())
	}
}

func TestClassicSnaplen(t *testing.T) {
	for _, tt := range []struct {
		mixed      bool
		interfaces []uint32
		want       uint32
	}{
		{false, []uint32{96}, 96}, {false, []uint32{96, 0}, maxData}, {false, []uint32{maxData}, maxData},
		{true, []uint32{96}, 96 + sll2Header}, {true, []uint32{maxData}, maxData}, {true, nil, maxData},
	} {
		var out bytes.Buffer
		w := NewClassic(&out, tt.mixed)
		for n, snaplen := range tt.interfaces {
			if err := w.Write(&Interface{Index: n, LinkType: Raw, Snaplen: snaplen}); err != nil {
				t.Fatal(err)
			}
		}
		data := bytes.Repeat([]byte{0x45}, maxData+1)
		if len(tt.interfaces) > 0 {
			if err := w.Write(&Packet{Data: data}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := le.Uint32(out.Bytes()[16:]); got != tt.want {
			t.Errorf("%+v: snaplen %d", tt, got)
		}
		if len(tt.interfaces) > 0 && out.Len() != classicHead+recordHead+maxData {
			t.Errorf("%+v: a file of %d bytes, and Wireshark takes packets of %d", tt, out.Len(), maxData)
		}
	}
}

func TestClassicIsNotAllocated(t *testing.T) {
	for _, mixed := range []bool{false, true} {
		w := NewClassic(io.Discard, mixed)
		if err := w.Write(wlan0); err != nil {
			t.Fatal(err)
		}
		data := frame("020000000002", "0800", make([]byte, 1400))
		if allocs := testing.AllocsPerRun(1000, func() {
			if err := w.Write(&Packet{Interface: 0, Time: start, Data: data, Direction: Inbound}); err != nil {
				t.Fatal(err)
			}
		}); allocs != 0 {
			t.Errorf("mixed %v: %v allocations for a packet", mixed, allocs)
		}
	}
}
