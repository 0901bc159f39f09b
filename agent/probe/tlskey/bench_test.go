// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"testing"
	"time"
)

// BenchmarkCall is what a call of a probed function costs, in each way and in none. Nobody reads the records meanwhile, and a ring that
// is full would make it cheaper, so it is emptied now and then, for which no time is counted.
func BenchmarkCall(b *testing.B) {
	calls := func(b *testing.B, empty func()) {
		s, random := known(1)
		label := []byte("CLIENT_HANDSHAKE_TRAFFIC_SECRET\x00")
		for n := 0; b.Loop(); n++ {
			if n%64 == 0 && empty != nil {
				b.StopTimer()
				empty()
				b.StartTimer()
			}
			logSecret(s, &label[0], &random[0], 32, 0)
		}
	}
	b.Run("none", func(b *testing.B) { calls(b, nil) })
	b.Run("program", func(b *testing.B) {
		r := openRing(b)
		f, fn := target(b, false)
		p, err := r.probe(f, 0, fn, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		calls(b, func() {
			for r.records.AvailableBytes() > 0 {
				if _, err := r.records.Read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	b.Run("tracefs", func(b *testing.B) {
		tr := openTracesFor(b)
		f, fn := target(b, false)
		p, err := tr.probe(f, 0, fn, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		calls(b, func() {
			for {
				if _, err := tr.Next(nil, time.Now()); err != nil {
					return
				}
			}
		})
	})
}
