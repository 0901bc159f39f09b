// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/agent/tlslib"
	"droidtap/bpf"
	"droidtap/scripts/nettest"
)

// ring is the ring way, loaded as a capture does.
type ring struct {
	*programs
	coll    *ebpf.Collection
	records *ringbuf.Reader
	reader  reader
}

// openRing loads the object.
func openRing(t testing.TB) *ring {
	t.Helper()
	nettest.Require(t)
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	r := &ring{}
	load := func(p plugin.Preparer, shared map[string]*ebpf.Map) (*ebpf.Collection, error) {
		spec, err := bpf.Open("tlskey", string(plan.Ring))
		if err != nil {
			return nil, err
		}
		if err := p.Prepare(spec, plugin.Target{Log: slog.New(slog.DiscardHandler)}); err != nil {
			return nil, err
		}
		return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	}
	coll, err := load(prepareFunc(prepare), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	records, err := ringbuf.NewReader(coll.Maps["events"])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = records.Close() })
	r.coll, r.records = coll, records
	r.programs = &programs{load: func(p plugin.Preparer) (map[string]*ebpf.Program, error) {
		more, err := load(p, map[string]*ebpf.Map{"events": coll.Maps["events"], "lost": coll.Maps["lost"]})
		if err != nil {
			return nil, err
		}
		programs := more.Programs
		more.Programs = nil
		more.Close()
		return programs, nil
	}}
	return r
}

// prepareFunc is a Preparer.
type prepareFunc func(*ebpf.CollectionSpec, plugin.Target) error

func (f prepareFunc) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error { return f(spec, t) }

// TestLoadingSaysWhenNothingIsLeft: no program is smaller.
func TestLoadingSaysWhenNothingIsLeft(t *testing.T) {
	for attempt, want := range []error{nil, plugin.ErrSmallest} {
		spec, err := bpf.Open("tlskey", string(plan.Ring))
		if err != nil {
			t.Fatal(err)
		}
		if err := (loading{}).Prepare(spec, plugin.Target{Attempt: attempt}); !errors.Is(err, want) {
			t.Errorf("attempt %d: %v", attempt, err)
		}
	}
}

// next waits for a secret.
func (r *ring) next(t *testing.T) secret {
	t.Helper()
	r.records.SetDeadline(time.Now().Add(10 * time.Second))
	record, err := r.records.Read()
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.reader.parse(record.RawSample)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// none fails if there is one.
func (r *ring) none(t *testing.T) {
	t.Helper()
	r.records.SetDeadline(time.Now())
	if _, err := r.records.Read(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("there is a secret: %v", err)
	}
}

// known makes a session with a random that begins with a byte.
func known(first byte) (*session, [32]byte) {
	s := &session{base: &base{}}
	for i := range s.base.random {
		s.base.random[i] = first + byte(i)
	}
	return s, s.base.random
}

// padded returns bytes with zeros behind.
func padded[T [48]byte | [64]byte](b string) (to T) {
	switch a := any(&to).(type) {
	case *[48]byte:
		copy(a[:], b)
	case *[64]byte:
		copy(a[:], b)
	}
	return to
}

func TestProgramTellsASecret(t *testing.T) {
	r := openRing(t)
	f, fn := target(t, false)
	p, err := r.probe(f, 0, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{32, 48, 64} {
		s, random := known(byte(size))
		label, value := []byte("CLIENT_RANDOM\x00and more"), bytes.Repeat([]byte{7}, 64)
		logSecret(s, &label[0], &value[0], uint64(size), 0)
		got := r.next(t)
		want := secret{
			Time: got.Time, TID: got.TID, LabelAt: uint64(uintptr(unsafe.Pointer(&label[0]))), Base: uint64(uintptr(unsafe.Pointer(s.base))),
			PID: uint32(os.Getpid()), UID: uint32(os.Getuid()), Size: uint32(size),
			Label: padded[[48]byte]("CLIENT_RANDOM"), Random: random, Secret: padded[[64]byte](string(value[:size])),
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("want -, got +\n%s", diff)
		}
		r.none(t)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ := known(1)
	logSecret(s, &[]byte("AFTER\x00")[0], &[]byte{1}[0], 1, 0)
	r.none(t)
}

func TestProgramTellsWhatItCouldNotRead(t *testing.T) {
	r := openRing(t)
	tellsWhatItCouldNotRead(t, r, r.next)
}

// tellsWhatItCouldNotRead calls a probed function with pointers to nothing.
func tellsWhatItCouldNotRead(t *testing.T, p prober, next func(*testing.T) secret) {
	t.Helper()
	hole, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(hole) })
	bad := &hole[0]
	label, value, tooLong := []byte("LABEL\x00"), []byte{1, 2, 3, 4}, bytes.Repeat([]byte{'x'}, 100)
	known, _ := known(1) // what is allocated, and not yet written to, need not be in memory
	f, fn := target(t, false)
	probed, err := p.probe(f, 0, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = probed.Close() })
	for _, c := range []struct {
		rule   string
		base   *base
		label  *byte
		secret *byte
		size   uint64
		failed uint8
		is     uint32
		want   string
	}{
		{"all is there", known.base, &label[0], &value[0], 4, 0, 4, "LABEL"},
		{"an empty label", known.base, &label[5], &value[0], 4, noLabel, 4, ""},
		{"no label", known.base, bad, &value[0], 4, noLabel, 4, ""},
		{"a label that is too long", known.base, &tooLong[0], &value[0], 4, 0, 4, strings.Repeat("x", 48)},
		{"nothing at the base", (*base)(unsafe.Pointer(bad)), &label[0], &value[0], 4, noRandom, 4, "LABEL"},
		{"no base", nil, &label[0], &value[0], 4, noRandom, 4, "LABEL"},
		{"no secret", known.base, &label[0], bad, 4, noSecret, 4, "LABEL"},
		{"a secret that is too long", known.base, &label[0], &tooLong[0], 1 << 33, 0, 1<<32 - 1, "LABEL"},
	} {
		logSecret(&session{base: c.base}, c.label, c.secret, c.size, 0)
		got := next(t)
		if got.Failed != c.failed || got.Size != c.is || got.Label != padded[[48]byte](c.want) {
			t.Errorf("%s: failed %b, size %d, label %q", c.rule, got.Failed, got.Size, got.Label)
		}
	}
	// The first pointer leads nowhere.
	logSecret((*session)(unsafe.Pointer(bad)), &label[0], &value[0], 4, 0)
	if got := next(t); got.Failed != noRandom || got.Random != [32]byte{} {
		t.Errorf("behind no pointer: failed %b, random %x", got.Failed, got.Random)
	}
}

// TestProgramReadsALabelWithASize: what is behind it does not matter.
func TestProgramReadsALabelWithASize(t *testing.T) {
	r := openRing(t)
	f, fn := target(t, true)
	p, err := r.probe(f, 0, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s, random := known(3)
	text := strings.Repeat("CLIENT_TRAFFIC_SECRET_0", 3)
	for size, want := range map[int]string{0: text[:48], 6: "CLIENT", 48: text[:48], 60: text[:48]} {
		logSecret(s, unsafe.StringData(text), &random[0], 32, uint64(size))
		if got := r.next(t); got.Label != padded[[48]byte](want) || got.LabelSize != uint32(size) || got.Failed != 0 {
			t.Errorf("of %d bytes it is %q of %d, failed %b", size, got.Label, got.LabelSize, got.Failed)
		}
	}
}

// TestProgramReadsALabelThatIsNotInMemory: it is in a file that the process has mapped and not yet looked at, and ends where
// the map does.
func TestProgramReadsALabelThatIsNotInMemory(t *testing.T) {
	const text = "SERVER_HANDSHAKE_TRAFFIC_SECRET"
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte(text+"\x00"), int64(2*os.Getpagesize()-len(text)-1)); err != nil {
		t.Fatal(err)
	}
	r := openRing(t)
	f, fn := target(t, false)
	p, err := r.probe(f, 0, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	// A hole follows the map, so that nothing that comes to be mapped does.
	area, err := unix.Mmap(-1, 0, 3*os.Getpagesize(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(area)
	at := unsafe.Pointer(&area[0])
	if _, err := unix.MmapPtr(int(file.Fd()), 0, at, uintptr(2*os.Getpagesize()), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_FIXED); err != nil {
		t.Fatal(err)
	}
	s, random := known(4)
	logSecret(s, (*byte)(unsafe.Add(at, 2*os.Getpagesize()-len(text)-1)), &random[0], 32, 0)
	if got := r.next(t); got.Label != padded[[48]byte](text) || got.Failed != 0 {
		t.Errorf("the label is %q, failed %b", got.Label, got.Failed)
	}
}

func TestProgramCountsWhatFindsNoRoom(t *testing.T) {
	r := openRing(t)
	f, fn := target(t, false)
	p, err := r.probe(f, 0, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	const calls = 2 * ringSize / 200
	s, random := known(5)
	for range calls {
		logSecret(s, &[]byte("L\x00")[0], &random[0], 32, 0)
	}
	lost, err := lostOf(r.coll)
	if err != nil {
		t.Fatal(err)
	}
	got := uint64(0)
	for ; r.records.AvailableBytes() > 0; got++ {
		r.next(t)
	}
	if got+lost != calls || lost == 0 || got < ringSize/256 {
		t.Errorf("%d of %d were read, and %d lost", got, calls, lost)
	}
}

// TestProgramFindsAFunctionInAPart: the library begins somewhere in its file, as in an APK.
func TestProgramFindsAFunctionInAPart(t *testing.T) {
	r := openRing(t)
	f, fn := target(t, false)
	const base = 0x1000
	fn.Offset -= base
	p, err := r.probe(f, base, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	s, random := known(6)
	logSecret(s, &[]byte("PART\x00")[0], &random[0], 32, 0)
	if got := r.next(t); got.Label != padded[[48]byte]("PART") {
		t.Errorf("the label is %q", got.Label)
	}
}

func TestProgramRefusesWhatCannotBe(t *testing.T) {
	r := openRing(t)
	f, good := target(t, false)
	for _, c := range []struct {
		rule   string
		change func(*tlslib.Function)
		base   int64
		want   string
	}{
		{"another machine", func(fn *tlslib.Function) { fn.Machine = 8 }, 0, "it is for EM_MIPS"},
		{"a register that cannot be read", func(fn *tlslib.Function) { fn.Secret = 21 }, 0, "word 21"},
		{"no register of the secret", func(fn *tlslib.Function) { fn.Secret = tlslib.NoRegister }, 0, "word 255"},
		{"a size that cannot be read", func(fn *tlslib.Function) { fn.LabelSize = 30 }, 0, "word 30"},
		{"no path", func(fn *tlslib.Function) { fn.Path = nil }, 0, "0 steps"},
		{"a long path", func(fn *tlslib.Function) { fn.Path = make([]uint32, 5) }, 0, "5 steps"},
		{"an offset behind the file", func(fn *tlslib.Function) { fn.Offset = 1 << 40 }, 0, "read the instruction"},
		{"an offset that is none", func(fn *tlslib.Function) { fn.Offset = 1 << 63 }, 1, "no offset in a file"},
		{"a base before the file", func(fn *tlslib.Function) {}, -1, "no offset in a file"},
	} {
		fn := good
		c.change(&fn)
		if p, err := r.probe(f, c.base, fn, 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", c.rule, p, err)
		}
	}
	pipe, _, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	if _, err := r.probe(pipe, 0, good, 0); err == nil {
		t.Error("a pipe has no instructions")
	}
}

// TestReaderDoesNotWaitForMemory: nothing more is read of a process whose memory has not come, and nothing at all while too many let it
// wait.
func TestReaderDoesNotWaitForMemory(t *testing.T) {
	var r reader
	read := func() int {
		return r.read(uint32(syscall.Getpid()), uint64(uintptr(unsafe.Pointer(&r))), make([]byte, 4))
	}
	if n := read(); n != 4 {
		t.Errorf("it read %d bytes", n)
	}
	r.begin(uint32(syscall.Getpid()))
	if n := read(); n != 0 {
		t.Errorf("it read %d bytes of a process that lets it wait", n)
	}
	r.stuck = map[uint32]bool{1: true, 2: true, 3: true}
	if n := read(); n != 4 {
		t.Errorf("it read %d bytes while others let it wait", n)
	}
	r.stuck[4] = true
	if n := read(); n != 0 {
		t.Errorf("it read %d bytes while too many let it wait", n)
	}
}
