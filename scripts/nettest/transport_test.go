// SPDX-License-Identifier: Apache-2.0

package nettest_test

import (
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// tcp returns an IPv4 packet of a TCP connection.
func tcp(seq uint32, flags byte, payload string) string {
	b := nettest.Reset(1, 2, []byte(payload))
	binary.BigEndian.PutUint32(b[4:], seq)
	b[13] = flags
	return string(nettest.IPv4("10.0.0.1", "10.0.0.2", unix.IPPROTO_TCP, 0, nil, b))
}

func TestStreams(t *testing.T) {
	const syn, ack, first = 2, 16, 0xfffffffd // the numbers wrap
	for _, c := range []struct {
		rule    string
		packets []string
		want    string
		err     string
	}{
		{"in order", []string{tcp(first, syn, ""), tcp(first+1, ack, "abc"), tcp(1, ack, "def")}, "abcdef", ""},
		{"out of order and again", []string{tcp(first, syn, ""), tcp(1, ack, "def"), tcp(first+1, ack, "abcd"), tcp(0, ack, "cdef")}, "abcdef", ""},
		{"keepalive", []string{tcp(first, syn, ""), tcp(first+1, ack, "a"), tcp(first+1, ack, "")}, "a", ""},
		{"a gap", []string{tcp(first, syn, ""), tcp(1, ack, "def")}, "", "byte 0 of 6 is missing"},
		{"other bytes", []string{tcp(first, syn, ""), tcp(first+1, ack, "abc"), tcp(first+1, ack, "abd")}, "", "sends byte 2 again"},
		{"no beginning", []string{tcp(first+1, ack, "abc")}, "", "does not begin"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			got, err := nettest.Streams(c.packets, 0)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string]string{"10.0.0.1:1 > 10.0.0.2:2": c.want}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestChecksum(t *testing.T) {
	packet := tcp(7, 16, "droidtap")
	h, ok := nettest.ParseIP(packet, 0)
	if !ok {
		t.Fatal("not parsed")
	}
	if got := h.Checksum(packet); got != "wrong" {
		t.Errorf("none: %s", got)
	}
	for full, want := range map[bool]string{true: "full", false: "partial"} {
		segments := h.Segment(packet, 3, full)
		if len(segments) != 3 {
			t.Fatalf("%d segments", len(segments))
		}
		for i, s := range segments {
			if got := h.Checksum(s); got != want {
				t.Errorf("segment %d: %s, want %s", i, got, want)
			}
		}
	}
}
