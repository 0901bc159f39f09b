// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each file begins with what its packets need, and what is written to it is what another Writer would write, but for
// interfaces that a later one has replaced before.
func TestNext(t *testing.T) {
	var first, second, want bytes.Buffer
	w, err := write(&first, sample())
	if err != nil {
		t.Fatal(err)
	}
	w.Next(&second)
	packet := &Packet{Interface: 7, Time: start, Data: udp}
	if err := w.Write(packet); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	_, err = write(&want, []Block{
		&Interface{Index: 12, Name: "tun0", LinkType: Raw}, &Interface{Index: 7, Name: "rmnet_data0", LinkType: Raw},
		sampleSecrets, packet,
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Bytes(), second.Bytes()); diff != "" {
		t.Errorf("second file (-want +got):\n%s", diff)
	}
	if w.Packets() != 8 || w.Size() != int64(second.Len()) {
		t.Errorf("%d packets, a file of %d bytes; want 8 and %d", w.Packets(), w.Size(), second.Len())
	}
}

// An interface that is described again adds nothing to a file, and the next one has what was said last.
func TestNextHasTheLatest(t *testing.T) {
	var first, second bytes.Buffer
	w, err := write(&first, []Block{&Interface{Index: 1, Name: "wlan0", Filter: "tcp"}, &Interface{Index: 1, Name: "wlan0", Filter: "udp"}})
	if err != nil {
		t.Fatal(err)
	}
	w.Next(&second)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for file, filter := range map[*bytes.Buffer]string{&first: "\x00tcp", &second: "\x00udp"} {
		blocks := walk(t, file.Bytes())
		if len(blocks) != 2 || blocks[1].options[1].Value != filter {
			t.Errorf("blocks %+v, want one interface with filter %q", blocks, filter)
		}
	}
}

// TestResume lets the output fail after every number of bytes, and has room again: all is written a second time, behind
// the whole blocks of the first.
func TestResume(t *testing.T) {
	for name, newWriter := range formats {
		t.Run(name, func(t *testing.T) {
			for room := range len(fileOf(t, newWriter, sample())) {
				for _, step := range []bool{false, true} {
					out := &truncated{full{room: room, err: syscall.ENOSPC}}
					w := newWriter(out)
					for _, b := range sample() {
						w.Write(b)
						if step {
							w.Flush()
						}
					}
					if w.Flush() == nil {
						t.Fatalf("room for %d: no error", room)
					}
					before := w.Packets()
					out.room = 1 << 20
					w.Resume()
					for _, index := range []int{7, 12} {
						if err := w.Write(&Packet{Interface: index, Data: udp}); err != nil {
							t.Fatalf("room for %d: %v", room, err)
						}
					}
					if err := w.Flush(); err != nil {
						t.Fatalf("room for %d: %v", room, err)
					}
					size, packets, err := Whole(bytes.NewReader(out.Bytes()))
					if w.classic == nil {
						check(t, out.Bytes(), []string{"rmnet_data0", "tun0"})
					}
					if packets != w.Packets() || packets != before+2 || int64(out.Len()) != w.Size() || size != w.Size() || err != nil {
						t.Fatalf("room for %d: %d packets and %d bytes, %d before, Packets() is %d: %v", room, packets, size, before, w.Packets(), err)
					}
				}
			}
		})
	}
}

// check fails the test unless each packet of a file names an interface that stands before it, the last ones those of the
// given names, and the secrets stand before them.
func check(t *testing.T, file []byte, last []string) {
	t.Helper()
	var names, of []string
	known := 0
	for n, b := range walk(t, file) {
		if (b.kind == blockSection) != (n == 0) {
			t.Fatalf("block %d is of type %#x", n, b.kind)
		}
		switch b.kind {
		case blockInterface:
			names = append(names, b.options[0].Value)
		case blockPacket:
			id := le.Uint32(b.body)
			if int(id) >= len(names) {
				t.Fatalf("a packet of interface %d, of %d", id, len(names))
			}
			of = append(of, names[id])
		case blockSecrets:
			known = len(of)
		}
	}
	if diff := cmp.Diff(last, of[max(0, len(of)-len(last)):]); diff != "" {
		t.Fatalf("interfaces of the last packets (-want +got):\n%s", diff)
	}
	if known != len(of)-len(last) {
		t.Fatalf("of %d packets, %d stand before the secrets", len(of), known)
	}
}

// The first comments of one topic are written once in each file, and again where they say something else, or may have been
// lost. Other comments are always written.
func TestTopic(t *testing.T) {
	var first, second bytes.Buffer
	flow, other := &Topic{}, &Topic{}
	packet := func(topic *Topic, comments ...string) *Packet {
		return &Packet{Interface: 7, Time: start, Data: udp, Topic: topic, Comments: comments}
	}
	w, err := write(&first, []Block{
		&Interface{Index: 7, Name: "rmnet_data0", LinkType: Raw},
		packet(flow, "a"), packet(flow, "a"), packet(other, "a"), packet(flow, "a", "note"), packet(flow, "b"), packet(flow), packet(flow, "b"),
		packet(nil, "a"), packet(nil, "a"),
	})
	if err != nil {
		t.Fatal(err)
	}
	again := func() {
		for _, p := range []*Packet{packet(flow, "b"), packet(flow, "b")} {
			if err := w.Write(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.Next(&second)
	again()
	w.Resume() // what was queued is lost
	again()
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file *bytes.Buffer
		want string
	}{{&first, "a; -; a; note; b; -; -; a; a"}, {&second, "b; -"}} {
		var got []string
		for _, b := range walk(t, c.file.Bytes()) {
			if b.kind != blockPacket {
				continue
			}
			comment := "-"
			for _, o := range b.options {
				if o.Code == optComment {
					comment = o.Value
				}
			}
			got = append(got, comment)
		}
		if got := strings.Join(got, "; "); got != c.want {
			t.Errorf("the comments are %s, want %s", got, c.want)
		}
	}
}
