// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/scripts/nettest"
)

func openTracesFor(t testing.TB) *traces {
	t.Helper()
	nettest.Require(t)
	tr, err := openTraces(plan.Boottime, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// nextOf waits for a secret.
func nextOf(t *testing.T, r plugin.Ring) secret {
	t.Helper()
	raw, err := r.Next(nil, time.Now().Add(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	s, err := new(reader).parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func noneOf(t *testing.T, r plugin.Ring) {
	t.Helper()
	if raw, err := r.Next(nil, time.Now()); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("there is a secret: %x, %v", raw, err)
	}
}

func TestTraceTellsASecret(t *testing.T) {
	tr := openTracesFor(t)
	for _, sized := range []bool{false, true} {
		f, fn := target(t, sized)
		p, err := tr.probe(f, 0, fn, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{32, 48, 64} {
			s, random := known(byte(size))
			label, value := []byte("CLIENT_RANDOM\x00and more"), bytes.Repeat([]byte{7}, 64)
			before := boottime.Now()
			logSecret(s, &label[0], &value[0], uint64(size), 6)
			got := nextOf(t, tr)
			want := secret{
				Time: got.Time, TID: got.TID, LabelAt: uint64(uintptr(unsafe.Pointer(&label[0]))), Base: uint64(uintptr(unsafe.Pointer(s.base))),
				PID: uint32(os.Getpid()), UID: uint32(os.Getuid()), Size: uint32(size),
				Label: padded[[48]byte]("CLIENT_RANDOM"), Random: random, Secret: padded[[64]byte](string(value[:size])),
			}
			if sized {
				want.LabelSize, want.Label = 6, padded[[48]byte]("CLIENT")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("want -, got +\n%s", diff)
			}
			// The two clocks are read one after the other.
			if at := time.Duration(got.Time); at < before-time.Millisecond || at > boottime.Now()+time.Millisecond {
				t.Errorf("it is of %v, and now it is %v", at, before)
			}
			noneOf(t, tr)
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		s, _ := known(1)
		logSecret(s, &[]byte("AFTER\x00")[0], &[]byte{1}[0], 1, 0)
		noneOf(t, tr)
	}
	if list := uprobes(t, tr.fs); strings.Contains(list, tr.group.String()) {
		t.Errorf("left behind:\n%s", list)
	}
}

func uprobes(t *testing.T, fs *tracefs) string {
	t.Helper()
	list, err := os.ReadFile(fs.file("uprobe_events"))
	if err != nil {
		t.Fatal(err)
	}
	return string(list)
}

// TestTraceTellsWhatItCouldNotRead: behind a pointer that leads nowhere, what lies where its words would be is of the record before.
func TestTraceTellsWhatItCouldNotRead(t *testing.T) {
	tr := openTracesFor(t)
	var last secret
	tellsWhatItCouldNotRead(t, tr, func(t *testing.T) secret {
		last = nextOf(t, tr)
		return last
	})
	if last.Base != 0 {
		t.Errorf("behind no pointer: base %#x", last.Base)
	}
}

// TestTraceReadsWhatIsNotInMemory: the kernel waits for it.
func TestTraceReadsWhatIsNotInMemory(t *testing.T) {
	const text = "SERVER_HANDSHAKE_TRAFFIC_SECRET"
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text + "\x00"); err != nil {
		t.Fatal(err)
	}
	tr := openTracesFor(t)
	f, fn := target(t, false)
	p, err := tr.probe(f, 0, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	mapped, err := unix.Mmap(int(file.Fd()), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	s, random := known(4)
	logSecret(s, &mapped[0], &random[0], 32, 0)
	if got := nextOf(t, tr); got.Label != padded[[48]byte](text) || got.Failed != 0 {
		t.Errorf("the label is %q, failed %b", got.Label, got.Failed)
	}
}

// TestTraceGoesOnWhereItsRingsAreRenewed: as behind a sleep. The descriptor through which the file was named is closed.
func TestTraceGoesOnWhereItsRingsAreRenewed(t *testing.T) {
	tr := openTracesFor(t)
	f, fn := target(t, false)
	p, err := tr.probe(f, 0, fn, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for round := range byte(3) {
		s, random := known(round)
		logSecret(s, &[]byte("BEFORE\x00")[0], &random[0], 32, 0)
		// Behind a sleep each processor has a new ring, for which this is called.
		if err := tr.rings.Lead(tr.equip); err != nil {
			t.Fatal(err)
		}
		logSecret(s, &[]byte("BEHIND\x00")[0], &random[0], 32, 0)
		var got []string // in any order: the two may be in the rings of two processors
		for range 2 {
			s := nextOf(t, tr)
			got = append(got, string(bytes.TrimRight(s.Label[:], "\x00")))
			if s.Random != random {
				t.Errorf("in round %d there is one of %x", round, s.Random)
			}
		}
		slices.Sort(got)
		if want := []string{"BEFORE", "BEHIND"}; !slices.Equal(got, want) {
			t.Errorf("in round %d there are %q", round, got)
		}
		noneOf(t, tr)
	}
	if err := tr.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Next(nil, time.Time{}); !errors.Is(err, plugin.ErrFlushed) {
		t.Errorf("behind Flush: %v", err)
	}
}

func TestTraceRemovesWhatKilledAgentsLeft(t *testing.T) {
	nettest.Require(t)
	if os.Getenv("TRACED") != "" { // the agent that is killed
		tr := openTracesFor(t)
		f, fn := target(t, false)
		if _, err := tr.probe(f, 0, fn, 0); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(tr.group.String() + "\n")
		io.Copy(io.Discard, os.Stdin) // until the kill
		return
	}
	victim := exec.Command("/proc/self/exe", "-test.run", "^"+t.Name()+"$")
	victim.Env = append(os.Environ(), "TRACED=1")
	victim.Stderr = os.Stderr
	stdin, err := victim.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 64)
	n, err := stdout.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSpace(string(line[:n]))
	first := openTracesFor(t)
	if list := uprobes(t, first.fs); !strings.Contains(list, name) {
		t.Errorf("the event of an agent that runs is gone:\n%s", list)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait() // it was killed
	if list := uprobes(t, first.fs); !strings.Contains(list, name) {
		t.Fatalf("nothing was left behind by %q:\n%s", name, list)
	}
	if list := uprobes(t, openTracesFor(t).fs); strings.Contains(list, name) {
		t.Errorf("left behind:\n%s", list)
	}
}

func TestGroup(t *testing.T) {
	if g, ok := parseGroup("droidtap_1_22_333"); !ok || g != (group{1, 22, 333}) {
		t.Errorf("%v, %v", g, ok)
	}
	for _, name := range []string{"", "droidtap", "droidtap_1_2", "droidtap_1_2_3_4", "droidtap_1_02_3", "droidtap_1_-2_3", "uprobes", "droidtap_1_2_x"} {
		if g, ok := parseGroup(name); ok {
			t.Errorf("%q is ours: %v", name, g)
		}
	}
}
