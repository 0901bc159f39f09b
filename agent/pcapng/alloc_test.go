// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"io"
	"testing"
)

func TestPacketsAreNotAllocated(t *testing.T) {
	w := NewWriter(io.Discard, section)
	if err := w.Write(&Interface{Index: 1, Name: "wlan0", LinkType: Ethernet}); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, maxData)
	comments := []string{"com.example.app", "\u00e4"}
	for _, n := range []int{0, 1400, maxData} {
		allocs := testing.AllocsPerRun(1000, func() {
			err := w.Write(&Packet{Interface: 1, Time: start, Data: data[:n], Direction: Inbound, Comments: comments})
			if err != nil {
				t.Fatal(err)
			}
		})
		if allocs != 0 {
			t.Errorf("%v allocations for a packet of %d bytes", allocs, n)
		}
	}
}

// BenchmarkWrite is what a packet costs, but for the output.
func BenchmarkWrite(b *testing.B) {
	for _, bb := range []struct {
		name     string
		size     int
		comments []string
	}{
		{"96 bytes", 96, nil},
		{"96 bytes, comment", 96, []string{"com.example.app (10123)"}},
		{"1400 bytes", 1400, nil},
	} {
		b.Run(bb.name, func(b *testing.B) {
			w := NewWriter(io.Discard, section)
			if err := w.Write(&Interface{Index: 1, Name: "wlan0", LinkType: Ethernet}); err != nil {
				b.Fatal(err)
			}
			p := &Packet{Interface: 1, Time: start, Data: make([]byte, bb.size), Direction: Inbound, Comments: bb.comments}
			b.SetBytes(int64(bb.size))
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Write(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
