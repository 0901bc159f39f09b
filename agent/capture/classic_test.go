// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
	"droidtap/scripts/nettest"
)

// Each pcap file of a rotated capture has its head, and no packet is lost, doubled or out of order.
func TestClassicRotation(t *testing.T) {
	w := startWriting(t, &numberedFiles{packets: 10}, func(w *writer) {
		w.format = func(out io.Writer, _ pcapng.Section) *pcapng.Writer { return pcapng.NewClassic(out, false) }
		w.counts = func() []pcapng.Statistics { return []pcapng.Statistics{{Interface: 2, Received: w.packets}} }
	})
	w.send(1, 1000)
	if err := w.end(t); err != nil {
		t.Fatal(err)
	}
	var times []int64
	for i := range w.files.opened {
		f, err := nettest.Read(w.files.path(i))
		if err != nil {
			t.Fatal(err)
		}
		if f.Interfaces[0].LinkType != 276 || len(f.Packets) != 10 {
			t.Fatalf("file %d has %d packets of link type %d", i, len(f.Packets), f.Interfaces[0].LinkType)
		}
		for _, p := range f.Packets {
			times = append(times, p.Time)
		}
	}
	if diff := cmp.Diff(upTo(1000), times); diff != "" || w.files.opened != 100 {
		t.Errorf("%d files; packets (-want +got):\n%s", w.files.opened, diff)
	}
}

// Packets that do not fit a pcap file are counted, told once, and end nothing.
func TestClassicMisfits(t *testing.T) {
	var out bytes.Buffer
	var said strings.Builder
	w := writerTo(t, &out, 0, false)
	w.log = slog.New(slog.NewTextHandler(&said, nil))
	w.format = func(out io.Writer, _ pcapng.Section) *pcapng.Writer { return pcapng.NewClassic(out, false) }
	ended := make(chan error, 1)
	go func() { ended <- w.run(pcapng.Section{}) }()
	ethernet, raw := &pcapng.Packet{Interface: 1, Data: make([]byte, 60)}, &pcapng.Packet{Interface: 2, Data: []byte{0x45}}
	w.in <- &batch{blocks: []pcapng.Block{&pcapng.Interface{Index: 1, LinkType: pcapng.Ethernet}, ethernet}}
	w.in <- &batch{blocks: []pcapng.Block{&pcapng.Interface{Index: 2, Name: "tun0", LinkType: pcapng.Raw}, raw, raw, raw, ethernet}}
	close(w.in)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	size, packets, err := pcapng.Whole(&out)
	if packets != 2 || size != 24+2*76 || err != nil || w.lost() != 3 || w.written.Load() != 2 {
		t.Errorf("%d packets in %d bytes, %d lost, %v; want 2 and 3", packets, size, w.lost(), err)
	}
	if strings.Count(said.String(), "level=") != 1 || !strings.Contains(said.String(), "tun0") {
		t.Errorf("the log is:\n%s", said.String())
	}
}
