// SPDX-License-Identifier: Apache-2.0

package file

import (
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/plugin"
)

// contents are the files of the working directory.
func contents(t *testing.T) map[string]string {
	t.Helper()
	list, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range list {
		text, err := os.ReadFile(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}

// step is what a writer does: it asks about a file of so many bytes a while after the one before, and begins another one if it is told to.
type step struct {
	after time.Duration
	bytes int64
}

// TestNames plays captures: each step is a packet. The n-th file holds the letter n.
func TestNames(t *testing.T) {
	const minute = time.Minute
	by := func(d time.Duration, bytes int64, n int) []step { return slices.Repeat([]step{{d, bytes}}, n) }
	tests := []struct {
		name, argv string
		files      map[string]string
		steps      []step
		want       map[string]string
		ends       bool
	}{
		{name: "-C numbers files", argv: "-w x -C 1", steps: by(0, 1e6, 3), want: map[string]string{"x": "A", "x1": "B", "x2": "C", "x3": "D"}},
		{name: "a file is kept until it has -C", argv: "-w x -C 1", steps: by(minute, 1e6-1, 3), want: map[string]string{"x": "A"}},
		{
			name: "-C and -W use names again", argv: "-w x -C 1 -W 3", steps: by(0, 1e6, 4),
			want: map[string]string{"x0": "D", "x1": "E", "x2": "C"},
		},
		{name: "as many digits as -W needs", argv: "-w x -C 1 -W 11", steps: by(0, 1e6, 1), want: map[string]string{"x00": "A", "x01": "B"}},
		{name: "ten names have one digit", argv: "-w x -C 1 -W 10", steps: by(0, 1e6, 1), want: map[string]string{"x0": "A", "x1": "B"}},
		{name: "one name", argv: "-w x -C 1 -W 1", steps: by(0, 1e6, 2), want: map[string]string{"x": "C"}},
		{
			name: "in front of what tells of compression", argv: "-w x.pcapng.gz -C 1 --compress none", steps: by(0, 1e6, 1),
			want: map[string]string{"x.pcapng.gz": "A", "x.pcapng1.gz": "B"},
		},
		{
			name: "-C replaces what is there", argv: "-w x -C 1", files: map[string]string{"x": "old", "x1": "old", "x2": "old"}, steps: by(0, 1e6, 1),
			want: map[string]string{"x": "A", "x1": "B", "x2": "old"},
		},
		{
			name: "-G", argv: "-w x-%H%M -G 60", steps: by(30*time.Second, 0, 4),
			want: map[string]string{"x-1403": "A", "x-1404": "B", "x-1405": "C"},
		},
		{
			name: "-G replaces a file of the same name", argv: "-w x-%H -G 60", steps: by(minute, 0, 2),
			want: map[string]string{"x-14": "C"},
		},
		{
			name: "-G leaves out times without packets", argv: "-w x-%H%M -G 60", steps: []step{{10 * minute, 0}},
			want: map[string]string{"x-1403": "A", "x-1413": "B"},
		},
		{
			name: "-G -W ends", argv: "-w x-%H%M -G 60 -W 2", steps: by(minute, 0, 2), ends: true,
			want: map[string]string{"x-1403": "A", "x-1404": "B"},
		},
		{
			name: "-C -G numbers files of a slice", argv: "-w x-%M -C 1 -G 60",
			steps: []step{{0, 1e6}, {20 * time.Second, 1e6}, {40 * time.Second, 1}, {0, 1e6}},
			want:  map[string]string{"x-03": "A", "x-031": "B", "x-032": "C", "x-04": "D", "x-041": "E"},
		},
		{
			name: "-C -G -W uses the names of a slice again", argv: "-w x-%M -C 1 -G 60 -W 2",
			steps: []step{{0, 1e6}, {0, 1e6}, {minute, 0}},
			want:  map[string]string{"x-030": "C", "x-031": "B", "x-040": "D"},
		},
		{
			name: "dumpcap's names", argv: "-w x.pcapng -b filesize:1", steps: by(time.Second, 1000, 2),
			want: map[string]string{"x_00001_20261122140312.pcapng": "A", "x_00002_20261122140313.pcapng": "B", "x_00003_20261122140314.pcapng": "C"},
		},
		{
			name: "dumpcap's names without an extension, in a ring", argv: "-w .x -b filesize:1 -b files:2", steps: by(time.Second, 1000, 3),
			want: map[string]string{".x_00003_20261122140314": "C", ".x_00004_20261122140315": "D"},
		},
		{
			name: "dumpcap's names with two extensions", argv: "-w x.y.pcapng.gz -b duration:1 --compress none", steps: by(time.Second, 0, 1),
			want: map[string]string{"x.y_00001_20261122140312.pcapng.gz": "A", "x.y_00002_20261122140313.pcapng.gz": "B"},
		},
		{
			name: "-b duration begins anew with each file", argv: "-w x -b duration:60,filesize:1", steps: []step{{40 * time.Second, 1000}, {40 * time.Second, 0}},
			want: map[string]string{"x_00001_20261122140312": "A", "x_00002_20261122140352": "B"},
		},
		{
			name: "-b interval ends where the clock has a multiple", argv: "-w x -b interval:60",
			steps: []step{{47 * time.Second, 0}, {time.Second, 0}, {59 * time.Second, 0}, {time.Second, 0}},
			want:  map[string]string{"x_00001_20261122140312": "A", "x_00002_20261122140400": "B", "x_00003_20261122140500": "C"},
		},
		{
			name: "-a files ends", argv: "-w x -C 1 -a files:2", steps: by(0, 1e6, 2), ends: true,
			want: map[string]string{"x": "A", "x1": "B"},
		},
		{name: "-a filesize ends", argv: "-w x -a filesize:1", steps: by(0, 1000, 1), ends: true, want: map[string]string{"x": "A"}},
		{
			name: "generated names in a ring", argv: "-C 1 -W 2", steps: by(time.Second, 1e6, 2), files: map[string]string{"any-20261122-140312.pcapng": "old"},
			want: map[string]string{"any-20261122-140312.pcapng": "old", "any-20261122-140313.pcapng": "B", "any-20261122-140314.pcapng": "C"},
		},
		{
			name: "generated names of the same second", argv: "-C 1", steps: by(0, 1e6, 2),
			want: map[string]string{"any-20261122-140312.pcapng": "A", "any-20261122-140312-1.pcapng": "B", "any-20261122-140312-2.pcapng": "C"},
		},
		{
			name: "a number that is free again is not used again", argv: "-C 1 -W 2", steps: by(0, 1e6, 3),
			want: map[string]string{"any-20261122-140312-2.pcapng": "C", "any-20261122-140312-3.pcapng": "D"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(tree(t, tt.files))
			o, c := turned(t, tt.argv)
			letter := "A"
			write := func() {
				if _, err := fill(t, o, "any", letter); err != nil {
					t.Fatal(err)
				}
				// Of the time under test: a name that comes again may be one from a time that is to come.
				for name, text := range contents(t) {
					if text == letter {
						if err := os.Chtimes(name, c.wall, c.wall); err != nil {
							t.Fatal(err)
						}
					}
				}
				letter = string(letter[0] + 1)
				o.Lasts()
			}
			for name := range tt.files {
				if err := os.Chtimes(name, c.wall, c.wall); err != nil {
					t.Fatal(err)
				}
			}
			write()
			ended := false
			for _, s := range tt.steps {
				c.advance(s.after)
				switch o.Full(plugin.Filling{Bytes: s.bytes, Packets: 1, Over: o.over()}) {
				case plugin.Next:
					write()
				case plugin.End:
					ended = true
				}
			}
			if diff := cmp.Diff(tt.want, contents(t)); diff != "" || ended != tt.ends {
				t.Errorf("ended %v; files (-want +got):\n%s", ended, diff)
			}
		})
	}
}

func TestSplitName(t *testing.T) {
	got := map[string]string{}
	for _, name := range []string{"x", "x.pcapng", "x.pcapng.gz", ".x", ".x.y", "d.e/x", "x.zst", ".gz", "x."} {
		stem, ext := splitName(name)
		got[name] = stem + "|" + ext
	}
	want := map[string]string{
		"x": "x|", "x.pcapng": "x|.pcapng", "x.pcapng.gz": "x|.pcapng.gz", ".x": ".x|", ".x.y": ".x|.y", "d.e/x": "d.e/x|", "x.zst": "x|.zst",
		".gz": "|.gz", "x.": "x|.",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("of %v (-want +got):\n%s", slices.Collect(maps.Keys(want)), diff)
	}
}
