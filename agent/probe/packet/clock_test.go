// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"sync"
	"testing"
	"time"

	"droidtap/agent/plan"
)

// steadyClock is a clock behind the wall clock by so many ns, at the kernel time 0.
func steadyClock(behind int64) *clock {
	return &clock{
		now:    func() (wall, awake int64) { return behind, 0 },
		kernel: func() int64 { return 0 },
		boot:   func() int64 { return 0 },
	}
}

// world is the clocks of a phone, in ns, and the packets that it captures.
type world struct {
	wall, awake, boot int64
	clock             *clock
	reading           time.Duration // of one clock, what it takes
	monotonic         bool          // is the clock of the stamps
	ring              []record      // to be read
	worst             int64         // error of a packet's time, ns
}

type record struct {
	stamp uint64
	wall  int64 // when it came
}

func newWorld(c plan.Clock) *world {
	w := &world{reading: 200 * time.Nanosecond, wall: 1_700_000_000_000_000_000, awake: 50_000_000_000, boot: 80_000_000_000, monotonic: c == plan.Monotonic}
	w.clock = &clock{
		now:    func() (wall, awake int64) { defer w.pass(w.reading); return w.wall, w.awake },
		kernel: func() int64 { defer w.pass(w.reading); return int64(w.stamp()) },
		boot:   func() int64 { defer w.pass(w.reading); return w.boot },
	}
	return w
}

func (w *world) pass(d time.Duration) {
	w.wall += int64(d)
	w.awake += int64(d)
	w.boot += int64(d)
}

func (w *world) sleep(d time.Duration) {
	w.wall += int64(d)
	w.boot += int64(d)
}

func (w *world) set(d time.Duration) { w.wall += int64(d) }

// stamp is what a packet gets that comes now.
func (w *world) stamp() uint64 {
	if w.monotonic {
		return uint64(w.awake)
	}
	return uint64(w.boot)
}

// packet comes, and waits in the ring.
func (w *world) packet() { w.ring = append(w.ring, record{w.stamp(), w.wall}) }

// told is what the kernel does when the wall clock was set or the phone has slept, and somebody watches.
func (w *world) told() { w.clock.measure() }

// read decodes what is in the ring.
func (w *world) read() {
	for len(w.ring) > 0 {
		w.readOne()
	}
}

func (w *world) readOne() {
	p := w.ring[0]
	w.ring = w.ring[1:]
	w.clock.look()
	off := w.clock.wall(p.stamp) - p.wall
	w.worst = max(w.worst, off, -off)
}

func TestClock(t *testing.T) {
	const ms = time.Millisecond
	set := func(d time.Duration) func(*world) {
		return func(w *world) { w.set(d); w.told(); w.packet() }
	}
	// Packets before and after what happens, read at once or when all is over.
	around := func(late bool, happens ...func(*world)) func(*world) {
		return func(w *world) {
			w.packet()
			w.read()
			for _, f := range happens {
				for range 5 {
					w.packet()
					w.pass(10 * ms)
				}
				if !late {
					w.read()
				}
				f(w)
			}
			w.pass(10 * ms)
			w.packet()
			w.read()
		}
	}
	slew := func(w *world) {
		for range 1000 {
			w.pass(10 * ms)
			w.set(5 * time.Microsecond) // 500 ppm, the most that adjtimex(2) does
			w.packet()
			w.read()
		}
	}
	slept := func(w *world) {
		w.packet()
		w.read()
		w.sleep(8 * time.Hour)
		w.packet()
		w.pass(200 * ms)
		w.told()
	}
	unread := func(w *world) { w.pass(2 * time.Second); w.sleep(time.Hour); w.packet(); w.pass(200 * ms); w.told() }
	// The agent is frozen between two records of a ring.
	amid := func(w *world) { w.readOne(); w.sleep(time.Hour); w.packet(); w.pass(200 * ms); w.told() }
	// Nobody watches. The packet by which it is noticed is none of those that are compared.
	next := func(d, after time.Duration) func(*world) {
		return func(w *world) { w.set(d); w.pass(after); w.clock.look() }
	}
	only := []plan.Clock{plan.Boottime}
	for _, tc := range []struct {
		rule   string
		clocks []plan.Clock // nil: both
		play   func(*world)
		within time.Duration
	}{
		{"nothing happens", nil, around(false), time.Microsecond},
		{"set forward", nil, around(false, set(time.Hour)), time.Microsecond},
		{"set forward, decoded late", nil, around(true, set(time.Hour)), time.Microsecond},
		{"set back", nil, around(false, set(-time.Hour)), time.Microsecond},
		{"set back, decoded late", nil, around(true, set(-time.Hour)), time.Microsecond},
		{"set by little", nil, around(true, set(20*time.Microsecond)), time.Microsecond},
		{"set forth and back, decoded late", nil, around(true, set(time.Hour), set(-2*time.Hour), set(time.Hour), set(ms)), time.Microsecond},
		{"set, and the next packet tells", nil, around(false, next(-2*ms, 0), next(2*ms, 0)), time.Microsecond},
		{"set by little, and a packet soon tells", nil, around(false, next(ms/2, 101*ms)), time.Microsecond},
		{"slewed", nil, slew, 60 * time.Microsecond},
		{"slept, and the first packet came before the agent ran", nil, around(false, slept), time.Microsecond},
		{"slept, and read late what came well before", nil, around(true, unread), time.Microsecond},
		{"slept while it read", nil, around(true, amid), time.Microsecond},
		{"slept, and read late what came last", only, around(true, slept), time.Microsecond},
		{"slept, and nobody told", nil, around(false, func(w *world) { w.sleep(time.Hour) }), time.Microsecond},
		{"slept, and set", nil, around(false, slept, set(time.Hour), slept, set(-time.Hour)), time.Microsecond},
	} {
		clocks := tc.clocks
		if clocks == nil {
			clocks = []plan.Clock{plan.Boottime, plan.Monotonic}
		}
		for _, c := range clocks {
			t.Run(tc.rule+", "+string(c), func(t *testing.T) {
				w := newWorld(c)
				if tc.play(w); w.worst > int64(tc.within) {
					t.Errorf("a packet's time is off by %v", time.Duration(w.worst))
				}
			})
		}
	}
}

// TestClockForgets turns what is older than all that is remembered by the oldest that is.
func TestClockForgets(t *testing.T) {
	w := newWorld(plan.Boottime)
	w.told()
	old := w.boot
	for range remembered + 3 {
		w.pass(time.Millisecond)
		w.set(time.Hour)
		w.told()
	}
	oldest := w.clock.known.Load().spans[remembered-1].ahead.middle()
	if got := w.clock.wall(uint64(old)); got != old+oldest {
		t.Errorf("%d, want %d", got-old, oldest)
	}
}

// TestClockKeepsWhatItKnows measures closer and closer, and does not take noise for a change.
func TestClockKeepsWhatItKnows(t *testing.T) {
	w := newWorld(plan.Boottime)
	distance := w.wall - w.boot
	for _, reading := range []time.Duration{10 * time.Millisecond, time.Microsecond, 100, 10 * time.Millisecond} {
		w.pass(time.Second)
		w.reading = reading
		w.told()
	}
	h := w.clock.known.Load()
	if h.n != 1 {
		t.Errorf("%d spans of time, and the clock was never set", h.n)
	}
	if off := h.spans[0].ahead.middle() - distance; off < -300 || off > 300 {
		t.Errorf("off by %d ns after a measurement that took 300", off)
	}
}

// TestClockIsTheKernels compares with the clocks of this machine.
func TestClockIsTheKernels(t *testing.T) {
	for _, name := range []plan.Clock{plan.Boottime, plan.Monotonic} {
		c := newClock(name)
		watcher, err := c.watch()
		if err != nil {
			t.Fatal(err)
		}
		before := time.Now().UnixNano()
		got := c.wall(uint64(c.kernel()))
		after := time.Now().UnixNano()
		h := c.known.Load()
		slack := h.spans[0].ahead.high - h.spans[0].ahead.low
		if got < before-slack || got > after+slack {
			t.Errorf("%s: %d is not between %d and %d, give or take %d", name, got, before, after, slack)
		}
		if err := watcher.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestClockIsShared has several goroutines use one clock while it is set.
func TestClockIsShared(t *testing.T) {
	c := newClock(plan.Boottime)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			last := int64(0)
			for range 1000 {
				stamp := c.kernel()
				c.look()
				if got := c.wall(uint64(stamp)); got-last < -int64(time.Millisecond) {
					t.Errorf("%d ns back", last-got)
				} else {
					last = got
				}
			}
		})
	}
	for range 1000 {
		c.measure()
	}
	all.Wait()
}

// TestClockAllocates nothing for a packet.
func TestClockAllocates(t *testing.T) {
	c := steadyClock(1)
	if n := testing.AllocsPerRun(1000, func() { c.look(); c.wall(5) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkClock(b *testing.B) {
	c := newClock(plan.Boottime)
	stamp := uint64(c.kernel())
	for b.Loop() {
		c.wall(stamp)
	}
}
