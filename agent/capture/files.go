// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"droidtap/agent/boottime"
	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// files are what a writer writes to, one after the other. Its goroutine owns them.
type files struct {
	open    func() (plugin.File, error)
	rotator plugin.Rotator                                      // nil: one file for all
	counts  func() []pcapng.Statistics                          // so far, for the end of a file
	timer   func(time.Duration) (<-chan struct{}, func() error) // see bootTimer
	log     *slog.Logger

	file    plugin.File               // nil: the next packet begins one
	path    string                    // of file, or of the one before
	opened  int                       // how many were
	packets uint64                    // in file
	kept    plugin.Filling            // with which the rotator would keep file
	began   time.Time                 // file's time, for its statistics
	before  map[int]pcapng.Statistics // what was counted before file, by interface
	over    <-chan struct{}           // file's time is; nil: it has none, or late is set
	late    bool                      // file's time was seen to be over
	stop    func() error              // the timer behind over

	closing chan plugin.File // to be closed while the writer goes on
	closed  chan error       // that all are; with what failed
}

// aheadBytes and aheadPackets are how much more a file may have when its rotator is asked again, if that would keep it then.
const (
	aheadBytes   = 64 << 10
	aheadPackets = 512
)

// mostClosing is how many files may wait until they are on the disk before the writer waits, too.
const mostClosing = 4

func newFiles(open func() (plugin.File, error), rotator plugin.Rotator, log *slog.Logger) *files {
	return &files{
		open: open, rotator: rotator, log: log,
		counts:  func() []pcapng.Statistics { return nil },
		timer:   bootTimer,
		before:  map[int]pcapng.Statistics{},
		closing: make(chan plugin.File, mostClosing),
		closed:  make(chan error, 1),
	}
}

// bootTimer returns what is closed after d of the boot clock, and what frees it.
func bootTimer(d time.Duration) (<-chan struct{}, func() error) {
	t, err := boottime.NewTimer(d)
	if err != nil {
		slog.Warn("a file stays open beyond its time for as long as the phone sleeps", "because", err)
		over := make(chan struct{})
		t := time.AfterFunc(d, func() { close(over) })
		return over, func() error { t.Stop(); return nil }
	}
	return t.C, t.Stop
}

// begin opens the next file.
func (f *files) begin() error {
	file, err := f.open()
	if err != nil {
		return err
	}
	f.file, f.path, f.packets, f.kept, f.began, f.late = file, file.Name(), 0, plugin.Filling{}, time.Now(), false
	if f.opened++; f.opened > 1 {
		f.log.Info("next file", "path", file.Name())
	}
	return nil
}

// room tells whether the file, which has that many bytes, is not full for certain: so it is before most packets.
func (f *files) room(size int64) bool {
	return f.rotator == nil || size <= f.kept.Bytes && f.packets <= f.kept.Packets && !f.late
}

// full tells what is to be done before a packet is written to the file, which has that many bytes. There is a rotator.
func (f *files) full(size int64) plugin.Verdict {
	if f.packets == 0 {
		return plugin.Keep // an empty file would only make room for another one
	}
	v := f.rotator.Full(plugin.Filling{Bytes: size, Packets: f.packets, Over: f.late})
	if v != plugin.Keep {
		return v
	}
	ahead := plugin.Filling{Bytes: size + aheadBytes, Packets: f.packets + aheadPackets}
	if f.rotator.Full(ahead) == plugin.Keep {
		f.kept = ahead
	}
	return v
}

// look sees whether the file's time is over.
func (f *files) look() {
	select {
	case <-f.over:
		f.over, f.late = nil, true
	default:
	}
}

// several tells whether another file can follow the one that is open: none does behind a FIFO.
func (f *files) several() bool {
	_, onDisk := f.file.(plugin.Syncer)
	return f.rotator != nil && onDisk
}

// count counts a packet in the file, whose time begins with the first one.
func (f *files) count() {
	if f.packets++; f.packets == 1 && f.rotator != nil {
		f.setTimer()
	}
}

func (f *files) setTimer() {
	if d := f.rotator.Lasts(); d > 0 {
		f.over, f.stop = f.timer(d)
	}
}

// since makes what was counted in all what was counted since the file began.
func (f *files) since(s *pcapng.Statistics) {
	b := f.before[s.Interface]
	s.Received -= min(b.Received, s.Received)
	s.Accepted -= min(b.Accepted, s.Accepted)
	s.Dropped -= min(b.Dropped, s.Dropped)
	if s.Start != 0 {
		s.Start = f.began.UnixNano()
	}
}

// end has the file closed in the background.
func (f *files) end() {
	if f.stop != nil {
		if err := f.stop(); err != nil {
			f.log.Warn(err.Error())
		}
	}
	f.over, f.stop = nil, nil
	if f.file != nil {
		f.closing <- f.file
		f.file = nil
	}
}

// wait returns when all files are closed. There is none after it.
func (f *files) wait() error {
	close(f.closing)
	return <-f.closed
}

func (f *files) closeAll() {
	var last error // said at the end, if no other file follows
	for file := range f.closing {
		if last != nil {
			f.log.Warn(last.Error())
		}
		if last = file.Close(); last != nil {
			last = fmt.Errorf("close %s: %w", file.Name(), last)
		}
	}
	f.closed <- last
}

// syncer has what is written survive a power cut, a little later and without holding up the writer.
type syncer struct {
	every time.Duration // from the start of a sync to the next, at least
	dirty chan plugin.Syncer
	ended chan struct{}
	log   *slog.Logger
	after func(time.Duration) <-chan time.Time
	now   func() time.Time
}

func newSyncer(every time.Duration, log *slog.Logger) *syncer {
	return &syncer{
		every: every, log: log, after: time.After, now: time.Now,
		dirty: make(chan plugin.Syncer, 1), ended: make(chan struct{}),
	}
}

// wrote says that there is more in a file. One that waits for its turn gives way: either it is the same, or it is being closed,
// and on the disk thereby. It is called from one goroutine only.
func (s *syncer) wrote(f plugin.File) {
	syncs, ok := f.(plugin.Syncer)
	if !ok {
		return
	}
	select {
	case <-s.dirty:
	default:
	}
	s.dirty <- syncs
}

// run ends by end. It waits for no time while there is nothing to sync.
func (s *syncer) run() {
	var began time.Time // the last sync
	failed := false
	for {
		select {
		case <-s.ended:
			return
		case f := <-s.dirty:
			select {
			case <-s.ended:
				return
			case <-s.after(s.every - s.now().Sub(began)):
			}
			select {
			case f = <-s.dirty:
			default: // it is the latest one
			}
			began = s.now()
			// One that was closed meanwhile is on the disk.
			err := f.Sync()
			switch {
			case err == nil:
				failed = false
			case errors.Is(err, os.ErrClosed), failed: // nothing new
			default:
				failed = true
				s.log.Warn("what was captured may not survive a power cut", "because", err)
			}
		}
	}
}

func (s *syncer) end() { close(s.ended) }
