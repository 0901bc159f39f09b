// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/apps"
	"droidtap/agent/owner"
	"droidtap/agent/pcapng"
	"droidtap/agent/process"
	"droidtap/android"
	"droidtap/scripts/nettest"
)

// oracle answers what owners asks.
type oracle struct {
	answers map[uint16]owner.Answer // by the local port
	inodes  map[uint16]uint32       // by the local port
	holders map[uint32][]process.Process
	cgroups map[uint64]process.Process // nil: not Android
	names   map[uint32][]string
	rules   apps.Rules
	changed chan struct{}
	asked   []string // of Find and Inode
	times   int      // it was asked what takes time
	closes  int
	every   uint32 // socket, if not 0
}

// portOf is that of a packet of ours.
func portOf(q owner.Question) uint16 {
	if q.Outgoing {
		return binary.BigEndian.Uint16(q.Packet[20:])
	}
	return binary.BigEndian.Uint16(q.Packet[22:])
}

func (w *oracle) Find(q owner.Question) owner.Answer {
	w.times++
	w.asked = append(w.asked, fmt.Sprintf("owner of %d", portOf(q)))
	a, ok := w.answers[portOf(q)]
	if !ok {
		return owner.Answer{UID: pcapng.UIDUnknown, Wait: q.Age < owner.Patience, Other: pcapng.UIDNone}
	}
	return a
}

func (w *oracle) Inode(q owner.Question, _ uint32) uint32 {
	w.times++
	w.asked = append(w.asked, fmt.Sprintf("socket of %d", portOf(q)))
	if w.every != 0 {
		return w.every
	}
	return w.inodes[portOf(q)]
}

func (w *oracle) Closes() int { return w.closes }

func (w *oracle) Android() bool { return w.cgroups != nil }

func (w *oracle) OfCgroup(id uint64) (process.Process, bool) {
	w.times++
	p, ok := w.cgroups[id]
	return p, ok
}

func (w *oracle) OfInode(inode uint32) []process.Process {
	w.times++
	return w.holders[inode]
}

func (w *oracle) Names(uid uint32) []string                   { return w.names[uid] }
func (w *oracle) Rules(apps.Selection) (apps.Rules, []string) { return w.rules, nil }
func (w *oracle) Changes() <-chan struct{}                    { return w.changed }
func is(uid uint32) owner.Answer                              { return owner.Answer{UID: uid, Other: pcapng.UIDNone} }
func udp(src, dst uint16) []byte                              { return segment(unix.IPPROTO_UDP, src, dst, 0) }
func tcp(src, dst uint16, flags byte) []byte                  { return segment(unix.IPPROTO_TCP, src, dst, flags) }

// segment makes an IPv4 packet from a port of one address to a port of another.
func segment(protocol uint8, src, dst uint16, flags byte) []byte {
	b := make([]byte, 20+20)
	b[0], b[9] = 0x45, protocol
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[12], b[16] = byte(src>>8), byte(dst>>8) // the host is a part of the port
	binary.BigEndian.PutUint16(b[20:], src)
	binary.BigEndian.PutUint16(b[22:], dst)
	b[33] = flags
	return b
}

const (
	tun, loop = 0, 1 // numbers of the interfaces
	near, far = 0x0100, 0x0200
	seen      = 1_000_000_000_000_000_000 // when packets are seen, Unix nanoseconds
)

// in and out are packets of the flow from port near+n to port far.
func out(n uint16, uid uint32) *pcapng.Packet {
	return &pcapng.Packet{Interface: tun, Time: seen, UID: uid, Direction: pcapng.Outbound, Data: udp(near+n, far)}
}

func in(n uint16, uid uint32) *pcapng.Packet {
	return &pcapng.Packet{Interface: tun, Time: seen, UID: uid, Direction: pcapng.Inbound, Data: udp(far, near+n)}
}

// settlerOf is a settler of the flags that asks an oracle, d after the packets were seen.
func settlerOf(t testing.TB, w *oracle, d *time.Duration, args ...string) *settler {
	t.Helper()
	o, err := parsed(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	var all ports
	all.add(android.Interface{Index: 5, Name: "tun0", Type: 65534})
	all.add(android.Interface{Index: 1, Name: "lo", Type: 772, Loopback: true})
	s := &owners{owning: &o, ports: &all, finder: w, processes: w, book: w, log: slog.New(slog.DiscardHandler), said: map[string]bool{},
		now: func() time.Time { return time.Unix(0, seen).Add(*d) }}
	if o.mode() == ownerFilter { // as the flags would say it, with a book that is none of ours
		s.whose.NotUIDs = []uint32{1}
	}
	if err := s.follow(); err != nil {
		t.Fatal(err)
	}
	return newSettler(s)
}

// settled returns the comments of what is left of packets, one line each, "-" where there is none, and that they are all done with.
func settled(t *testing.T, s *settler, packets ...*pcapng.Packet) string {
	t.Helper()
	blocks := make([]pcapng.Block, len(packets))
	for i, p := range packets {
		blocks[i] = p
	}
	if done := s.Settle(blocks, true); done != len(blocks) {
		t.Fatalf("at last, %d of %d are done with", done, len(blocks))
	}
	var lines []string
	for _, b := range blocks {
		switch p, _ := b.(*pcapng.Packet); {
		case b == nil:
			lines = append(lines, "left out")
		case len(p.Comments) == 0:
			lines = append(lines, "-")
		default:
			lines = append(lines, strings.Join(p.Comments, "|"))
			if cap(p.Comments) != len(p.Comments) {
				t.Error("whoever appends to the comments changes those of other packets")
			}
		}
	}
	return strings.Join(lines, "; ")
}

// counted returns what was counted of an interface.
func (s *settler) counted(number int) string {
	p := s.ports.numbered(number)
	return fmt.Sprintf("%d refused, %d unattributed", p.refused.Load(), p.unattributed.Load())
}

func TestSettle(t *testing.T) {
	const none, unknown = pcapng.UIDNone, pcapng.UIDUnknown
	curl, server := process.Process{PID: 7, Comm: "curl"}, process.Process{PID: 9, Comm: "d"}
	filter := apps.Rules{Of: map[uint32]bool{10123: true, 0: false}}
	for _, tc := range []struct {
		rule    string
		args    []string
		oracle  oracle
		packets []*pcapng.Packet
		want    string
		counts  string // of tun0
	}{
		{"the programs know", nil, oracle{names: map[uint32][]string{10123: {"com.example"}}},
			[]*pcapng.Packet{out(1, 10123), in(1, 0)}, "uid=10123 app=com.example; uid=0", "0 refused, 0 unattributed"},
		{"what has no owner has no comment, and was counted there", nil, oracle{},
			[]*pcapng.Packet{in(1, none)}, "-", "0 refused, 0 unattributed"},
		{"what they do not know is found out", nil, oracle{answers: map[uint16]owner.Answer{near + 1: is(10123), near + 2: is(none)}},
			[]*pcapng.Packet{in(1, unknown), in(2, unknown), in(3, unknown)}, "uid=10123; -; uid=unknown", "0 refused, 2 unattributed"},
		{"what is found out is filtered", []string{"--unattributed", "drop"}, oracle{rules: filter, answers: map[uint16]owner.Answer{near + 1: is(10123), near + 2: is(0), near + 3: is(none)}},
			[]*pcapng.Packet{in(1, unknown), in(2, unknown), in(3, unknown), in(4, unknown)}, "uid=10123; left out; left out; left out", "3 refused, 2 unattributed"},
		{"what the programs have filtered is not", []string{"--unattributed", "drop"}, oracle{rules: filter},
			[]*pcapng.Packet{in(1, 77)}, "uid=77", "0 refused, 0 unattributed"},
		{"without comments", []string{"--comments", "none", "--unattributed", "drop"}, oracle{rules: filter, answers: map[uint16]owner.Answer{near + 1: is(10123)}},
			[]*pcapng.Packet{in(1, unknown), in(2, unknown), in(3, 10123)}, "-; left out; -", "1 refused, 1 unattributed"},
		{"the process has the socket open", nil, oracle{inodes: map[uint16]uint32{near + 1: 100}, holders: map[uint32][]process.Process{100: {curl, server}}},
			[]*pcapng.Packet{out(1, 0), in(1, 0)}, "uid=0 pid=7 comm=curl; uid=0 pid=7 comm=curl", "0 refused, 0 unattributed"},
		{"the socket was found with the owner", nil, oracle{answers: map[uint16]owner.Answer{near + 1: {UID: 5, Inode: 100, Other: none}}, holders: map[uint32][]process.Process{100: {curl}}},
			[]*pcapng.Packet{in(1, unknown)}, "uid=5 pid=7 comm=curl", "0 refused, 0 unattributed"},
		{"only one process is wanted", []string{"--pid", "9"}, oracle{inodes: map[uint16]uint32{near + 1: 100, near + 2: 200}, holders: map[uint32][]process.Process{100: {curl, server}, 200: {curl}}},
			[]*pcapng.Packet{out(1, 0), out(2, 0), out(3, 0), in(1, unknown)}, "uid=0 pid=9 comm=d; left out; left out; left out", "3 refused, 2 unattributed"},
		{"and what is of no known one", []string{"--comm", "d", "--unattributed", "keep"}, oracle{inodes: map[uint16]uint32{near + 1: 100, near + 2: 200}, holders: map[uint32][]process.Process{100: {curl, server}, 200: {curl}}},
			[]*pcapng.Packet{out(1, 0), out(2, 0), out(3, 0), in(1, unknown), in(1, none)}, "uid=0 pid=9 comm=d; left out; uid=0; uid=unknown; -", "1 refused, 2 unattributed"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			d := 60 * time.Millisecond
			s := settlerOf(t, &tc.oracle, &d, tc.args...)
			if got := settled(t, s, tc.packets...); got != tc.want {
				t.Errorf("%s\nwant %s", got, tc.want)
			}
			if got := s.counted(tun); got != tc.counts {
				t.Errorf("%s, want %s", got, tc.counts)
			}
		})
	}
}

// TestSettleWaits keeps the order of packets while one of them waits for its owner.
func TestSettleWaits(t *testing.T) {
	w := &oracle{}
	var d time.Duration
	s := settlerOf(t, w, &d)
	blocks := []pcapng.Block{out(1, 5), &pcapng.Interface{}, in(2, pcapng.UIDUnknown), out(3, 5)}
	if done := s.Settle(blocks, false); done != 2 {
		t.Fatalf("%d are done with before the owner is known", done)
	}
	if done := s.Settle(blocks[2:], false); done != 0 {
		t.Fatalf("%d are done with before the owner is known", done)
	}
	w.answers = map[uint16]owner.Answer{near + 2: is(10123)}
	if done := s.Settle(blocks[2:], false); done != 2 {
		t.Fatalf("%d are done with", done)
	}
	if got := blocks[2].(*pcapng.Packet).Comments; !slices.Equal(got, []string{"uid=10123"}) {
		t.Errorf("%q", got)
	}
	for _, age := range []time.Duration{owner.Patience, -time.Hour, time.Hour} {
		d = age
		if done := s.Settle([]pcapng.Block{in(9, pcapng.UIDUnknown)}, false); done != 1 {
			t.Errorf("a packet waits %v after it was seen", age)
		}
	}
	if got, want := s.counted(tun), "0 refused, 3 unattributed"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestSettleFirst comments on the first packet of each flow in either direction, and where the owner changes.
func TestSettleFirst(t *testing.T) {
	w := &oracle{}
	d := time.Second
	s := settlerOf(t, w, &d, "--comments", "first")
	fragment := func() *pcapng.Packet {
		p := out(1, 5)
		p.Data[7] = 9 // of its offset
		return p
	}
	got := inFile(t, s, out(1, 5), in(1, 5), out(2, 5), out(1, 5), out(1, 6), out(1, 6), in(3, pcapng.UIDUnknown), in(3, pcapng.UIDUnknown), fragment(), fragment())
	if want := "uid=5; -; uid=5; -; uid=6; -; uid=unknown; -; uid=5; uid=5"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	// On the loopback interface both ends are ours, and both ways come in.
	s.ports.numbered(loop).linkType = pcapng.Raw
	w.answers = map[uint16]owner.Answer{near: is(5), far: is(5)}
	back := func(src, dst uint16) *pcapng.Packet {
		return &pcapng.Packet{Interface: loop, Time: seen, UID: 5, Direction: pcapng.Inbound, Data: udp(src, dst)}
	}
	if got, want := inFile(t, s, back(near, far), back(far, near), back(near, far)), "uid=5; -; -"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// inFile returns the comments of packets that are all kept, as settled does, but as they stand in a file.
func inFile(t *testing.T, s *settler, packets ...*pcapng.Packet) string {
	t.Helper()
	settled(t, s, packets...)
	path := filepath.Join(t.TempDir(), "f")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := pcapng.NewWriter(f, pcapng.Section{})
	for _, p := range s.ports.all() {
		err = errors.Join(err, w.Write(&pcapng.Interface{Index: p.number, Name: p.name, LinkType: p.linkType}))
	}
	for _, p := range packets {
		err = errors.Join(err, w.Write(p))
	}
	if err = errors.Join(err, w.Flush()); err != nil {
		t.Fatal(err)
	}
	file, err := nettest.Read(path)
	if err != nil || len(file.Packets) != len(packets) {
		t.Fatalf("%d packets of %d: %v", len(file.Packets), len(packets), err)
	}
	var lines []string
	for _, p := range file.Packets {
		lines = append(lines, cmp.Or(strings.Join(p.Comments, "|"), "-"))
	}
	return strings.Join(lines, "; ")
}

// TestSettleLoopback takes either end of a packet for its owner.
func TestSettleLoopback(t *testing.T) {
	w := &oracle{
		rules:   apps.Rules{Of: map[uint32]bool{10: true}},
		answers: map[uint16]owner.Answer{},
		inodes:  map[uint16]uint32{near: 100, far: 200},
		holders: map[uint32][]process.Process{100: {{PID: 7, Comm: "client"}}, 200: {{PID: 9, Comm: "server"}}},
	}
	var d time.Duration
	packet := func(uid uint32) *pcapng.Packet {
		return &pcapng.Packet{Interface: loop, Time: seen, UID: uid, Direction: pcapng.Inbound, Data: udp(near, far)}
	}
	s := settlerOf(t, w, &d, "--unattributed", "drop")
	// Its packets have an Ethernet header; without one they are simpler.
	s.ports.numbered(loop).linkType = pcapng.Raw
	for _, tc := range []struct {
		rule            string
		receiver, other uint32
		want            string
	}{
		{"the receiver is wanted", 10, 20, "uid=10 pid=9 comm=server"},
		{"the sender is", 20, 10, "uid=10 pid=7 comm=client"},
		{"neither is", 20, 30, "left out"},
		{"the receiver is nobody", pcapng.UIDNone, 10, "uid=10 pid=7 comm=client"},
		{"the sender is nobody", 10, pcapng.UIDNone, "uid=10 pid=9 comm=server"},
		{"both are", pcapng.UIDNone, pcapng.UIDNone, "left out"},
	} {
		w.answers[far] = owner.Answer{UID: tc.receiver, Other: tc.other}
		if got := settled(t, s, packet(pcapng.UIDUnknown)); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.rule, got, tc.want)
		}
	}
	// The programs tell one of the two, and not which.
	w.answers[far] = owner.Answer{UID: 20, Other: 10}
	for uid, want := range map[uint32]string{20: "uid=20 pid=9 comm=server", 10: "uid=10 pid=7 comm=client", 30: "uid=30"} {
		if got := settled(t, s, packet(uid)); got != want {
			t.Errorf("of %d: %s, want %s", uid, got, want)
		}
	}
	for pid, want := range map[string]string{"7": "uid=10 pid=7 comm=client", "9": "uid=20 pid=9 comm=server", "8": "left out"} {
		s := settlerOf(t, w, &d, "--pid", pid, "--unattributed", "keep")
		s.ports.numbered(loop).linkType = pcapng.Raw
		if got := settled(t, s, packet(20)); got != want {
			t.Errorf("--pid %s: %s, want %s", pid, got, want)
		}
	}
}

// TestSettleCosts nothing but time for a packet whose owner is known: no memory.
func TestSettleCosts(t *testing.T) {
	w := &oracle{names: map[uint32][]string{5: {"com.example"}}, inodes: map[uint16]uint32{near + 1: 100}, holders: map[uint32][]process.Process{100: {{PID: 7, Comm: "curl"}}},
		cgroups: map[uint64]process.Process{77: {PID: 42, Comm: "app"}}}
	var d time.Duration
	for _, args := range [][]string{nil, {"--comments", "first"}, {"--pid", "7,42"}} {
		s := settlerOf(t, w, &d, args...)
		byCgroup := out(1, 5)
		byCgroup.Cgroup = 77
		blocks := []pcapng.Block{out(1, 5), byCgroup}
		s.Settle(blocks, false)
		if n := testing.AllocsPerRun(100, func() { s.Settle(blocks, false) }); n > 0 {
			t.Errorf("%q: %v allocations for each packet", args, n)
		}
	}
}

// BenchmarkKnown costs a packet whose owner the programs told, as flows and user ids become more: by the process of its cgroup (as on
// Android), by that of its socket (elsewhere), by the uid alone, and of no owner.
func BenchmarkKnown(b *testing.B) {
	const batch = 512
	for _, c := range []struct {
		whose   string
		cgroups bool
		none    bool
		args    []string
	}{
		{"cgroup", true, false, []string{"--comments", "first"}},
		{"cgroup all", true, false, []string{"--comments", "all"}},
		{"socket", false, false, []string{"--comments", "first"}},
		{"socket all", false, false, []string{"--comments", "all"}},
		{"uid", true, false, []string{"--comments", "none", "--unattributed", "drop"}},
		{"nobody", true, true, nil},
	} {
		for _, n := range []struct{ flows, uids int }{{1, 1}, {100, 1}, {10_000, 1}, {100_000, 1}, {1000, 1000}, {100_000, 1000}} {
			b.Run(fmt.Sprintf("%s/%d flows of %d", c.whose, n.flows, n.uids), func(b *testing.B) {
				w := &oracle{rules: apps.Rules{Others: true}}
				if c.cgroups {
					w.cgroups = map[uint64]process.Process{}
				}
				packets, blocks := make([]pcapng.Packet, n.flows), make([]pcapng.Block, n.flows)
				for i := range packets {
					p := &packets[i]
					*p = *out(uint16(i), uint32(10000+i%n.uids))
					binary.BigEndian.PutUint32(p.Data[16:], uint32(i))
					p.Cgroup = uint64(p.UID)
					if blocks[i] = p; c.cgroups {
						w.cgroups[p.Cgroup] = process.Process{PID: int(p.UID), Comm: "app"}
					}
					if c.none {
						p.UID = pcapng.UIDNone
					}
				}
				// A few as they come from a ring: all at once would wash them out of the processor's caches.
				for len(blocks) < batch {
					blocks = append(blocks, blocks...)
				}
				var d time.Duration
				s := settlerOf(b, w, &d, c.args...)
				if c.whose == "socket" || c.whose == "socket all" {
					w.holders = map[uint32][]process.Process{100: {{PID: 7, Comm: "curl"}}}
					w.every = 100
				}
				s.Settle(blocks, true)
				b.ReportAllocs()
				b.ResetTimer()
				for from := 0; from < b.N; from += batch {
					at := from % (len(blocks) - batch + 1)
					if done := s.Known(blocks[at : at+batch]); done != batch {
						b.Fatalf("%d of %d are known", done, batch)
					}
				}
			})
		}
	}
}
