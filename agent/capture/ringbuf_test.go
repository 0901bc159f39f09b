// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"droidtap/agent/plugin"
)

const patience = 20 * time.Second // for what must happen

// kernelRing is a ring buffer of a page, with programs that write into it.
type kernelRing struct {
	*ringBuffer
	m    *ebpf.Map
	drop *ebpf.Program // discards a record
}

func newKernelRing(t *testing.T, wakeup int) *kernelRing {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to load bpf programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())})
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
	if k.ringBuffer, err = openRingBuffer(m, wakeup, latency); err != nil {
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

// must returns the next record that is there.
func (k *kernelRing) must(t *testing.T) []byte {
	t.Helper()
	raw, err := k.next(nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

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

func TestRingPatience(t *testing.T) {
	now := time.Unix(1, 0)
	for _, c := range []struct {
		rule   string
		wakeup uint64
		recent bool
		enough uint64
		until  time.Time
	}{
		{"nothing came: until there is something", 1000, false, 1, time.Time{}},
		{"something came: until the threshold or the next look", 1000, true, 1000 - lag, now.Add(latency)},
		{"the least threshold", 1, true, 1, now.Add(latency)},
		{"each at once", 0, true, 1, time.Time{}},
	} {
		r := &ringBuffer{wakeup: c.wakeup, latency: latency, recent: c.recent, now: func() time.Time { return now }}
		if enough, until := r.patience(); enough != c.enough || !until.Equal(c.until) {
			t.Errorf("%s: %d bytes until %v", c.rule, enough, until)
		}
		if again, until := r.patience(); again != 1 || !until.IsZero() {
			t.Errorf("%s: then %d bytes until %v", c.rule, again, until)
		}
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
			}
		}
		k.empty(t)
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
