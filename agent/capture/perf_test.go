// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/perf"
	"droidtap/agent/plugin"
	"droidtap/scripts/nettest"
)

// uevent is how that of a processor begins.
const uevent = "online@/devices/system/cpu/cpu"

var over = time.Unix(1, 0) // a deadline for a look

// perfFixture is perf events with a program that writes into them, and a stand-in for the socket of uevents.
type perfFixture struct {
	*perfEvents
	write *ebpf.Program
	far   int // the end of the socket that the kernel has
}

func newPerfFixture(t testing.TB, size, watermark int) *perfFixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to load bpf programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.PerfEventArray})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	const stack = -8
	write, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), // __sk_buff.len
		asm.Mov.Imm(asm.R2, 0), asm.StoreMem(asm.RFP, stack, asm.R2, asm.DWord),
		asm.Mov.Reg(asm.R3, asm.R7), asm.LSh.Imm(asm.R3, 32), asm.LoadImm(asm.R8, unix.BPF_F_CURRENT_CPU, asm.DWord), asm.Or.Reg(asm.R3, asm.R8),
		asm.Mov.Reg(asm.R1, asm.R6), asm.LoadMapPtr(asm.R2, m.FD()),
		asm.Mov.Reg(asm.R4, asm.RFP), asm.Add.Imm(asm.R4, stack), asm.Mov.Imm(asm.R5, 8),
		asm.FnPerfEventOutput.Call(),
		asm.Return(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = write.Close() })
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(pair[1]) })
	p, err := openPerfEvents(m, size, watermark, pair[0], slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for err == nil { // it may have failed between two records
			_, err = p.Next(nil, over)
		}
		_ = p.Close() // again, where the test has closed it
	})
	return &perfFixture{perfEvents: p, write: write, far: pair[1]}
}

// on has the rest of the test run on a processor.
func on(t testing.TB, cpu int) {
	t.Helper()
	runtime.LockOSThread() // and not unlocked: the thread ends with the test's goroutine
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Skipf("processor %d cannot be had: %v", cpu, err)
	}
}

// emit writes a record of a number and some bytes more, and tells the error that the program sees.
func (f *perfFixture) emit(t *testing.T, number, more int) error {
	t.Helper()
	packet := make([]byte, 14+8+more)
	binary.NativeEndian.PutUint64(packet[14:], uint64(number))
	for i := range more {
		packet[14+8+i] = byte(number + i)
	}
	ret, err := f.write.Run(&ebpf.RunOptions{Data: packet})
	if err != nil {
		t.Fatal(err)
	}
	if ret != 0 {
		return unix.Errno(-int32(ret))
	}
	return nil
}

// all returns the numbers of the records that a look finds.
func (f *perfFixture) all(t *testing.T) (numbers []int) {
	t.Helper()
	for {
		raw, err := f.Next(nil, over)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return numbers
		}
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, int(binary.NativeEndian.Uint64(raw[8+14:])))
	}
}

// lose does to the program what the kernel does when the processor goes offline: it has no event any more.
func (f *perfFixture) lose(t *testing.T, cpu int) {
	t.Helper()
	if err := f.array.Delete(uint32(cpu)); err != nil {
		t.Fatal(err)
	}
}

// TestPerfEventsOfReturningProcessor loses what comes while a processor has no event, and nothing else.
func TestPerfEventsOfReturningProcessor(t *testing.T) {
	const cpu = 0
	for _, c := range []struct {
		rule  string
		again func(*testing.T, *perfFixture)
	}{
		{"an uevent", func(t *testing.T, f *perfFixture) { f.tell(t, uevent+"0\x00ACTION=online\x00") }},
		{"a sleep", func(_ *testing.T, f *perfFixture) { f.resumed() }},
		{"both, and an uevent of another", func(t *testing.T, f *perfFixture) {
			f.tell(t, uevent+"30000\x00ACTION=online\x00")
			f.tell(t, uevent+"0\x00ACTION=online\x00")
			f.resumed()
		}},
		{"no uevent", func(t *testing.T, f *perfFixture) {
			for _, list := range []string{"1-3\n", "0-3\n"} {
				f.compared = time.Time{}
				f.online = func() ([]byte, error) { return []byte(list), nil }
				if err := f.wait(over); err != nil {
					t.Fatal(err)
				}
				f.said = nil
			}
		}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			on(t, cpu)
			f := newPerfFixture(t, os.Getpagesize(), os.Getpagesize()/2)
			opened := len(f.rings)
			emit := func(number int) {
				t.Helper()
				if err := f.emit(t, number, 0); err != nil {
					t.Fatalf("record %d: %v", number, err)
				}
			}
			emit(1)
			emit(2)
			old := f.rings[cpu]
			f.lose(t, cpu)
			if err := f.emit(t, 3, 0); !errors.Is(err, unix.ENOENT) {
				t.Fatalf("a record without an event: %v", err)
			}
			c.again(t, f)
			if diff := cmp.Diff([]int{1, 2}, f.all(t)); diff != "" {
				t.Errorf("when the processor is back (-want +got):\n%s", diff)
			}
			emit(4)
			now := f.rings[len(f.rings)-1]
			for _, r := range f.rings {
				if r.cpu == cpu && r.retired.IsZero() {
					now = r
				}
			}
			// One that took the old event before the new one was there.
			for _, r := range []*perfRing{old, now} {
				if err := f.array.Put(uint32(cpu), uint32(r.FD())); err != nil {
					t.Fatal(err)
				}
				emit(5)
			}
			if diff := cmp.Diff([]int{5, 4, 5}, f.all(t)); diff != "" {
				t.Errorf("afterwards (-want +got):\n%s", diff)
			}
			for _, r := range f.rings {
				if !r.retired.IsZero() {
					r.retired = r.retired.Add(-2 * latency)
				}
			}
			emit(6)
			if diff := cmp.Diff([]int{6}, f.all(t)); diff != "" || len(f.rings) != opened {
				t.Errorf("%d rings at the end, %d at the start (-want +got):\n%s", len(f.rings), opened, diff)
			}
		})
	}
}

func (f *perfFixture) tell(t *testing.T, message string) {
	t.Helper()
	if _, err := unix.Write(f.far, []byte(message)); err != nil {
		t.Fatal(err)
	}
}

// TestPerfEventsWithoutUevents goes on where the socket fails.
func TestPerfEventsWithoutUevents(t *testing.T) {
	on(t, 0)
	f := newPerfFixture(t, os.Getpagesize(), os.Getpagesize()/2)
	if err := unix.Close(f.uevents); err != nil {
		t.Fatal(err)
	}
	if fd, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil || fd != f.uevents { // reads of it fail, EISDIR
		t.Fatalf("descriptor %d, want %d: %v", fd, f.uevents, err)
	}
	if err := f.emit(t, 1, 0); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{1}, f.all(t)); diff != "" || f.uevents != -1 || f.fds[1].Fd != -1 {
		t.Errorf("socket %d, waited for %d (-want +got):\n%s", f.uevents, f.fds[1].Fd, diff)
	}
}

// TestPerfRecords reads records of all lengths around the ring's end.
func TestPerfRecords(t *testing.T) {
	on(t, 0)
	f := newPerfFixture(t, os.Getpagesize(), os.Getpagesize()/2)
	buf := make([]byte, 0, 256)
	for number := range 2000 {
		more := number % 300
		if err := f.emit(t, number, more); err != nil {
			t.Fatalf("record %d: %v", number, err)
		}
		raw, err := f.Next(buf, over)
		if err != nil {
			t.Fatalf("record %d: %v", number, err)
		}
		want := make([]byte, 8+14+8+more)
		binary.NativeEndian.PutUint64(want[8+14:], uint64(number))
		for i := range more {
			want[8+14+8+i] = byte(number + i)
		}
		if len(raw) < len(want) || len(raw) > len(want)+7 || !bytes.Equal(raw[:len(want)], want) {
			t.Fatalf("record %d: %x, want %x", number, raw, want)
		}
		if len(raw) <= cap(buf) && &raw[0] != &buf[:1][0] {
			t.Fatalf("record %d is not in the buffer", number)
		}
		if _, err := f.Next(buf, over); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("behind record %d: %v", number, err)
		}
	}
}

// TestPerfRingFull has the program see the error, and the kernel's notice of it read over.
func TestPerfRingFull(t *testing.T) {
	on(t, 0)
	f := newPerfFixture(t, os.Getpagesize(), os.Getpagesize()/2)
	kept := 0
	for f.emit(t, kept, 100) == nil {
		kept++
	}
	got := f.all(t)
	if err := f.emit(t, -1, 0); err != nil { // behind the notice
		t.Fatal(err)
	}
	got = append(got, f.all(t)...)
	if len(got) != kept+1 || got[kept] != -1 {
		t.Errorf("%d records, want %d and one more", len(got), kept)
	}
}

// TestPerfEventsEnd ends waits without a deadline, and leaves nothing behind.
func TestPerfEventsEnd(t *testing.T) {
	for _, c := range []struct {
		rule string
		end  func(*perfFixture) error
		want []string
	}{
		{"a record that wakes", func(f *perfFixture) error { return nil }, []string{"record"}},
		{"flush", func(f *perfFixture) error { return f.Flush() }, []string{"record", "flushed"}},
		{"close", func(f *perfFixture) error { return f.Close() }, []string{"file already closed"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			on(t, 0)
			watermark := os.Getpagesize() / 2
			if c.rule == "a record that wakes" {
				watermark = 1
			}
			f := newPerfFixture(t, os.Getpagesize(), watermark)
			got := make(chan string, 2)
			begun := make(chan struct{})
			go func() {
				close(begun)
				for {
					if _, err := f.Next(nil, time.Time{}); err != nil {
						got <- err.Error()
						return
					}
					got <- "record"
				}
			}()
			<-begun
			if c.rule != "close" {
				if err := f.emit(t, 1, 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.end(f); err != nil {
				t.Fatal(err)
			}
			for _, want := range c.want {
				select {
				case s := <-got:
					if s != want {
						t.Errorf("%s, want %s", s, want)
					}
				case <-time.After(patience):
					t.Fatalf("nothing, want %s", want)
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := f.Flush(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("flush behind close: %v", err)
			}
			if _, err := f.Next(nil, over); !errors.Is(err, os.ErrClosed) {
				t.Errorf("next behind close: %v", err)
			}
		})
	}
}

// TestPerfEventsLeak opens and closes readers, with processors that return in between.
func TestPerfEventsLeak(t *testing.T) {
	f := newPerfFixture(t, os.Getpagesize(), os.Getpagesize()/2)
	m := f.array
	before := nettest.HeldByPerf(t)
	for range 20 {
		uevents, err := perf.OpenUevents()
		if err != nil {
			t.Fatal(err)
		}
		p, err := openPerfEvents(m, os.Getpagesize(), 1, uevents, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		p.resumed()
		if _, err := p.Next(nil, over); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		if len(p.rings) != 2*len(f.rings) {
			t.Fatalf("%d rings, want new ones beside %d", len(p.rings), len(f.rings))
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openPerfEvents(m, 1<<50, 1, -1, slog.New(slog.DiscardHandler)); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("rings larger than memory: %v, want ENOMEM", err)
	}
	if after := nettest.HeldByPerf(t); after != before {
		t.Errorf("%s, %s before", after, before)
	}
}

// BenchmarkPerfBuffer is what a record of 136 bytes costs the reader, beside its part of a look.
func BenchmarkPerfBuffer(b *testing.B) {
	const records = 4096
	on(b, 0)
	f := newPerfFixture(b, 1<<20, 1<<19)
	p := newPerfBuffer(f, latency, latency, 0, time.Now)
	buf := make([]byte, 0, 1<<10)
	b.ReportAllocs()
	left := 0
	for b.Loop() {
		if left == 0 {
			b.StopTimer()
			if _, err := f.write.Run(&ebpf.RunOptions{Data: make([]byte, 128), Repeat: records}); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			left = records
		}
		if _, err := p.next(buf); err != nil {
			b.Fatal(err)
		}
		left--
	}
}

var _ plugin.Ring = (*perfEvents)(nil)
