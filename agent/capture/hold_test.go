// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// follower notes the packets that it sees, as time/link type.
type follower struct {
	lead  time.Duration
	seen  []string
	learn func(*pcapng.Packet) // nil: nothing
}

func (f *follower) Follow(p *pcapng.Packet, link pcapng.LinkType) {
	f.seen = append(f.seen, fmt.Sprintf("%d/%d", p.Time, link))
	if f.learn != nil {
		f.learn(p)
	}
}
func (f *follower) Lead() time.Duration { return f.lead }

// holding is a writer that holds packets, by a clock that stands still but for tick. It writes at once what it does not hold.
type holding struct {
	*writing
	follower *follower
	clock    time.Time // that and the rest belong to the writer's goroutine
	timer    chan time.Time
	until    time.Time // when timer is over
}

func startHolding(t *testing.T, n *numberedFiles, f *follower, set func(*writer)) *holding {
	t.Helper()
	h := &holding{follower: f, clock: start}
	h.writing = startWriting(t, n, func(w *writer) {
		w.eager, w.hold = true, newHold([]plugin.Follower{f, &follower{}}, false)
		w.now = func() time.Time { return h.clock }
		w.after = func(d time.Duration) <-chan time.Time {
			h.timer, h.until = make(chan time.Time, 1), h.clock.Add(d)
			return h.timer
		}
		if set != nil {
			set(w)
		}
	})
	h.taken()
	h.tick(f.lead) // the interfaces are written
	return h
}

// come has packets of rmnet0 come in one batch.
func (h *holding) come(times ...int64) {
	b := packets(times...)
	for _, block := range b.blocks {
		block.(*pcapng.Packet).Interface = 2
	}
	h.pass(b)
}

// pass has the writer take a batch.
func (h *holding) pass(b *batch) {
	h.in <- b
	h.taken()
}

// taken waits until the writer has taken what was sent: it may be asked first.
func (h *holding) taken() {
	for taken := false; !taken; {
		h.do(func() { taken = len(h.in) == 0 })
	}
}

// tick lets time go by, and the writer see that.
func (h *holding) tick(d time.Duration) {
	var over chan time.Time
	h.do(func() {
		if h.clock = h.clock.Add(d); h.timer != nil && !h.clock.Before(h.until) {
			over, h.timer = h.timer, nil
		}
	})
	if over == nil {
		return
	}
	over <- time.Time{}
	for seen := false; !seen; {
		h.do(func() { seen = h.hold.timer != (<-chan time.Time)(over) })
	}
}

// secret has the writer take secrets that were put.
func (h *holding) secret(text string) {
	h.emit(&pcapng.Secrets{Key: text, Type: pcapng.TLSKeyLog, Data: []byte(text)})
}

// unseen puts secrets of which the writer does not learn by itself.
func (h *holding) unseen(text string) {
	h.do(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.aside = append(h.aside, &pcapng.Secrets{Key: text, Type: pcapng.TLSKeyLog, Data: []byte(text)})
	})
}

func (h *holding) emit(blocks ...pcapng.Block) {
	h.put(blocks...)
	for written := false; !written; {
		h.do(func() { written = len(h.more) == 0 })
	}
}

// has compares what the files have, one line each.
func (h *holding) has(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for i := range h.files.opened {
		b, err := os.ReadFile(h.files.path(i))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, story(b))
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

// story is what a file has: names of interfaces but for those of startWriting, secrets, and times of packets, with the comment.
func story(file []byte) string {
	le := binary.LittleEndian
	var all []string
	for len(file) >= 12 {
		size := le.Uint32(file[4:])
		body := file[8 : size-4]
		switch le.Uint32(file) {
		case 1:
			name := string(body[12:][:le.Uint16(body[10:])])
			if name != "wlan0" && name != "rmnet0" {
				all = append(all, name)
			}
		case 6:
			text := fmt.Sprint(le.Uint32(body[8:]))
			if id := le.Uint32(body); id != 1 {
				text += fmt.Sprint("@", id)
			}
			if length := 20 + (le.Uint32(body[12:])+3)&^3; len(body) > int(length) {
				text += "(" + string(body[length+4:][:le.Uint16(body[length+2:])]) + ")"
			}
			all = append(all, text)
		case 10:
			all = append(all, strings.TrimSpace(string(body[8:][:le.Uint32(body[4:])])))
		}
		file = file[size:]
	}
	return strings.Join(all, " ")
}

const holdLead = 20 * time.Millisecond

// holdCases are what comes to a writer that holds packets for holdLead.
var holdCases = []struct {
	rule  string
	files numberedFiles
	do    func(*holding)
	early []string // what is in the files then
	want  []string // and at the end
}{
	{
		"packets wait, secrets do not", numberedFiles{}, func(h *holding) {
			h.come(1, 2)
			h.tick(holdLead - 1)
			h.come(3)
			h.secret("a")
		},
		[]string{"a"}, []string{"a 1 2 3"},
	},
	{
		"each batch has a time of its own", numberedFiles{}, func(h *holding) {
			h.come(1)
			h.tick(holdLead - 1)
			h.come(2)
			h.tick(1)
			h.secret("a")
			h.come(3)
			h.tick(holdLead - 2)
		},
		[]string{"1 a"}, []string{"1 a 2 3"},
	},
	{
		"packets that come behind what is due do not hold it up", numberedFiles{}, func(h *holding) {
			h.come(1)
			h.do(func() { h.clock = h.clock.Add(holdLead) }) // the timer is late
			h.come(2)
		},
		[]string{"1"}, []string{"1 2"},
	},
	{
		"secrets that come with the end of the time are ahead", numberedFiles{}, func(h *holding) {
			h.come(1)
			h.unseen("a")
			h.tick(holdLead)
		},
		[]string{"a 1"}, []string{"a 1"},
	},
	{
		"what a follower says at once is ahead", numberedFiles{}, func(h *holding) {
			h.do(func() {
				h.follower.learn = func(p *pcapng.Packet) {
					h.put(&pcapng.Secrets{Key: "k", Type: pcapng.TLSKeyLog, Data: fmt.Appendf(nil, "of%d", p.Time)})
				}
			})
			h.come(1)
			h.come(2)
		},
		[]string{"of1 of2"}, []string{"of1 of2 1 2"},
	},
	{
		"a file that begins meanwhile has the secrets of those that waited", numberedFiles{packets: 2}, func(h *holding) {
			h.come(1, 2, 3)
			h.secret("a")
			h.tick(holdLead)
			h.come(4, 5)
			h.secret("b")
		},
		[]string{"a 1 2", "a 3 b"}, []string{"a 1 2", "a 3 b 4", "a b 5"},
	},
	{
		"secrets that come between two files are in the next", numberedFiles{}, func(h *holding) {
			h.come(1)
			h.tick(holdLead)
			h.come(2)
			h.do(h.turn)
			h.secret("a")
			h.tick(holdLead)
		},
		[]string{"1", "a 2"}, []string{"1", "a 2"},
	},
	{
		"an index that another interface takes has what waited written", numberedFiles{}, func(h *holding) {
			h.come(1)
			h.emit(&pcapng.Interface{Index: 2, Name: "rmnet0", LinkType: pcapng.Raw, Filter: "tcp"}) // it is the same
			h.come(2)
			h.secret("a")
			h.emit(&pcapng.Interface{Index: 2, Name: "tun0", LinkType: pcapng.Ethernet})
			h.come(3)
		},
		[]string{"a 1 2 tun0"}, []string{"a 1 2 tun0 3@2"},
	},
	{
		"an interface that comes with packets stays among them", numberedFiles{}, func(h *holding) {
			h.pass(&batch{blocks: []pcapng.Block{
				&pcapng.Packet{Interface: 2, Time: 1}, &pcapng.Interface{Index: 2, Name: "tun0"}, &pcapng.Packet{Interface: 2, Time: 2},
			}})
		},
		[]string{""}, []string{"1 tun0 2@2"},
	},
	{
		"a comment is for the first that is not older, of those that wait, too", numberedFiles{}, func(h *holding) {
			h.come(1, 2, 3)
			h.emit(&pcapng.Statistics{Interface: 2, Time: 2, Comment: "note"})
		},
		[]string{""}, []string{"1 2(note) 3"},
	},
	{
		"a flush writes what waits", numberedFiles{}, func(h *holding) {
			h.come(1)
			h.unseen("a")
			(&Control{c: &capture{writer: h.writer}}).Flush()
			h.come(2)
		},
		[]string{"a 1"}, []string{"a 1 2"},
	},
	{
		"what waits is of the file that is ended by request", numberedFiles{}, func(h *holding) {
			h.come(1)
			path, err := (&Control{c: &capture{writer: h.writer}}).Rotate()
			if path != h.files.path(0) || err != nil {
				h.said.WriteString(fmt.Sprint(path, err))
			}
			h.come(2)
		},
		[]string{"1"}, []string{"1", "2"},
	},
}

// What is kept is written when its time is over, behind the secrets that came meanwhile, in order and into the right file.
func TestHold(t *testing.T) {
	for _, c := range holdCases {
		t.Run(c.rule, func(t *testing.T) {
			h := startHolding(t, &c.files, &follower{lead: holdLead}, nil)
			c.do(h)
			h.has(t, c.early...)
			if err := h.end(t); err != nil {
				t.Fatal(err)
			}
			h.has(t, c.want...)
			if strings.Contains(h.said.String(), "WARN") || h.remarks() != nil {
				t.Errorf("said %s, %v", &h.said, h.remarks())
			}
		})
	}
}
