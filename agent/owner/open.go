// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"droidtap/agent/rtnl"
	"droidtap/agent/sockdiag"
)

// background is what a Finder has open.
type background struct {
	log     *slog.Logger
	sockets sockets
	own     *rtnl.Own
	watcher *sockdiag.Watcher // nil where it cannot be had
	ended   chan struct{}     // closed when nothing listens to it any more
}

// Open is called in the network namespace of the capture. What the kernel cannot be asked about is said once, and is no
// error: such packets have no known owner.
//
// The connections that there are become known to the programs before it returns. The ends of sockets are watched from then on, for
// nothing else tells that a port has another owner.
func Open(o Options) (*Finder, error) {
	maps := shared{flows: o.Flows, fragments: o.Fragments, closed: o.Closed}
	f := newFinder(o.Now, nil, maps, nil)
	f.learns = o.Flows != nil
	if f.log = o.Log; f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if err := f.open(maps); err != nil {
		return nil, fmt.Errorf("find the owners of packets: %w", errors.Join(err, f.release()))
	}
	return f, nil
}

func (f *Finder) open(maps shared) (err error) {
	if f.own, err = rtnl.OpenOwn(); err != nil {
		return err
	}
	f.machine = f.own
	if f.watcher, err = sockdiag.Watch(); err != nil {
		f.log.Warn(fmt.Sprintf("%v: a UDP port that another app takes over may be told as the first one's for a minute", err))
	}
	f.kernel = &f.sockets
	if err := f.sockets.open(); errors.Is(err, sockdiag.ErrNoDiag) {
		f.log.Warn(fmt.Sprintf("%v: of packets whose socket the programs do not see no owner is known, and a UDP port that another app takes over may be told as the first one's for a minute", err))
	} else if err != nil {
		return err
	}
	if f.sockets.conn != nil {
		f.seed(f.sockets.conn, maps)
	}
	if f.watcher != nil {
		f.ended = make(chan struct{})
		go f.follow(maps)
	}
	return nil
}

// seed tells the programs whose the connections are that there are already. They know better what they have learnt since.
func (f *Finder) seed(conn *sockdiag.Conn, maps shared) {
	if maps.flows == nil {
		return
	}
	// Not later than the list: one that is closed meanwhile was learnt before.
	now := f.now()
	var failed error
	err := conn.Connections(func(s sockdiag.Socket) {
		flow := sockdiag.Flow{Protocol: s.Protocol, Local: s.Local, Remote: s.Remote}
		err := maps.learn(flow, learnt{uid: s.UID, cgroup: s.Cgroup, seen: now}, true)
		if failed == nil {
			failed = err
		}
	})
	if err = errors.Join(err, failed); err != nil {
		f.log.Warn(fmt.Sprintf("learn the connections that there are: %v", err))
	}
}

// follow notes which UDP sockets and TCP listeners are closed.
func (f *Finder) follow(maps shared) {
	defer close(f.ended)
	for {
		sockets, lost, err := f.watcher.Next()
		if errors.Is(err, os.ErrClosed) {
			return
		}
		failed := err
		if err == nil {
			failed = f.forget(maps, sockets, lost)
		}
		f.mu.Lock()
		f.fail(failed)
		f.mu.Unlock()
		if err != nil {
			return // the next one would not be better
		}
	}
}

// forget notes that sockets are closed now; lost, that others may be. The programs first: they do not wait.
func (f *Finder) forget(maps shared, sockets []sockdiag.Socket, lost bool) error {
	var failed error
	now := f.now()
	for _, s := range sockets {
		if s.Protocol != unix.IPPROTO_TCP {
			failed = errors.Join(failed, maps.close(s, now))
		}
	}
	if lost {
		failed = errors.Join(failed, maps.forgetUDP())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range sockets {
		of := &f.closes
		if s.Protocol == unix.IPPROTO_TCP {
			of = &f.listeners
		}
		of.add(now, s.Local.Port(), false)
	}
	if lost {
		f.closes.add(now, 0, true)
		f.listeners.add(now, 0, true)
	}
	f.closed.Store(int64(f.closes.next))
	return failed
}

// Close ends what it does in the background. Nobody may ask any more.
func (f *Finder) Close() error {
	err := f.release()
	f.report(f.log)
	return err
}

func (f *Finder) release() error {
	var errs []error
	if f.watcher != nil {
		errs = append(errs, f.watcher.Close())
		if f.ended != nil {
			<-f.ended
		}
	}
	errs = append(errs, f.sockets.close())
	if f.own != nil {
		errs = append(errs, f.own.Close())
	}
	return errors.Join(errs...)
}
