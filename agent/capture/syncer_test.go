// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// slow is a file whose Sync takes until it is told to end.
type slow struct {
	unnamed
	begun chan struct{}
	end   chan error
}

func (s *slow) Sync() error { s.begun <- struct{}{}; return <-s.end }

// What is written while a sync runs is synced by one more, and nobody waits.
func TestSyncer(t *testing.T) {
	var said strings.Builder
	s := newSyncer(0, slog.New(slog.NewTextHandler(&said, nil)))
	go s.run()
	f := &slow{begun: make(chan struct{}), end: make(chan error)}
	s.wrote(unnamed{}) // a pipe
	for range 3 {
		s.wrote(f)
		<-f.begun
		for range 5 {
			s.wrote(f)
		}
		f.end <- os.ErrClosed
		<-f.begun
		f.end <- syscall.EIO
	}
	for _, err := range []error{nil, syscall.EIO} { // another failure than the first one
		s.wrote(f)
		<-f.begun
		f.end <- err
	}
	s.wrote(f)
	<-f.begun // so that what came before has been logged
	s.end()
	f.end <- nil
	if n := strings.Count(said.String(), "may not survive a power cut"); n != 2 {
		t.Errorf("said %d times:\n%s", n, &said)
	}
}

// A file that was ended while a sync ran keeps no room from the next one, to which perhaps nothing more is written for long.
func TestSyncerTakesTheLatestFile(t *testing.T) {
	s := newSyncer(0, slog.New(slog.DiscardHandler))
	go s.run()
	ended := &slow{begun: make(chan struct{}), end: make(chan error)}
	next := &slow{begun: make(chan struct{}), end: make(chan error)}
	s.wrote(ended)
	<-ended.begun
	s.wrote(ended)
	s.wrote(next)
	ended.end <- nil
	select {
	case <-next.begun:
		next.end <- nil
	case <-ended.begun:
		t.Error("the file that was ended is synced again, and the one that is written never")
		ended.end <- nil
	}
	s.end()
}

// What comes soon after a sync began waits for the rest of the time, and what comes later for none. It is the file of then that is synced.
func TestSyncerWaits(t *testing.T) {
	s := newSyncer(time.Minute, slog.New(slog.DiscardHandler))
	clock := start
	asked, over := make(chan time.Duration), make(chan time.Time)
	s.now = func() time.Time { return clock }
	s.after = func(d time.Duration) <-chan time.Time { asked <- d; return over }
	first := &slow{begun: make(chan struct{}, 1), end: make(chan error)}
	next := &slow{begun: make(chan struct{}, 1), end: make(chan error)}
	go s.run()
	s.wrote(first)
	if d := <-asked; d > 0 {
		t.Errorf("the first sync waits %v", d)
	}
	over <- time.Time{}
	<-first.begun
	clock = clock.Add(10 * time.Second)
	first.end <- nil
	s.wrote(first)
	if d := <-asked; d != 50*time.Second {
		t.Errorf("the second sync waits %v", d)
	}
	s.wrote(next)
	clock = clock.Add(50 * time.Second)
	over <- time.Time{}
	<-next.begun
	clock = clock.Add(time.Minute)
	next.end <- nil
	s.wrote(next)
	if d := <-asked; d != 0 {
		t.Errorf("the third sync waits %v", d)
	}
	s.end()
	if len(first.begun) != 0 {
		t.Error("the file that was ended is synced again")
	}
}
