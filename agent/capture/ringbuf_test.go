// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"droidtap/agent/plugin"
)

const patience = 20 * time.Second // for what must happen

// kernelRing is a ring buffer, of a page if not said, with programs that write into it.
type kernelRing struct {
	*ringBuffer
	m    *ebpf.Map
	drop *ebpf.Program // discards a record
}

func newKernelRing(t *testing.T, wakeup int) *kernelRing {
	t.Helper()
	return newKernelRingOf(t, os.Getpagesize(), wakeup)
}

func newKernelRingOf(t *testing.T, size, wakeup int) *kernelRing {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to load bpf programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: uint32(size)})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("needs ring buffers, 5.8: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	k := &kernelRing{m: m}
	k.drop = k.program(t,
		asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Imm(asm.R2, 40), asm.Mov.Imm(asm.R3, 0), asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.Mov.Reg(asm.R1, asm.R0), asm.Mov.Imm(asm.R2, 0), asm.FnRingbufDiscard.Call())
	if k.ringBuffer, err = openRingBuffer(m, ringOptions{wakeup: wakeup, each: wakeup == 0, most: latency}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() }) // again, where the test has closed it
	return k
}

func (k *kernelRing) program(t *testing.T, insns ...asm.Instruction) *ebpf.Program {
	t.Helper()
	insns = append(insns, asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: insns, License: "GPL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

const (
	byRule = 0 // the kernel's, for a record that wakes
	noWake = 1 // BPF_RB_NO_WAKEUP
	force  = 2 // BPF_RB_FORCE_WAKEUP
)

// writer returns a function that submits the first size bytes of a packet.
func (k *kernelRing) writer(t *testing.T, size, flags int32) func(packet []byte) {
	t.Helper()
	const stack = -128
	p := k.program(t,
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, stack),
		asm.Mov.Imm(asm.R4, size), asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "out"),
		asm.LoadMapPtr(asm.R1, k.m.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stack),
		asm.Mov.Imm(asm.R3, size), asm.Mov.Imm(asm.R4, flags), asm.FnRingbufOutput.Call())
	return func(packet []byte) { k.run(t, p, packet) }
}

func (k *kernelRing) run(t *testing.T, p *ebpf.Program, packet []byte) {
	t.Helper()
	if _, err := p.Run(&ebpf.RunOptions{Data: packet}); err != nil {
		t.Fatal(err)
	}
}

// packet is one whose bytes are n.
func packet(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 128) }

// must returns the next record that is there, and gives its place back.
func (k *kernelRing) must(t *testing.T) []byte {
	t.Helper()
	raw, err := k.next(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Clone(raw)
	k.done()
	return raw
}

// done gives back the place of the records that were read.
func (k *kernelRing) done() {
	if k.lends() {
		k.free(second(k.lend()))
	}
}

func second(_ lender, loan uint64) uint64 { return loan }

func (k *kernelRing) empty(t *testing.T) {
	t.Helper()
	if raw, err := k.next(nil); err != errEmpty {
		t.Fatalf("a record of %d bytes, %v", len(raw), err)
	}
}

type result struct {
	raw []byte
	err error
}

// wait waits in another goroutine.
func (k *kernelRing) wait() <-chan result {
	got := make(chan result, 1)
	go func() {
		raw, err := k.next(nil)
		raw = bytes.Clone(raw)
		if err == nil {
			k.done()
		}
		got <- result{raw, err}
	}()
	return got
}

// sleep does the same, and returns when the kernel knows of it.
func (k *kernelRing) sleep(t *testing.T) <-chan result {
	t.Helper()
	k.recent = false // as after a look that found nothing
	pos := k.pos
	got := k.wait()
	for begin := time.Now(); atomic.LoadUint64(position(k.consumer)) != pos; runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatal("it does not go to sleep")
		}
	}
	return got
}

func await(t *testing.T, got <-chan result) result {
	t.Helper()
	select {
	case r := <-got:
		return r
	case <-time.After(patience):
		t.Fatal("nothing comes")
		return result{}
	}
}

func TestRingWakesSleeper(t *testing.T) {
	for _, wakeup := range []int{0, 2048} {
		k := newKernelRing(t, wakeup)
		write := k.writer(t, 64, byRule)
		k.empty(t)
		for n := range 500 {
			got := k.sleep(t)
			if n%3 == 0 {
				k.run(t, k.drop, packet(n)) // is read, and is no record
			}
			write(packet(n))
			if r := await(t, got); r.err != nil || !bytes.Equal(r.raw, packet(n)[:64]) {
				t.Fatalf("wakeup %d, record %d: %v, %x", wakeup, n, r.err, r.raw)
			}
			k.empty(t)
		}
	}
}

// TestRingWakesByThreshold has a reader that has an hour until it looks again.
func TestRingWakesByThreshold(t *testing.T) {
	const each = 64 + headSize
	k := newKernelRing(t, 10*each)
	quiet, loud := k.writer(t, 64, byRule), k.writer(t, 64, force)
	k.empty(t)
	for round := range 100 {
		quiet(packet(round))
		k.must(t)
		k.empty(t)
		k.now = func() time.Time { return time.Now().Add(time.Hour) }
		got := k.wait()
		for n := range 9 {
			quiet(packet(n))
		}
		loud(packet(9))
		if r := await(t, got); r.err != nil || r.raw[0] != 0 {
			t.Fatalf("%v, %x", r.err, r.raw)
		}
		for n := 1; n < 10; n++ {
			if raw := k.must(t); raw[0] != byte(n) {
				t.Fatalf("%x is record %d", raw, n)
			}
		}
		k.empty(t)
	}
}

// TestRingLooks has records that wake nobody.
func TestRingLooks(t *testing.T) {
	k := newKernelRing(t, 2048)
	write := k.writer(t, 64, noWake)
	write(packet(0))
	k.must(t)
	k.empty(t)
	write(packet(1))
	if r := await(t, k.wait()); r.err != nil || r.raw[0] != 1 {
		t.Fatalf("%v, %x", r.err, r.raw)
	}
}

// TestRingPatience has a reader wait time and again. A step is ms since the one before, whether records came meanwhile, and for how
// many ms the reader waits then; 0: until one comes.
func TestRingPatience(t *testing.T) {
	type step struct {
		after int
		came  uint64 // bytes
		waits int
	}
	const come, none, many = few, 0, few + 1
	for _, c := range []struct {
		rule string
		ring *ringBuffer
		want []step
	}{
		{"one record now and then wakes", &ringBuffer{most: longest},
			[]step{{0, none, 0}, {0, come, 0}, {1000, come, 0}, {5000, many, 0}}},
		{"others soon behind it are waited for, for longer and longer", &ringBuffer{most: longest},
			[]step{{0, come, 0}, {10, come, 100}, {100, come, 200}, {200, come, 400}, {400, come, 800}, {800, come, 1000}, {1000, come, 1000}}},
		{"until none come", &ringBuffer{most: longest},
			[]step{{0, come, 0}, {10, come, 100}, {100, none, 0}, {5000, come, 0}}},
		{"those that trickle are waited for from the start as long as two take", &ringBuffer{most: longest},
			[]step{{0, come, 0}, {300, come, 600}, {600, come, 1000}, {1000, none, 0}, {600, come, 0}}},
		{"what has to be soon is looked for again, however long nothing came", &ringBuffer{most: brief},
			[]step{{0, come, 20}, {20, come, 20}, {20, none, 0}, {5000, come, 20}}},
		{"many are not to be lost", &ringBuffer{most: longest},
			[]step{{0, come, 0}, {10, many, 100}, {100, many, 200}, {200, many, 400}, {400, many, 500}, {500, come, 1000}, {1000, many, 500}}},
		{"each at once", &ringBuffer{most: longest, each: true},
			[]step{{0, come, 0}, {10, come, 0}, {10, none, 0}}},
		{"while records are needed the kernel is not to know how far we are", &ringBuffer{most: longest, loans: []loan{{}}},
			[]step{{0, none, 100}, {100, come, 200}, {200, none, 200}, {5000, come, 400}}},
	} {
		now := time.Unix(1000, 0)
		c.ring.now = func() time.Time { return now }
		for i, s := range c.want {
			now = now.Add(time.Duration(s.after) * time.Millisecond)
			c.ring.recent = s.came > 0
			c.ring.pos += s.came
			if c.ring.pause = c.ring.patience(); c.ring.pause != time.Duration(s.waits)*time.Millisecond {
				t.Errorf("%s: step %d: it waits for %v, want %d ms", c.rule, i, c.ring.pause, s.waits)
			}
		}
	}
}

// What was lent is not written over before it is freed, in whatever order that is, and Close leaves it where it is.
func TestRingLends(t *testing.T) {
	const size = 64
	k := newKernelRing(t, 1<<20)
	write := k.writer(t, size, byRule)
	random := rand.New(rand.NewSource(1))
	type lent struct {
		records [][]byte
		first   int
		loan    uint64
	}
	var all []lent
	check := func(l lent) {
		for i, raw := range l.records {
			if !bytes.Equal(raw, packet(l.first + i)[:size]) {
				t.Fatalf("record %d has become %x", l.first+i, raw)
			}
		}
	}
	written, read := 0, 0
	for range 5000 {
		for range random.Intn(8) {
			if int(k.pos)+(written-read+1)*(size+headSize) < int(atomic.LoadUint64(position(k.consumer)))+os.Getpagesize() {
				write(packet(written))
				written++
			}
		}
		l := lent{first: read}
		for range random.Intn(written - read + 1) {
			raw, err := k.next(nil)
			if err != nil {
				t.Fatal(err)
			}
			l.records = append(l.records, raw)
			read++
		}
		_, l.loan = k.lend()
		all = append(all, l)
		for len(all) > 3 {
			i := random.Intn(len(all))
			check(all[i])
			k.free(all[i].loan)
			all = slices.Delete(all, i, i+1)
		}
	}
	if written < 5000 {
		t.Errorf("%d records were written", written)
	}
	k.leave()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	for _, l := range all {
		check(l)
		k.free(l.loan)
	}
	if k.producer != nil {
		t.Error("the memory is not given back")
	}
}

// TestRingGoesRound has records of several sizes, and some that were discarded, across the end of the ring.
func TestRingGoesRound(t *testing.T) {
	for _, wakeup := range []int{0, 1 << 20} {
		k := newKernelRing(t, wakeup)
		sizes := []int32{40, 41, 47, 48, 49, 100, 127, 128}
		var write []func([]byte)
		for _, size := range sizes {
			write = append(write, k.writer(t, size, byRule))
		}
		buf := make([]byte, 0, 100) // some do not fit
		for n := range 2000 {
			k.run(t, k.drop, packet(n))
			write[n%len(write)](packet(n))
			write[(n+1)%len(write)](packet(n + 1))
			for i := range 2 {
				raw, err := k.next(buf)
				if want := packet(n + i)[:sizes[(n+i)%len(sizes)]]; err != nil || !bytes.Equal(raw, want) {
					t.Fatalf("record %d: %v, %x, want %x", n+i, err, raw, want)
				}
				k.done()
			}
		}
		k.empty(t)
	}
}

// TestRingLargest has the largest records in a ring that is not mapped twice as a whole, one of them half behind its end.
func TestRingLargest(t *testing.T) {
	const (
		ring = 1 << 20     // bytes
		size = 262144 + 64 // MAX_CAPLEN and a head
		last = 0x5eed
	)
	k := newKernelRingOf(t, ring, 1<<20)
	for n, size := range []int32{size / 2, size, size, size, size} {
		write := k.program(t,
			asm.LoadMapPtr(asm.R1, k.m.FD()), asm.Mov.Imm(asm.R2, size), asm.Mov.Imm(asm.R3, 0), asm.FnRingbufReserve.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Reg(asm.R1, asm.R0), asm.Add.Imm(asm.R1, size-4), asm.StoreImm(asm.R1, 0, last, asm.Word),
			asm.Mov.Reg(asm.R1, asm.R0), asm.Mov.Imm(asm.R2, 0), asm.FnRingbufSubmit.Call())
		k.run(t, write, packet(n))
		raw := k.must(t)
		if len(raw) != int(size) || binary.NativeEndian.Uint32(raw[size-4:]) != last {
			t.Errorf("record %d: %d bytes, at their end %x", n, len(raw), raw[len(raw)-4:])
		}
	}
	if k.pos < ring+size/2 {
		t.Errorf("position %d: no record was half behind the end", k.pos)
	}
}

// TestRingFull has no room for a record that is as large as what is free, as before: the lag takes none.
func TestRingFull(t *testing.T) {
	k := newKernelRing(t, 1<<20)
	write := k.writer(t, 128, byRule)
	for round := range 10 {
		for n := range 1000 {
			write(packet(n))
		}
		n := 0
		for ; ; n++ {
			raw, err := k.next(nil)
			if err == errEmpty {
				break
			}
			if err != nil || raw[0] != byte(n) {
				t.Fatalf("round %d, record %d: %v, %x", round, n, err, raw)
			}
			k.done()
		}
		if want := (os.Getpagesize() - 1) / (128 + headSize); n != want {
			t.Errorf("round %d: %d records, want %d", round, n, want)
		}
		k.recent = false
	}
}

func TestRingFlush(t *testing.T) {
	for _, wakeup := range []int{0, 2048} {
		for _, recent := range []bool{false, true} {
			k := newKernelRing(t, wakeup)
			k.now = func() time.Time { return time.Now().Add(time.Hour) }
			k.empty(t)
			k.recent = recent
			got := k.wait()
			k.writer(t, 64, noWake)(packet(1))
			if err := k.flush(); err != nil {
				t.Fatal(err)
			}
			if r := await(t, got); r.err != nil || r.raw[0] != 1 {
				t.Fatalf("%v, %x", r.err, r.raw)
			}
			if r := await(t, k.wait()); !errors.Is(r.err, plugin.ErrFlushed) {
				t.Errorf("%v, want ErrFlushed", r.err)
			}
		}
	}
}

func TestRingClose(t *testing.T) {
	k := newKernelRing(t, 2048)
	k.empty(t)
	got := k.sleep(t)
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if r := await(t, got); r.err == nil || r.err == errEmpty {
		t.Errorf("a closed ring has %x, %v", r.raw, r.err)
	}
	if _, err := k.next(nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v, want os.ErrClosed", err)
	}
}
