// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/apps"
	"droidtap/agent/owner"
	"droidtap/agent/pcapng"
	"droidtap/agent/process"
)

// wise is an oracle that knows something of every kind.
func wise(android bool) *oracle {
	w := &oracle{
		rules:   apps.Rules{Of: map[uint32]bool{5: true, 6: true, 7: false}},
		names:   map[uint32][]string{5: {"com.example"}},
		answers: map[uint16]owner.Answer{near + 1: is(5), near + 2: is(7), near + 3: {UID: 6, Other: pcapng.UIDNone, Inode: 100}, near + 4: is(pcapng.UIDNone), far: {UID: 5, Other: 6}},
		inodes:  map[uint16]uint32{near + 1: 100, near + 2: 200, near + 3: 300},
		holders: map[uint32][]process.Process{100: {{PID: 7, Comm: "curl"}}, 200: {{PID: 8, Comm: "wget"}, {PID: 7, Comm: "curl"}}},
	}
	if android {
		w.cgroups = map[uint64]process.Process{77: {PID: 42, Comm: "app"}, 78: {PID: 7, Comm: "other"}}
	}
	return w
}

// anyPacket returns a packet of one of a few flows: TCP and UDP, whole and in fragments, on both interfaces.
func anyPacket(r *rand.Rand) *pcapng.Packet {
	uids := []uint32{5, 5, 5, 6, 7, pcapng.UIDNone, pcapng.UIDUnknown}
	p := &pcapng.Packet{Interface: tun, Time: seen, UID: uids[r.IntN(len(uids))], Cgroup: []uint64{0, 77, 77, 78, 79}[r.IntN(5)], Direction: pcapng.Inbound}
	src, dst := uint16(far), uint16(near+r.IntN(6))
	if r.IntN(5) == 0 {
		p.Interface = loop
	} else if r.IntN(2) == 0 {
		src, dst, p.Direction = dst, src, pcapng.Outbound
	}
	if p.Data = udp(src, dst); r.IntN(2) == 0 {
		p.Data = tcp(src, dst, []byte{2, 16, 16, 16}[r.IntN(4)])
	}
	if r.IntN(10) == 0 {
		p.Data[7] = 9 // of the offset of a fragment
	}
	return p
}

// TestKnown has Known and Settle tell the same as Settle alone, Known without a question.
func TestKnown(t *testing.T) {
	type outcome struct {
		Left     bool
		UID      uint32
		Comments []string
		Topic    int // the topics are numbered as they come; 0: none
	}
	for _, args := range [][]string{
		nil, {"--comments", "all"}, {"--comments", "none", "--unattributed", "drop"}, {"--unattributed", "drop"},
		{"--pid", "7,42"}, {"--comm", "curl", "--unattributed", "keep"}, {"--pid", "42", "--comments", "none"},
	} {
		for _, android := range []bool{true, false} {
			for _, lacks := range []string{"", "processes", "finder"} {
				t.Run(fmt.Sprintf("%q android %v without %q", args, android, lacks), func(t *testing.T) {
					var d time.Duration
					of := func() (*oracle, *settler) {
						w := wise(android)
						s := settlerOf(t, w, &d, args...)
						s.ports.numbered(loop).linkType = pcapng.Raw
						switch lacks {
						case "processes":
							s.processes = nil
						case "finder":
							s.finder = nil
						}
						return w, s
					}
					alone, whole := of()
					w, s := of()
					topics := [2]map[*pcapng.Topic]int{{nil: 0}, {nil: 0}}
					r := rand.New(rand.NewPCG(1, 2))
					known := 0
					for range 100 {
						var blocks, other []pcapng.Block
						var packets [2][]*pcapng.Packet
						for range 8 {
							p := anyPacket(r)
							q := *p
							blocks, other = append(blocks, p), append(other, &q)
							packets[0], packets[1] = append(packets[0], p), append(packets[1], &q)
						}
						whole.Settle(blocks, true)
						before := w.times
						done := s.Known(other)
						if known += done; w.times != before {
							t.Fatal("Known asks")
						}
						s.Settle(other[done:], true)
						var got [2][]outcome
						for i, b := range [][]pcapng.Block{blocks, other} {
							for j, p := range packets[i] {
								if _, met := topics[i][p.Topic]; !met {
									topics[i][p.Topic] = len(topics[i])
								}
								o := outcome{Left: b[j] == nil}
								if !o.Left {
									o = outcome{false, p.UID, p.Comments, topics[i][p.Topic]}
								}
								got[i] = append(got[i], o)
							}
						}
						if diff := cmp.Diff(got[0], got[1]); diff != "" {
							t.Fatalf("-Settle +Known and Settle:\n%s", diff)
						}
						switch r.IntN(20) {
						case 0:
							d += nameHolds / 3
						case 1:
							alone.closes, w.closes = alone.closes+1, w.closes+1
						case 2:
							if alone.inodes[near+1], w.inodes[near+1] = 200, 200; whole.follow() != nil || s.follow() != nil {
								t.Fatal("the rules are not followed")
							}
						}
					}
					for _, number := range []int{tun, loop} {
						if a, b := whole.counted(number), s.counted(number); a != b {
							t.Errorf("%s, and %s", a, b)
						}
					}
					if known == 0 {
						t.Error("nothing was known without a question")
					}
				})
			}
		}
	}
}

// TestKnownStops at what has to be asked, and does what was asked before.
func TestKnownStops(t *testing.T) {
	const syn = 2
	for _, android := range []bool{true, false} {
		var d time.Duration
		s := settlerOf(t, wise(android), &d)
		mine := func() *pcapng.Packet {
			p := out(1, 5)
			p.Cgroup = 77
			return p
		}
		begins := mine()
		begins.Data = tcp(near+1, far, syn)
		check := func(rule string, want int, blocks ...pcapng.Block) {
			t.Helper()
			if done := s.Known(blocks); done != want {
				t.Errorf("android %v: %s: %d are known, want %d", android, rule, done, want)
			}
			s.Settle(blocks, true)
		}
		check("a new owner", 0, mine())
		check("one that was asked for", 4, out(2, pcapng.UIDNone), &pcapng.Interface{}, mine(), mine(), in(1, pcapng.UIDUnknown), mine())
		d += nameHolds
		check("after some time", 1, out(2, pcapng.UIDNone), mine())
		switch android {
		case true:
			check("another connection of the process", 2, begins, mine())
		case false:
			check("another connection", 0, begins, begins)
			check("it may begin more than once", 0, begins)
			s.finder.(*oracle).closes++
			check("another's port", 0, mine())
		}
	}
}

// TestFlowsAge has a flow known as long as it has packets now and then.
func TestFlowsAge(t *testing.T) {
	var d time.Duration
	s := settlerOf(t, &oracle{}, &d)
	topic := func(n uint16) *pcapng.Topic {
		p := out(n, 5)
		s.Settle([]pcapng.Block{p}, true)
		return p.Topic
	}
	first := topic(1)
	for range 5 {
		if d += flowIdle; topic(1) != first {
			t.Error("a flow is forgotten that has packets")
		}
	}
	for range 2 {
		d += flowIdle
		topic(2)
	}
	if topic(1) == first {
		t.Error("a flow is known that had no packets for long")
	}
}
