// SPDX-License-Identifier: Apache-2.0

package file

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
)

// parse makes an opener of a command line, whose words have no spaces.
func parse(t *testing.T, argv string) (o *opener, err error) {
	t.Helper()
	app := &cli.App{Flags: flags(), Action: func(c *cli.Context) error {
		o, err = open(c)
		return nil
	}}
	if err := app.Run(strings.Fields("agent " + argv)); err != nil {
		t.Fatal(err)
	}
	return o, err
}

// asked is what an opener has of the flags.
type asked struct {
	Size, Quota, Free       int64
	Packets, Most           uint64
	Span, Interval, Whole   time.Duration
	Cyclic, Last, Ring      int
	Slices, Dumpcap, Single bool
	Rotates                 bool
	Mode                    uint32
	Owner                   int
	Ext, Command            string
}

func TestRotationFlags(t *testing.T) {
	tests := []struct {
		argv string
		want asked
	}{
		{"-w x", asked{}},
		{"-w x -C 3", asked{Size: 3e6, Rotates: true}},
		{"-w x -C 3k", asked{Size: 3 << 10, Rotates: true}},
		{"-w x -C 3M", asked{Size: 3 << 20, Rotates: true}},
		{"-w x -C 3g -W 10", asked{Size: 3 << 30, Cyclic: 10, Rotates: true}},
		{"-w x-%H -G 60", asked{Span: time.Minute, Slices: true, Rotates: true}},
		{"-w x-%H -G 60 -W 3", asked{Span: time.Minute, Slices: true, Last: 3, Rotates: true}},
		{"-w x-%H -C 1 -G 60 -W 3", asked{Size: 1e6, Span: time.Minute, Slices: true, Cyclic: 3, Rotates: true}},
		{"-G 60 -W 3", asked{Span: time.Minute, Slices: true, Ring: 3, Rotates: true}},
		{"-C 1 -W 3", asked{Size: 1e6, Ring: 3, Rotates: true}},
		{"-w x -C 1 -a files:4", asked{Size: 1e6, Last: 4, Rotates: true}},
		{"-w x -b filesize:3,files:5", asked{Size: 3000, Ring: 5, Dumpcap: true, Rotates: true}},
		{"-w x -b packets:3 -b duration:1.5 -b interval:3600", asked{
			Packets: 3, Span: 1500 * time.Millisecond, Interval: time.Hour, Dumpcap: true, Rotates: true,
		}},
		{"-b packets:3", asked{Packets: 3, Rotates: true}},
		{"-w x -a filesize:3", asked{Size: 3000, Single: true}},
		{"-w x -b duration:9 -a filesize:3", asked{Size: 3000, Span: 9 * time.Second, Dumpcap: true, Rotates: true}},
		{"-w x -b files:2 -a filesize:3", asked{Size: 3000, Ring: 2, Dumpcap: true, Rotates: true}},
		{"-w x -a duration:9,packets:7", asked{Whole: 9 * time.Second, Most: 7}},
		{"-w x --disk-quota 2m --min-free 100", asked{Quota: 2 << 20, Free: 1e8}},
		{"--file-mode 640 -Z shell", asked{Mode: 0o640, Owner: 2000}},
		{"-Z 10123", asked{Owner: 10123}},
		{"--compress zstd", asked{Ext: ".pcapng.zst"}},
		{"--compress gzip", asked{Ext: ".pcapng.gz"}},
		{"-w x -C 1 -z gzip", asked{Size: 1e6, Command: "gzip", Rotates: true}},
	}
	for _, tt := range tests {
		t.Run(tt.argv, func(t *testing.T) {
			o, err := parse(t, tt.argv)
			if err != nil {
				t.Fatal(err)
			}
			got := asked{
				Size: o.size, Packets: o.packets, Most: o.most, Span: o.span, Interval: o.interval, Whole: o.duration,
				Cyclic: o.cyclic, Last: o.last, Slices: o.slices, Dumpcap: o.dumpcap, Single: o.single, Rotates: o.rotates(),
				Mode: o.mode,
			}
			if o.room != nil {
				got.Ring, got.Quota, got.Free = o.room.ring, o.room.quota, o.room.minFree
			}
			if o.owner != nil {
				got.Owner = *o.owner
			}
			if o.then != nil {
				got.Command = o.then.text
			}
			if o.squeeze != nil {
				got.Ext = o.ext
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if d, n := o.Limits(); d != tt.want.Whole || n != tt.want.Most || o.Persists() != tt.want.Rotates {
				t.Errorf("limits %v and %d, persists %v", d, n, o.Persists())
			}
		})
	}
}

func TestCompressionByName(t *testing.T) {
	for argv, want := range map[string]bool{
		"-w x": false, "-w x.pcapng": false, "-w x.zst": true, "-w d.gz/x": false, "-w x.pcapng.gz": true, "-w x.gz --compress none": false,
		"-w x --compress gzip": true, "-w x.zst --compress zstd": true, "-w - --compress zstd": true, "-w -": false, "": false,
	} {
		if o, err := parse(t, argv); err != nil || (o.squeeze != nil) != want {
			t.Errorf("%s: compressed %v, %v", argv, o != nil && o.squeeze != nil, err)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	tests := []struct{ argv, want string }{
		{"-w x -C 0", "-C 0: a size is"},
		{"-w x -C -1", "-C -1: a size is"},
		{"-w x -C k", "-C k: a size is"},
		{"-w x -C 1t", "-C 1t: a size is"},
		{"-w x -C 9223372036855", "a size is"},
		{"-w x -C 9000000000g", "a size is"},
		{"-w x-%H -G 0", "-G 0: a time is"},
		{"-w x-%H -G x", "-G x: a time is"},
		{"-w x-%H -G nan", "a time is"},
		{"-w x-%H -G 1e-12", "a time is"},
		{"-w x-%H -G 1e30", "a time is"},
		{"-w x -G 60", "all would be x"},
		{"-w x%% -G 60", "all would be x%%"},
		{"-w x -W 3", "-W 3 is how many files there are, so it needs -C or -G"},
		{"-w x -C 1 -W 0", "-W 0: a number is 1 or more"},
		{"-w x -C 1 -z=", "-z needs a command"},
		{"-w x -C 1 -b packets:3", "use one of them"},
		{"-w x -b files:3", "not when one is full"},
		{"-w x -b files", "-b files : a number"},
		{"-w x -b nametimenum:1", "-b nametimenum:1: a condition is"},
		{"-w x -a files:3", "it needs -b, -C or -G"},
		{"-w x -a interval:3", "-a interval:3: a condition is"},
		{"-w x -a filesize:0", "-a filesize 0: a number"},
		{"-w x -C 10 --disk-quota 10", "no room for one file"},
		{"-w x -b filesize:1000 --disk-quota 500k", "no room for one file"},
		{"-w x --min-free x", "--min-free x: a size is"},
		{"-w x --file-mode 1777", "--file-mode 1777"},
		{"-w x --file-mode 0", "--file-mode 0"},
		{"-w x -Z tcpdump", "-Z tcpdump: a user is"},
		{"-w x -Z 4294967295", "a user is"},
		{"-w x --compress bzip2", "it is zstd, gzip or none"},
		{"-w x.gz --compress zstd", "x.gz ends as files of gzip do"},
		{"-w - -C 1", "about files"},
		{"-w - --min-free 1", "about files"},
		{"-w - -G 60", "about files"},
		{"-w - -b packets:3", "about files"},
	}
	for _, tt := range tests {
		t.Run(tt.argv, func(t *testing.T) {
			_, err := parse(t, tt.argv)
			checkUsage(t, err, tt.want)
		})
	}
}
