// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/mapped"
	"droidtap/agent/tlslib"
	"droidtap/agent/uprobe"
)

const (
	// mostProbed bounds the functions that are probed at a time. A phone has some ten.
	mostProbed = 512
	// mostSeen bounds what is known of files, and mostRefused what is said of them: any app can have files looked into.
	mostSeen    = 4096
	mostRefused = 64
	// patienceAtStart is how long the look into what runs may keep a capture from its start, and patienceAtEnd how long a process
	// may keep the kernel from taking off a probe. Both go on behind that.
	patienceAtStart = 2 * time.Second
	patienceAtEnd   = 3 * time.Second
	// releaseEvery is how often deleted files are looked for: all processes have to be.
	releaseEvery = 10 * time.Second
)

// system are libraries that many processes will map: they are probed before the first one does.
var system = []string{
	"/apex/*/lib64/*ssl*.so", "/apex/*/lib64/*cronet*.so", "/system/lib64/libssl*.so", "/vendor/lib64/libssl*.so",
	"/lib*/*-linux-gnu/libssl.so*", "/usr/lib*/*-linux-gnu/libssl.so*", "/usr/lib*/*-linux-gnu/libgnutls.so*", "/usr/lib64/libssl.so*", "/usr/lib64/libgnutls.so*",
}

// libraries are the TLS libraries that were found. They may be used by several goroutines at once, but for what finds them.
type libraries struct {
	prober
	log     *slog.Logger
	without func(error)     // says that there are no secrets at all
	watch   *mapped.Watcher // nil: only what the user named counts
	ending  atomic.Bool
	guesses

	// Of the goroutine that looks into files.
	seen     map[identity]bool // that are probed, or cannot be
	refused  int
	released time.Time

	mu     sync.Mutex // of what follows
	of     map[uint16]*function
	number uint16 // of the next function
	closed bool
}

// identity is that of an ELF in a file. A number of an inode is used again.
type identity struct {
	dev, ino, base uint64
	changed        unix.Timespec
}

// library is a file with functions that are probed.
type library struct {
	id   identity
	name string
	file *os.File
}

// function is one that is probed.
type function struct {
	tlslib.Function
	*library
	number uint16
	probe  io.Closer   // nil: not yet
	proven atomic.Bool // the guess where its random is
}

func newLibraries(p prober, memory func(uint32, uint64, []byte) int, log *slog.Logger) *libraries {
	return &libraries{prober: p, log: log, guesses: newGuesses(memory), seen: map[identity]bool{}, of: map[uint16]*function{}}
}

// open probes the libraries that are there, and has others probed as processes map them. What cannot be probed is said.
func (l *libraries) open(paths []string, auto bool) {
	l.run.Go(l.prove)
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
	l.watch = mapped.Watch(mapped.Config{Log: l.log, Found: func(m mapped.Mapping, f *os.File) {
		l.examine(f, m.Base, m.Name, false)
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
		l.refuse(path, err, true)
	}
}

// refuse says why there are no secrets of a library.
func (l *libraries) refuse(path string, why error, asked bool) {
	level := slog.LevelWarn
	if l.refused++; l.refused > mostRefused && !asked {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "no secrets of a library", "path", path, "because", why)
}

// examine looks into a file, in which an ELF begins at base, and probes what is found. It closes the file unless that is probed. asked:
// the user named it.
func (l *libraries) examine(f *os.File, base uint64, name string, asked bool) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is no regular file")
	}
	id := identity{uint64(st.Dev), st.Ino, base, st.Ctim}
	if err != nil || base >= uint64(st.Size) || l.seen[id] || l.ending.Load() {
		if err != nil && asked {
			l.refuse(name, err, asked)
		}
		f.Close()
		return
	}
	size := st.Size - int64(base)
	functions, err := tlslib.Find(endable{io.NewSectionReader(f, int64(base), size), &l.ending}, size)
	if err != nil && (asked || !errors.Is(err, tlslib.ErrNone)) && !l.ending.Load() {
		l.know(id)
		l.refuse(name, err, asked)
	}
	lib, used := &library{id: id, name: name, file: f}, false
	for _, fn := range functions {
		l.know(id)
		switch err := l.add(lib, fn); {
		case errors.Is(err, uprobe.ErrNone):
			l.ending.Store(true)
			l.without(err)
		case err != nil:
			l.refuse(name, err, asked)
		default:
			used = true
			l.log.Info("takes the secrets of a library", "path", name, "library", fn.Library, "found by", fn.Why)
			continue
		}
		break
	}
	if !used {
		f.Close()
	}
}

// endable is a file that ends when nobody wants to know any more what is in it.
type endable struct {
	io.ReaderAt
	ending *atomic.Bool
}

func (e endable) ReadAt(p []byte, off int64) (int, error) {
	if e.ending.Load() {
		return 0, os.ErrClosed
	}
	return e.ReaderAt.ReadAt(p, off)
}

// know keeps in mind what is probed, or cannot be. Files with nothing of TLS in them are looked into again.
func (l *libraries) know(id identity) {
	if len(l.seen) < mostSeen {
		l.seen[id] = true
	}
}

// add probes a function of a library.
func (l *libraries) add(lib *library, fn tlslib.Function) error {
	f := &function{Function: fn, library: lib}
	l.mu.Lock()
	for l.of[l.number] != nil && len(l.of) < mostProbed {
		l.number++
	}
	full := len(l.of) >= mostProbed
	if f.number = l.number; !full {
		l.of[f.number] = f // before its first record comes
		l.number++
	}
	l.mu.Unlock()
	if full {
		return fmt.Errorf("%d functions are probed already", mostProbed)
	}
	p, err := l.probe(lib.file, int64(lib.id.base), fn, f.number)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		delete(l.of, f.number)
		return err
	}
	f.probe = p
	return nil
}

// get returns the function of a number, or nil.
func (l *libraries) get(number uint16) *function {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.of[number]
}

// fixed returns the label of all secrets that a function is handed, or "".
func (l *libraries) fixed(number uint16) string {
	if f := l.get(number); f != nil {
		return f.Fixed
	}
	return ""
}

// release takes the probes off files that were deleted and that no process executes any more: they would take their room until the
// capture ends.
func (l *libraries) release() {
	if time.Since(l.released) < releaseEvery {
		return
	}
	l.released = time.Now()
	deleted := map[uint64]bool{}
	for _, f := range l.functions() {
		var st unix.Stat_t
		if unix.Fstat(int(f.file.Fd()), &st) == nil && st.Nlink == 0 {
			deleted[st.Ino] = true
		}
	}
	if len(deleted) == 0 {
		return
	}
	for ino := range mapped.Executes(deleted) {
		delete(deleted, ino)
	}
	for _, f := range l.functions() {
		if !deleted[f.id.ino] {
			continue
		}
		l.mu.Lock()
		delete(l.of, f.number)
		l.mu.Unlock()
		delete(l.seen, f.id)
		l.log.Info("a library was deleted", "path", f.name)
		if err := f.close(); err != nil {
			l.log.Debug("take a probe off", "path", f.name, "error", err)
		}
	}
}

// functions returns those that are probed.
func (l *libraries) functions() []*function {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Values(l.of), func(a, b *function) int { return cmp.Compare(a.number, b.number) })
}

func (f *function) close() error {
	if f.probe == nil {
		return nil
	}
	err := f.probe.Close()
	f.file.Close() // was only read, and another function of it may have closed it
	return err
}

// String names the libraries for people: four of them.
func (l *libraries) String() string {
	var names []string
	for _, f := range l.functions() {
		if name := fmt.Sprintf("%s (%s)", filepath.Base(f.name), f.Library); !slices.Contains(names, name) {
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
	l.ending.Store(true)
	var err error
	if l.watch != nil {
		err = l.watch.Close()
	}
	l.guesses.end()
	done := make(chan error, 1)
	go func() {
		var errs []error
		for _, f := range slices.Backward(l.functions()) {
			errs = append(errs, f.close())
		}
		done <- errors.Join(errs...)
	}()
	late := time.NewTimer(patienceAtEnd)
	defer late.Stop()
	select {
	case e := <-done:
		return errors.Join(err, e)
	case <-late.C:
		return errors.Join(err, errors.New("take the probes off TLS libraries: the kernel waits for a process"))
	}
}
