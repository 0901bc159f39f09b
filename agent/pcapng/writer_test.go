// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

// start is 2026-11-22 14:03:12.123456789 UTC, and past 2^60 ns, so that both halves of a time matter.
const start = 1795356192123456789

var section = Section{
	Hardware:    "Pixel 6",
	OS:          "Linux 5.10.198-android13-4",
	Application: "droidtap agent 1.0",
	Comment:     "agent -i any udp",
}

// udp is an IPv4 packet of 32 bytes from 10.0.0.1:40000 to 10.0.0.2:53 with a payload of 4 bytes.
var udp = []byte{
	0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 17, 0x26, 0xca, 10, 0, 0, 1, 10, 0, 0, 2,
	0x9c, 0x40, 0, 53, 0, 12, 0, 0, 'a', 'b', 'c', 'd',
}

var ethernet = append([]byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0}, udp...)

var sampleSecrets = &Secrets{
	Key: "10.0.0.1:40000", Type: TLSKeyLog,
	Data: []byte("CLIENT_RANDOM " + strings.Repeat("00", 32) + " " + strings.Repeat("11", 48) + "\n"),
}

// sample is a small capture with one of everything: 7 packets on 3 interfaces.
func sample() []Block {
	return []Block{
		&Interface{
			Index: 12, Name: "wlan0", Description: "Wi-Fi", LinkType: Ethernet, Snaplen: 262144,
			Filter: "udp port 53", OS: "Linux 5.10.198-android13-4",
		},
		&Packet{Interface: 12, Time: start, Data: ethernet, Length: 46, Direction: Outbound, UID: 10123},
		&Interface{Index: 7, Name: "rmnet_data0", LinkType: Raw},
		&Packet{
			Interface: 7, Time: start + 1, Data: udp, Length: 32, Direction: Inbound,
			Comments: []string{"com.example.app", "", "zweite: \u00e4\u00f6\u00fc"},
		},
		&Interface{Index: 12, Name: "wlan0", LinkType: Ethernet, Description: "a second time"},
		&Packet{Interface: 12, Time: start + 1_000_000_000, Data: ethernet[:43], Length: 1514},
		&Packet{Interface: 7, Time: start + 2_000_000_000, Direction: Outbound},
		&Packet{Interface: 7, Time: start + 3_000_000_000, Data: udp, Length: 0},
		sampleSecrets,
		&Interface{Index: 12, Name: "tun0", LinkType: Raw},
		&Packet{Interface: 12, Time: start + 4_000_000_000, Data: udp[:29], Length: 32, Direction: Inbound},
		&Packet{Interface: 12, Time: start + 4_000_000_000, Data: udp[:30], Length: 32, Comments: []string{"x\xff"}},
		&Statistics{
			Interface: 7, Time: start + 5_000_000_000, Start: start, End: start + 5_000_000_000,
			Received: 1 << 40, Accepted: 20, Dropped: 3, Delivered: 17, Comment: "2 packets of unknown owner",
		},
		&Statistics{Interface: 12, Time: start + 5_000_000_000, Received: 9},
	}
}

// write writes blocks to out and returns the Writer and its first error.
func write(out io.Writer, blocks []Block) (*Writer, error) {
	w := NewWriter(out, section)
	for _, b := range blocks {
		if err := w.Write(b); err != nil {
			return w, err
		}
	}
	return w, w.Flush()
}

// block is a block as the walker finds it.
type block struct {
	kind    uint32
	body    []byte
	options []option
}

type option struct {
	Code  uint16
	Value string
}

// walk splits a file into its blocks, and fails the test at the first byte that is out of place.
func walk(t *testing.T, file []byte) []block {
	t.Helper()
	fixed := map[uint32]int{blockSection: 16, blockInterface: 8, blockPacket: 20, blockStatistics: 12, blockSecrets: 8}
	var blocks []block
	for len(file) > 0 {
		if len(file) < 12 {
			t.Fatalf("%d bytes after the last block", len(file))
		}
		kind, length := le.Uint32(file), int(le.Uint32(file[4:]))
		if length%4 != 0 || length > len(file) || length != int(le.Uint32(file[length-4:])) {
			t.Fatalf("block of type %#x has length %d with %d bytes left", kind, length, len(file))
		}
		n, ok := fixed[kind]
		if !ok {
			t.Fatalf("block of type %#x", kind)
		}
		b := block{kind: kind, body: file[8 : length-4]}
		switch kind {
		case blockPacket:
			n += (int(le.Uint32(b.body[12:])) + 3) &^ 3
		case blockSecrets:
			n += (int(le.Uint32(b.body[4:])) + 3) &^ 3
		}
		b.options = walkOptions(t, b.body[n:])
		blocks = append(blocks, b)
		file = file[length:]
	}
	return blocks
}

func walkOptions(t *testing.T, b []byte) []option {
	t.Helper()
	if len(b) == 0 {
		return nil
	}
	var options []option
	for {
		code, length := le.Uint16(b), int(le.Uint16(b[2:]))
		b = b[4:]
		if code == optEnd {
			if len(b) != 0 || length != 0 {
				t.Fatalf("%d bytes after the end of options of length %d", len(b), length)
			}
			return options
		}
		options = append(options, option{code, string(b[:length])})
		for _, c := range b[length : (length+3)&^3] {
			if c != 0 {
				t.Fatalf("option %d is padded with %#x", code, c)
			}
		}
		b = b[(length+3)&^3:]
	}
}

func TestInterfaces(t *testing.T) {
	wlan0 := &Interface{Index: 3, Name: "wlan0", LinkType: Ethernet}
	packet := &Packet{Interface: 3}
	tests := []struct {
		name   string
		blocks []Block
		kinds  []uint32
		ids    []uint32 // of the packets
		err    error
	}{
		{
			name: "the same interface twice is one", blocks: []Block{wlan0, packet, wlan0, packet},
			kinds: []uint32{blockInterface, blockPacket, blockPacket}, ids: []uint32{0, 0},
		},
		{
			name: "a reused index is a new interface",
			blocks: []Block{
				wlan0, packet, &Interface{Index: 3, Name: "wlan1", LinkType: Ethernet}, packet,
				&Interface{Index: 3, Name: "wlan1", LinkType: Raw}, packet,
			},
			kinds: []uint32{blockInterface, blockPacket, blockInterface, blockPacket, blockInterface, blockPacket},
			ids:   []uint32{0, 1, 2},
		},
		{
			name:   "an interface that gets its old name back is the old one",
			blocks: []Block{wlan0, &Interface{Index: 3, Name: "x", LinkType: Ethernet}, wlan0, packet},
			kinds:  []uint32{blockInterface, blockInterface, blockPacket}, ids: []uint32{0},
		},
		{
			name:   "another index of the same name is another interface",
			blocks: []Block{wlan0, &Interface{Index: 4, Name: "wlan0", LinkType: Ethernet}, &Packet{Interface: 4}, packet},
			kinds:  []uint32{blockInterface, blockInterface, blockPacket, blockPacket}, ids: []uint32{1, 0},
		},
		{name: "a packet before its interface is refused", blocks: []Block{packet}, err: ErrInterface},
		{name: "statistics before their interface are refused", blocks: []Block{&Statistics{Interface: 3}}, err: ErrInterface},
		{name: "an index between described ones is none", blocks: []Block{wlan0, &Packet{Interface: 2}}, kinds: []uint32{blockInterface}, err: ErrInterface},
		{name: "a negative index is refused", blocks: []Block{wlan0, &Packet{Interface: -1}}, kinds: []uint32{blockInterface}, err: ErrInterface},
		{name: "a negative index is not described", blocks: []Block{&Interface{Index: -1}}, err: ErrInterface},
		{name: "there are no more indexes than that", blocks: []Block{&Interface{Index: mostIndexes}}, err: ErrInterface},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			w, err := write(&out, tt.blocks)
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err := w.Flush(); err != nil {
				t.Fatalf("flush after %v: %v", tt.err, err)
			}
			var kinds, ids []uint32
			for _, b := range walk(t, out.Bytes())[1:] {
				kinds = append(kinds, b.kind)
				if b.kind == blockPacket {
					ids = append(ids, le.Uint32(b.body))
				}
			}
			if diff := cmp.Diff(tt.kinds, kinds); diff != "" {
				t.Errorf("block types (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.ids, ids); diff != "" {
				t.Errorf("interface ids of packets (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPacketLengths(t *testing.T) {
	tests := []struct {
		name         string
		data         int
		length       uint32
		caplen, wire uint32
	}{
		{"whole", 60, 60, 60, 60},
		{"cut at the snaplen", 60, 1514, 60, 1514},
		{"no bytes captured", 0, 1514, 0, 1514},
		{"an original length of 0 is taken from the bytes", 60, 0, 60, 60},
		{"the longest packet Wireshark takes", maxData, maxData, maxData, maxData},
		{"a longer one is cut", maxData + 1, 0, maxData, maxData + 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			data := bytes.Repeat([]byte{0xa5}, tt.data)
			if _, err := write(&out, []Block{&Interface{Index: 1}, &Packet{Interface: 1, Data: data, Length: tt.length}}); err != nil {
				t.Fatal(err)
			}
			body := walk(t, out.Bytes())[2].body
			if c, l := le.Uint32(body[12:]), le.Uint32(body[16:]); c != tt.caplen || l != tt.wire {
				t.Errorf("caplen %d and length %d, want %d and %d", c, l, tt.caplen, tt.wire)
			}
			if !bytes.Equal(body[20:20+tt.caplen], data[:tt.caplen]) {
				t.Error("not the bytes of the packet")
			}
		})
	}
}

func TestOptionsAreCapped(t *testing.T) {
	tests := []struct {
		name, text, want string
	}{
		{"as long as can be", strings.Repeat("a", 65535), strings.Repeat("a", 65535)},
		{"one more", strings.Repeat("a", 65536), strings.Repeat("a", 65535)},
		{"between two-byte characters", strings.Repeat("\u00e4", 40000), strings.Repeat("\u00e4", 32767)},
		{"between four-byte characters", strings.Repeat("\U0001f600", 20000), strings.Repeat("\U0001f600", 16383)},
		{"bytes that are not UTF-8 are replaced first", strings.Repeat("\xff ", 30000), strings.Repeat("\ufffd ", 65535/4) + "\ufffd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			w := NewWriter(&out, Section{tt.text, tt.text, tt.text, tt.text})
			for _, b := range []Block{
				&Interface{Name: tt.text, Description: tt.text, Filter: tt.text, OS: tt.text},
				&Packet{Comments: []string{tt.text, tt.text}},
				&Statistics{Comment: tt.text},
			} {
				if err := w.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			blocks := walk(t, out.Bytes())
			want := [][]option{
				{{shbHardware, tt.want}, {shbOS, tt.want}, {shbApplication, tt.want}, {optComment, tt.want}},
				{{ifName, tt.want}, {ifDescription, tt.want}, {ifOS, tt.want}, {ifTSResol, "\x09"}},
				{{optComment, tt.want}, {optComment, tt.want}},
			}
			var got [][]option
			for _, b := range blocks[:3] {
				var kept []option
				for _, o := range b.options {
					if b.kind == blockInterface && o.Code == ifFilter {
						checkFilter(t, o.Value, tt.want)
						continue
					}
					kept = append(kept, o)
				}
				got = append(got, kept)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("options (-want +got):\n%.2000s", diff)
			}
		})
	}
}

// checkFilter checks an if_filter, which has one byte less than other options for its text.
func checkFilter(t *testing.T, value, text string) {
	t.Helper()
	rest, ok := strings.CutPrefix(value, "\x00")
	if !ok || len(value) > maxOption || !utf8.ValidString(rest) || !strings.HasPrefix(text, rest) || len(text)-len(rest) > 4 {
		t.Errorf("if_filter of %d bytes for a text of %d", len(value), len(text))
	}
}

func TestEmptyFieldsAreLeftOut(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out, Section{})
	for _, b := range []Block{&Interface{}, &Packet{Comments: []string{""}}, &Statistics{}} {
		if err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	zero := strings.Repeat("\x00", 8)
	want := [][]option{nil, {{ifTSResol, "\x09"}}, nil, {
		{isbReceived, zero}, {isbDropped, zero}, {isbAccepted, zero}, {isbOSDropped, zero}, {isbDelivered, zero},
	}}
	var got [][]option
	for _, b := range walk(t, out.Bytes()) {
		got = append(got, b.options)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestNilBlock(t *testing.T) {
	if err := NewWriter(io.Discard, section).Write(nil); err == nil {
		t.Error("nil was written")
	}
}

// counter counts writes and the bytes of the smallest.
type counter struct{ writes, smallest int }

func (c *counter) Write(b []byte) (int, error) {
	c.writes++
	if c.smallest == 0 || len(b) < c.smallest {
		c.smallest = len(b)
	}
	return len(b), nil
}

func TestBuffering(t *testing.T) {
	var out counter
	w := NewWriter(&out, section)
	if out.writes != 0 || len(w.buf) == 0 {
		t.Fatalf("NewWriter made %d writes and queued %d bytes", out.writes, len(w.buf))
	}
	if err := w.Write(&Interface{Index: 1}); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if err := w.Write(&Packet{Interface: 1, Data: make([]byte, 1400)}); err != nil {
			t.Fatal(err)
		}
	}
	if out.writes == 0 || out.smallest < flushAt {
		t.Errorf("%d writes, the smallest of %d bytes", out.writes, out.smallest)
	}
	if w.Packets() >= 1000 || len(w.buf) == 0 {
		t.Errorf("before Flush: %d packets out, %d bytes wait", w.Packets(), len(w.buf))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if w.Packets() != 1000 || len(w.buf) != 0 {
		t.Errorf("after Flush: %d packets out, %d bytes wait", w.Packets(), len(w.buf))
	}
	writes := out.writes
	if err := w.Flush(); err != nil || out.writes != writes {
		t.Errorf("an empty Flush: %v and %d writes", err, out.writes-writes)
	}
}
