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

func BenchmarkWrite(b *testing.B) {
	for _, bb := range []struct {
		name     string
		comments []string
	}{
		{"plain", nil},
		{"comment", []string{"com.example.app (10123)"}},
	} {
		b.Run(bb.name, func(b *testing.B) {
			w := NewWriter(io.Discard, section)
			if err := w.Write(&Interface{Index: 1, Name: "wlan0", LinkType: Ethernet}); err != nil {
				b.Fatal(err)
			}
			p := &Packet{Interface: 1, Time: start, Data: make([]byte, 1400), Direction: Inbound, Comments: bb.comments}
			b.SetBytes(1400)
			b.ReportAllocs()
			for b.Loop() {
				if err := w.Write(p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
