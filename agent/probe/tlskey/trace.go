// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"droidtap/agent/boottime"
	"droidtap/agent/plan"
	"droidtap/agent/process"
	"droidtap/agent/tlslib"
	"droidtap/agent/uprobe"
)

// traces probes by events of tracefs, where programs cannot read the memory of a process: before 5.5 they have no helper for it, and
// bpf_probe_read gives zeros on processors with PAN. Here the kernel copies, and waits for memory. An event has words only, since
// the kernel warns of one that grows too long for perf (PERF_MAX_TRACE_SIZE), as a string of a hostile process can.
type traces struct {
	fs    *tracefs
	group group
	log   *slog.Logger
	ahead func() int64 // ns by which the clock of the records is ahead of CLOCK_MONOTONIC
	*traceRing

	mu    sync.Mutex // of what follows
	count int        // of the names that were given
}

// openTraces removes what killed agents left, and opens the rings. clock is that of the records.
func openTraces(clock plan.Clock, log *slog.Logger) (_ *traces, err error) {
	t := &traces{log: log, ahead: func() int64 { return 0 }}
	if clock == plan.Boottime {
		t.ahead = func() int64 { return int64(boottime.Now() - boottime.Awake()) }
	}
	if t.group, err = ownGroup(); err != nil {
		return nil, err
	}
	if t.fs, err = openTracefs(); err != nil {
		return nil, fmt.Errorf("open tracefs: %w", uprobe.Explain(err))
	}
	n, err := t.fs.sweep(t.group)
	if err != nil {
		log.Debug("remove the uprobes of agents that are gone", "error", err)
	}
	if n > 0 {
		log.Info("removed uprobes of agents that are gone", "uprobes", n)
	}
	if t.traceRing, err = openTraceRing(t.record, log); err != nil {
		return nil, errors.Join(err, t.fs.Close())
	}
	return t, nil
}

// Close closes the rings. All that probe returned is closed before.
func (t *traces) Close() error { return errors.Join(t.traceRing.Close(), t.fs.Close()) }

// names are those of the words of struct pt_regs (arch/x86/kernel/ptrace.c, regoffset_table; arm64 has x0 to x30).
var names = []string{"r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
	"orig_ax", "ip", "cs", "flags", "sp", "ss"}

// argument is how a register is written in a line for uprobe_events.
func argument(n uint32) string {
	if runtime.GOARCH == "arm64" {
		return fmt.Sprintf("%%x%d", n)
	}
	return "%" + names[n]
}

// fetches returns the arguments of an event, each of which is a word of 8 bytes: of the label, the random and the secret, then the
// secret's size, the label's size if it has one, the label's place, and the pointers on the way to the random.
func (s settings) fetches() []string {
	var all []string
	add := func(of string) { all = append(all, fmt.Sprintf("a%d=%s:x64", len(all), of)) }
	memory := func(pointer string, from uint32, words int) {
		for i := range uint32(words) {
			add(fmt.Sprintf("+%d(%s)", uint64(from)+8*uint64(i), pointer))
		}
	}
	label := s.Label
	if label >= words { // its secrets have one label, which nobody reads here
		label = s.Random
	}
	memory(argument(label), 0, labelWords)
	way := argument(s.Random)
	pointers := []string{way}
	for _, step := range s.Path[:s.Steps-1] {
		way = fmt.Sprintf("+%d(%s)", step, way)
		pointers = append(pointers, way)
	}
	memory(way, s.Path[s.Steps-1], randomWords)
	memory(argument(s.Secret), 0, secretWords)
	add(argument(s.Size))
	add(argument(label))
	if s.LabelSize < words {
		add(argument(s.LabelSize))
	} else {
		add(argument(label))
	}
	for _, p := range pointers {
		add(p)
	}
	return all
}

// Words of 8 bytes of an event.
const (
	labelWords  = 48 / 8
	randomWords = 32 / 8
	secretWords = 64 / 8
	sizeWord    = labelWords + randomWords + secretWords
	pointerWord = sizeWord + 3
)

// traced is an event of a function.
type traced struct {
	id     uint16 // with which each of its records begins
	number uint16 // of the function
	at     []int  // where the words are in a record, in bytes
	sized  bool   // the label has a size
}

func (t *traces) probe(f *os.File, base int64, fn tlslib.Function, number uint16) (_ io.Closer, err error) {
	set, err := settingsOf(fn)
	if err != nil {
		return nil, err
	}
	offset, err := start(f, base, fn)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.count++
	name := fmt.Sprintf("%v/k%d", t.group, t.count)
	t.mu.Unlock()
	// The kernel takes the file that this leads to, and keeps it (kernel/trace/trace_uprobe.c, create_trace_uprobe).
	line := fmt.Sprintf("p:%s /proc/self/fd/%d:%#x %s", name, f.Fd(), offset, strings.Join(set.fetches(), " "))
	err = t.fs.command(line)
	runtime.KeepAlive(f)
	if err != nil {
		return nil, fmt.Errorf("probe the instruction at %#x: %w", offset, uprobe.Explain(err))
	}
	remove := closerFunc(func() error { return t.fs.command("-:" + name) })
	e, err := t.describe(name, len(set.fetches()))
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	e.number, e.sized = number, set.LabelSize < words
	if err := t.add(e); err != nil {
		return nil, errors.Join(err, remove())
	}
	return closerFunc(func() error { return errors.Join(t.remove(e), remove()) }), nil
}

// closerFunc is an io.Closer.
type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// describe reads what the kernel says of an event that has so many words.
func (t *traces) describe(name string, words int) (*traced, error) {
	id, err := os.ReadFile(t.fs.file("events", name, "id"))
	if err != nil {
		return nil, err
	}
	format, err := os.ReadFile(t.fs.file("events", name, "format"))
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(id)), 10, 16)
	if err != nil {
		return nil, fmt.Errorf("the id of event %s: %w", name, err)
	}
	e := &traced{id: uint16(n), at: offsets(string(format), words)}
	if e.at == nil {
		return nil, fmt.Errorf("event %s does not have its %d words", name, words)
	}
	return e, nil
}

// offsets reads a format file: where the words a0, a1 and so on are in a record. nil: not all are there.
func offsets(format string, words int) []int {
	at := make([]int, 0, words)
	for line := range strings.Lines(format) {
		field, rest, ok := strings.Cut(strings.TrimSpace(line), fmt.Sprintf(" a%d;\toffset:", len(at)))
		number, rest, _ := strings.Cut(rest, ";")
		n, err := strconv.ParseUint(number, 10, 15)
		if ok && err == nil && strings.HasPrefix(field, "field:") && strings.HasPrefix(rest, "\tsize:8;") && len(at) < words {
			at = append(at, int(n))
		}
	}
	if len(at) < words {
		return nil
	}
	return at
}

// record makes a record of the ring way of a sample.
func (t *traces) record(e *traced, pid, tid uint32, at uint64, raw []byte) ([]byte, error) {
	word := make([]uint64, len(e.at))
	for i, from := range e.at {
		if from+8 > len(raw) {
			return nil, fmt.Errorf("a record of %d bytes has nothing at %d", len(raw), from)
		}
		word[i] = binary.NativeEndian.Uint64(raw[from:])
	}
	s := secret{
		Time: at + uint64(t.ahead()), PID: pid, TID: tid, UID: uidOf(tid), Number: e.number,
		Size: upTo32(word[sizeWord]), LabelAt: untagged(word[sizeWord+1]), Base: untagged(word[len(word)-1]),
	}
	if s.UID == unknownUID { // a thread ends before its process, as a rule
		s.UID = uidOf(pid)
	}
	if e.sized {
		s.LabelSize = upTo32(word[sizeWord+2])
	}
	copyWords(s.Label[:], word)
	copyWords(s.Secret[:], word[labelWords+randomWords:])
	clear(s.Secret[min(int64(len(s.Secret)), int64(s.Size)):])
	copyWords(s.Random[:], word[labelWords:])
	// What cannot be read is 0. Behind a pointer that cannot be, the words are those of another record.
	for _, pointer := range word[pointerWord:] {
		if pointer == 0 {
			s.Random, s.Base = [32]byte{}, 0
		}
	}
	if s.Random == [32]byte{} {
		s.Failed |= noRandom
	}
	if s.Size > 0 && s.Secret == [64]byte{} {
		s.Failed |= noSecret
	}
	out := make([]byte, secretSize)
	s.put(out)
	return out, nil
}

func copyWords(to []byte, from []uint64) {
	for i := 0; i < len(to); i += 8 {
		binary.NativeEndian.PutUint64(to[i:], from[i/8])
	}
}

func untagged(pointer uint64) uint64 { return pointer & 0x00ffffffffffffff }

func upTo32(n uint64) uint32 { return uint32(min(n, 1<<32-1)) }

// uidOf returns the real uid of a thread, if it is still there.
func uidOf(tid uint32) uint32 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return unknownUID
	}
	uid, ok := process.ParseUID(status)
	if !ok {
		return unknownUID
	}
	return uid
}
