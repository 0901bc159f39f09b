// SPDX-License-Identifier: Apache-2.0

// Package apps knows which user ids are which apps, follows their installation, and makes of --uid, --app and their
// opposites what the programs filter by.
package apps

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"droidtap/android"
)

// List is the path of Android's list of packages.
const List = "/data/system/packages.list"

// Book knows apps. It may be used by several goroutines at once.
type Book struct {
	path    string
	log     *slog.Logger
	proc    string // where processes are
	now     atomic.Pointer[page]
	changes chan struct{}
	said    string        // of lines that were skipped, belongs to who reads
	watch   *os.File      // inotify, nil where nothing is watched
	ended   chan struct{} // closed when nobody reads the watch any more

	closing sync.Once
	closed  error
}

// page is the list as it was read last. It does not change.
type page struct {
	packages []android.Package   // sorted by name
	names    map[uint32][]string // by app id, all of them, sorted
	short    map[uint32][]string // by app id: what Names returns
}

// Open reads the list at path, and watches it. A list that is not there is no error: it may come, if its folder is there. Nor
// is one that cannot be read, nor that it cannot be watched: that is logged. It is an error where path is no file's.
func Open(path string, log *slog.Logger) (*Book, error) {
	b := &Book{path: path, log: log, proc: "/proc", changes: make(chan struct{}, 1), ended: make(chan struct{})}
	if s, err := os.Stat(path); err == nil && !s.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: errNoFile}
	}
	// Watched first: what changes in between is read twice and not missed.
	if err := b.follow(); err != nil {
		log.Warn("apps that are installed or removed from now on are not noticed", "because", err)
	}
	if err := b.read(); err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("the names of apps are not known", "because", err)
	}
	select {
	case <-b.changes: // the first list is none
	default:
	}
	if b.watch == nil {
		close(b.ended)
		return b, nil
	}
	go b.hear()
	return b, nil
}

var errNoFile = errors.New("it is no file")

// read takes the list as it is now in place of the one that was read before, which it keeps where there is none now: Android
// puts another file in its place, and others may write it anew.
func (b *Book) read() error {
	p, skipped, err := load(b.path)
	if err != nil {
		return err
	}
	if skipped != "" && skipped != b.said {
		b.log.Warn(skipped)
	}
	b.said = skipped
	if old := b.now.Load(); old != nil && slices.Equal(old.packages, p.packages) {
		return nil
	}
	b.now.Store(p)
	select {
	case b.changes <- struct{}{}:
	default: // one that nobody has heard of yet
	}
	return nil
}

// load reads a list. skipped is what there is to say of lines that are none.
func load(path string) (_ *page, skipped string, err error) {
	// O_NONBLOCK: a FIFO that has taken the list's place is not waited for.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if s, err := f.Stat(); err != nil || !s.Mode().IsRegular() {
		return nil, "", cmp.Or(err, error(&os.PathError{Op: "read", Path: path, Err: errNoFile}))
	}
	list, err := android.ParsePackages(f)
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", path, err)
	}
	if list.Skipped > 0 {
		skipped = fmt.Sprintf("%d lines of %s are no package's, the first: %v", list.Skipped, path, list.First)
	}
	if len(list.List) == 0 {
		return nil, "", fmt.Errorf("read %s: no package in it", path)
	}
	slices.SortFunc(list.List, func(x, y android.Package) int { return cmp.Compare(x.Name, y.Name) })
	return newPage(list.List), skipped, nil
}

// most is how many names Names returns.
const most = 4

func newPage(sorted []android.Package) *page {
	p := &page{packages: sorted, names: map[uint32][]string{}, short: map[uint32][]string{}}
	for _, one := range sorted {
		p.names[one.UID] = append(p.names[one.UID], one.Name)
	}
	for id := range android.FirstApp {
		if name := android.Name(id); name != "" {
			p.short[id] = []string{name}
		}
	}
	for id, names := range p.names {
		p.short[id] = shorten(names)
		if sandbox, ok := android.Sandbox(id); ok {
			p.short[sandbox] = p.short[id]
		}
	}
	return p
}

// shorten returns at most four names, and "+N" for N others.
func shorten(names []string) []string {
	if len(names) <= most {
		return slices.Clip(names)
	}
	return append(slices.Clip(names[:most]), fmt.Sprintf("+%d", len(names)-most))
}

// Names returns the packages of a user id, sorted: several where they share it, of which it has four, and "+N" for N others.
// Of an app's SDK sandbox it returns the app's, and of what is below 10000 and no package's Android's name, as "dns". There
// are none of an isolated process, of an app that is not installed, and where no list was found. The result must not be changed.
func (b *Book) Names(uid uint32) []string {
	p := b.now.Load()
	if p == nil {
		return nil
	}
	return p.short[android.AppID(uid)]
}

// Changes has something to read from after each change of what Names and Rules return: one for several that nobody has heard
// of. It is never closed.
func (b *Book) Changes() <-chan struct{} { return b.changes }

// Close ends the watch. Names stay as they are. It may be called again.
func (b *Book) Close() error {
	b.closing.Do(func() {
		if b.watch != nil {
			b.closed = b.watch.Close()
		}
		<-b.ended
	})
	if b.closed != nil {
		return fmt.Errorf("end the watch of %s: %w", b.path, b.closed)
	}
	return nil
}
