// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"io"
	"log/slog"
	"testing"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// BenchmarkWriteAll is what a packet costs the writer from its batch to the output, whose own cost is not in it.
func BenchmarkWriteAll(b *testing.B) {
	plain := func(p *pcapng.Packet) {}
	for _, c := range []struct {
		name       string
		size       int
		interfaces int
		rotator    plugin.Rotator
		set        func(*pcapng.Packet)
	}{
		{"96 bytes", 96, 1, nil, plain},
		{"96 bytes, direction", 96, 1, nil, func(p *pcapng.Packet) { p.Direction = pcapng.Inbound }},
		{"96 bytes, direction, 50 interfaces", 96, 50, nil, func(p *pcapng.Packet) { p.Direction = pcapng.Inbound }},
		{"96 bytes, comment", 96, 1, nil, func(p *pcapng.Packet) { p.Comments = []string{"uid=10123 app=com.example.app"} }},
		{"96 bytes, several files", 96, 1, &numberedFiles{bytes: 1 << 60}, plain},
		{"1400 bytes, direction", 1400, 1, nil, func(p *pcapng.Packet) { p.Direction = pcapng.Inbound }},
		{"64 KiB", 64 << 10, 1, nil, plain},
	} {
		b.Run(c.name, func(b *testing.B) {
			const n = 512
			f := newFiles(func() (plugin.File, error) { return unnamed{io.Discard}, nil }, c.rotator, slog.New(slog.DiscardHandler))
			if err := f.begin(); err != nil {
				b.Fatal(err)
			}
			w := newWriter(f, 0, false)
			w.out = pcapng.NewWriter(io.Discard, pcapng.Section{})
			w.syncer = newSyncer(0, w.log)
			var blocks []pcapng.Block
			for i := range c.interfaces {
				w.write(&pcapng.Interface{Index: i, Name: fmt.Sprint("rmnet", i), LinkType: pcapng.Raw})
			}
			data := make([]byte, c.size)
			for i := range n {
				p := &pcapng.Packet{Interface: i % c.interfaces, Time: start.UnixNano(), Data: data, Length: uint32(c.size)}
				c.set(p)
				blocks = append(blocks, p)
			}
			b.ReportAllocs()
			rounds := 0
			for b.Loop() {
				w.writeAll(blocks)
				rounds++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n*rounds), "ns/packet")
			if w.lost() != w.packets-w.out.Packets() || w.packets != uint64(n*rounds) {
				b.Fatalf("%d packets are lost", w.lost())
			}
		})
	}
}
