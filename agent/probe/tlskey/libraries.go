// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"droidtap/agent/mapped"
	"droidtap/agent/tlslib"
)

// mostProbed bounds the functions that are probed. A phone has some ten.
const mostProbed = 512

// system are libraries that many processes will map: they are probed before the first one does.
var system = []string{
	"/apex/*/lib64/*ssl*.so", "/apex/*/lib64/*cronet*.so", "/system/lib64/libssl*.so", "/vendor/lib64/libssl*.so",
	"/lib*/*-linux-gnu/libssl.so*", "/usr/lib*/*-linux-gnu/libssl.so*", "/usr/lib*/*-linux-gnu/libgnutls.so*", "/usr/lib64/libssl.so*", "/usr/lib64/libgnutls.so*",
}

// libraries are the TLS libraries that were found. They may be used by several goroutines at once.
type libraries struct {
	prober prober
	log    *slog.Logger
	again  func(secret)                                   // takes a secret once more, with the right random
	memory func(pid uint32, at uint64, to []byte) (n int) // reads a process's
	watch  io.Closer
	ended  chan struct{}
	run    sync.WaitGroup

	mu     sync.Mutex
	seen   map[identity]bool // files that were looked into
	probed []*probed         // by number
	full   bool              // that there are too many was said
	closed bool
	guesses
}

// identity is a file's.
type identity struct{ dev, ino uint64 }

// probed is a function that is probed.
type probed struct {
	tlslib.Function
	name  string // of its file
	file  *os.File
	base  int64
	probe io.Closer
}

func newLibraries(p prober, again func(secret), memory func(uint32, uint64, []byte) int, log *slog.Logger) *libraries {
	return &libraries{prober: p, log: log, again: again, memory: memory, ended: make(chan struct{}), seen: map[identity]bool{}}
}

// open probes the libraries that are there, and has others probed as processes map them. What cannot be probed is said.
func (l *libraries) open(paths []string, auto bool) {
	for _, path := range paths {
		l.open1(path, true)
	}
	if !auto {
		return
	}
	var err error
	if l.watch, err = mapped.Watch(l.log, l.mapped); err != nil {
		l.log.Warn("libraries of processes that start later are not found", "because", err)
	}
	for _, pattern := range system {
		paths, _ := filepath.Glob(pattern) // the patterns are well-formed
		for _, path := range paths {
			l.open1(path, false)
		}
	}
	running, err := mapped.Running()
	if err != nil {
		l.log.Warn("libraries of running processes are not found", "because", err)
	}
	slices.SortStableFunc(running, func(a, b mapped.File) int { return cmp.Compare(rank(a.Name), rank(b.Name)) })
	likely := 0
	for likely < len(running) && rank(running[likely].Name) == 0 {
		l.mapped(running[likely])
		likely++
	}
	l.run.Go(func() {
		for _, m := range running[likely:] {
			select {
			case <-l.ended:
				return
			default:
				l.mapped(m)
			}
		}
	})
}

// rank is 0 for a file that is looked into before the capture begins, 1 for one that is afterwards.
func rank(name string) int {
	for _, word := range []string{"ssl", "tls", "cronet", "chrom", "webview", "flutter"} {
		if strings.Contains(strings.ToLower(filepath.Base(name)), word) {
			return 0
		}
	}
	return 1
}

// open1 looks into a file by its path.
func (l *libraries) open1(path string, asked bool) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err == nil {
		l.examine(f, path, []int64{0}, asked)
		return
	}
	if asked {
		l.log.Warn("no secrets of a library", "path", path, "because", err)
	}
}

// mapped looks into a file that a process executes.
func (l *libraries) mapped(m mapped.File) {
	f, err := m.Open()
	if err != nil {
		l.log.Debug("look into what a process executes", "path", m.Name, "process", m.PID, "error", err)
		return
	}
	l.examine(f, m.Name, m.Bases, false)
}

// examine looks into an open file, once, and probes what is found. asked: the user named it.
func (l *libraries) examine(f *os.File, name string, bases []int64, asked bool) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is no regular file")
	}
	if err == nil && l.first(identity{uint64(st.Dev), st.Ino}) {
		used := false
		for _, base := range bases {
			used = l.search(f, st.Size, base, name, asked) || used
		}
		if used {
			return // it stays open
		}
	}
	if err != nil && asked {
		l.log.Warn("no secrets of a library", "path", name, "because", err)
	}
	f.Close()
}

// first tells whether a file is looked into for the first time.
func (l *libraries) first(id identity) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.seen[id] {
		return false
	}
	l.seen[id] = true
	return true
}

// search probes the functions of the library that begins at base.
func (l *libraries) search(f *os.File, size, base int64, name string, asked bool) (used bool) {
	functions, err := tlslib.Find(io.NewSectionReader(f, base, size-base), size-base)
	switch {
	case errors.Is(err, tlslib.ErrNone) && !asked:
		return false
	case err != nil:
		l.log.Warn("no secrets of a library", "path", name, "because", err)
	}
	for _, fn := range functions {
		if err := l.add(f, base, name, fn); err != nil {
			l.log.Warn("no secrets of a library", "path", name, "because", err)
			continue
		}
		used = true
		l.log.Info("takes the secrets of a library", "path", name, "library", fn.Library, "found by", fn.Why)
	}
	return used
}

// add probes a function.
func (l *libraries) add(f *os.File, base int64, name string, fn tlslib.Function) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return os.ErrClosed
	}
	if len(l.probed) == mostProbed {
		return fmt.Errorf("%d functions are probed already", mostProbed)
	}
	p, err := l.prober.probe(f, base, fn, uint16(len(l.probed)))
	if err != nil {
		return err
	}
	l.probed = append(l.probed, &probed{Function: fn, name: name, file: f, base: base, probe: p})
	return nil
}

// fixed returns the label of all secrets that a function is handed, or "".
func (l *libraries) fixed(number uint16) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int(number) >= len(l.probed) {
		return ""
	}
	return l.probed[number].Fixed
}

// String names the libraries for people: four of them.
func (l *libraries) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, p := range l.probed {
		if name := fmt.Sprintf("%s (%s)", filepath.Base(p.name), p.Library); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	switch n := len(names); {
	case n == 0:
		return "no library"
	case n > 4:
		return fmt.Sprintf("%s and %d others", strings.Join(names[:4], ", "), n-4)
	}
	return strings.Join(names, ", ")
}

// Close ends the watch and all probes.
func (l *libraries) Close() error {
	close(l.ended)
	var errs []error
	if l.watch != nil {
		errs = append(errs, l.watch.Close())
	}
	l.run.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, p := range slices.Backward(l.probed) {
		errs = append(errs, p.probe.Close())
		p.file.Close() // another of its functions may have closed it
	}
	return errors.Join(errs...)
}
