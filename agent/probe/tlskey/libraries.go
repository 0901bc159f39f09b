// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/mapped"
	"droidtap/agent/tlslib"
)

// mostProbed bounds the functions that are probed. A phone has some ten.
// mostSeen bounds what is known of files.
const (
	mostProbed = 512
	mostSeen   = 4096
)

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
	watch  *mapped.Watcher                                // nil: only what the user named counts

	mu     sync.Mutex
	seen   map[identity]bool // that are probed, or cannot be
	probed []*probed         // by number
	closed bool
	guesses
}

// identity is that of an ELF in a file.
type identity struct {
	dev, ino uint64
	base     int64
}

// probed is a function that is probed.
type probed struct {
	tlslib.Function
	name  string   // of its file
	file  *os.File // nil: it is closed
	base  int64
	probe io.Closer
}

func (p *probed) close() error {
	if p.file == nil {
		return nil
	}
	err := p.probe.Close()
	p.file.Close() // was only read, and another function in it may have closed it
	p.file = nil
	return err
}

func newLibraries(p prober, again func(secret), memory func(uint32, uint64, []byte) int, log *slog.Logger) *libraries {
	return &libraries{prober: p, log: log, again: again, memory: memory, seen: map[identity]bool{}}
}

// patienceAtStart is how long the look into what runs may keep a capture from its start. It goes on behind that.
const patienceAtStart = 2 * time.Second

// open probes the libraries that are there, and has others probed as processes map them. What cannot be probed is said.
func (l *libraries) open(paths []string, auto bool) {
	for _, path := range paths {
		l.path(path, true)
	}
	if !auto {
		return
	}
	for _, pattern := range system {
		paths, _ := filepath.Glob(pattern) // the patterns are well-formed
		for _, path := range paths {
			l.path(path, false)
		}
	}
	l.spare("/proc/self/exe")
	l.watch = mapped.Watch(mapped.Config{Log: l.log, Found: func(m mapped.Mapping, f *os.File) {
		l.examine(f, int64(m.Base), m.Name, false)
		l.release()
	}})
	late := time.NewTimer(patienceAtStart)
	defer late.Stop()
	select {
	case <-l.watch.Ready():
	case <-late.C:
		l.log.Info("the capture begins before all that runs was looked into for TLS libraries")
	}
}

// path looks into a file by its path.
func (l *libraries) path(path string, asked bool) {
	// A pipe has no writer, and a device may do anything: neither is waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err == nil {
		l.examine(f, 0, path, asked)
		return
	}
	if asked {
		l.refuse(path, err)
	}
}

// refuse says why there are no secrets of a library.
func (l *libraries) refuse(path string, why error) {
	l.log.Warn("no secrets of a library", "path", path, "because", why)
}

// examine looks into a file, in which an ELF begins at base, and probes what is found. It closes the file unless that is probed. asked:
// the user named it.
func (l *libraries) examine(f *os.File, base int64, name string, asked bool) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is no regular file")
	}
	id := identity{uint64(st.Dev), st.Ino, base}
	if err == nil && l.known(id) {
		f.Close()
		return
	}
	var functions []tlslib.Function
	if err == nil {
		functions, err = tlslib.Find(io.NewSectionReader(f, base, st.Size-base), st.Size-base)
	}
	switch {
	case errors.Is(err, tlslib.ErrNone) && !asked:
	case err != nil:
		l.know(id)
		l.refuse(name, err)
	}
	used := false
	for _, fn := range functions {
		l.know(id)
		if err := l.add(f, base, name, fn); err != nil {
			l.refuse(name, err)
			continue
		}
		used = true
		l.log.Info("takes the secrets of a library", "path", name, "library", fn.Library, "found by", fn.Why)
	}
	if !used {
		f.Close()
	}
}

// known tells whether a file is probed, or cannot be. Those with nothing of TLS in them are not kept.
func (l *libraries) known(id identity) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[id]
}

func (l *libraries) know(id identity) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.seen) < mostSeen {
		l.seen[id] = true
	}
}

// spare has a program passed over: this one has all the strings by which libraries are known.
func (l *libraries) spare(path string) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil {
		l.know(identity{uint64(st.Dev), st.Ino, 0})
	}
}

// release takes the probes off files that were deleted and that no process executes any more: they would take their room until the
// capture ends.
func (l *libraries) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.probed {
		var st unix.Stat_t
		if p.file == nil || unix.Fstat(int(p.file.Fd()), &st) != nil || st.Nlink > 0 || mapped.Executes(st.Ino) {
			continue
		}
		l.log.Info("a library was deleted", "path", p.name)
		if err := p.close(); err != nil {
			l.log.Debug("take a probe off", "path", p.name, "error", err)
		}
	}
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
	var errs []error
	if l.watch != nil {
		errs = append(errs, l.watch.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, p := range slices.Backward(l.probed) {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}
