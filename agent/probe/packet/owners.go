// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/apps"
	"droidtap/agent/owner"
	"droidtap/agent/process"
)

// owners knows who may own packets. What it holds is open from the attach until nobody settles packets any more.
type owners struct {
	*owning
	ports     *ports
	finder    finder          // nil: the kernel cannot be asked
	processes processes       // nil: nobody asks for them, or they are not to be told
	book      book            // nil: it cannot be read
	uids      *ebpf.Map       // of the programs; nil: they filter by none
	filled    map[uint32]bool // what uids holds
	verdicts  *ebpf.Map       // what the programs remember of uids
	known     verdicts        // what was written there last
	view      atomic.Pointer[view]
	now       func() time.Time
	log       *slog.Logger
	said      map[string]bool // warnings
	opened    []func() error  // what closes it
}

// What owners asks.
type (
	finder interface {
		Find(owner.Question) owner.Answer
		Inode(q owner.Question, uid uint32) uint32
		Closes() int
	}
	processes interface {
		Android() bool
		OfCgroup(id uint64) (process.Process, bool)
		OfInode(inode uint32) []process.Process
	}
	book interface {
		Names(uid uint32) []string
		Rules(apps.Selection) (apps.Rules, []string)
		Changes() <-chan struct{}
	}
)

// openOwners is called in the network namespace of the capture, before anything is attached. kernel tells the time of the
// programs. What cannot be had is an error where packets are to be left out by it; else they only lack it in their comments.
func openOwners(o *owning, p *ports, shared map[string]*ebpf.Map, kernel func() int64, log *slog.Logger) (_ *owners, err error) {
	s := &owners{owning: o, ports: p, now: time.Now, log: log, said: map[string]bool{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	without := func(asked bool, what string, err error) error {
		if err = fmt.Errorf("%s: %w", what, err); asked {
			return err
		}
		log.Info(err.Error() + ": the comments do without")
		return nil
	}
	f, err := owner.Open(owner.Options{
		Flows: shared["shared_flows"], Fragments: shared["shared_fragments"], Closed: shared["shared_closed"], Now: kernel, Log: log,
	})
	if err == nil {
		s.finder = f
		s.opened = append(s.opened, f.Close)
	} else if err = without(o.filtering(), "find the owners of packets", err); err != nil {
		return nil, err
	}
	if o.namesProcesses() {
		t, err := process.Open(process.Options{Log: log})
		if err == nil {
			s.processes = t
			s.opened = append(s.opened, t.Close)
		} else if err = without(o.byProcess(), "find processes", err); err != nil {
			return nil, err
		}
	}
	b, err := apps.Open(o.packages, log)
	if err == nil {
		s.book = b
		s.opened = append(s.opened, b.Close)
	} else if err = without(!o.whose.All() || o.listed, "read which apps there are", err); err != nil {
		return nil, err
	}
	if _, missing := os.Stat(o.packages); missing != nil && o.listed && len(o.whose.Apps)+len(o.whose.NotApps) == 0 { // the book's Rules says it of those
		log.Warn("no app is known by its name", "because", missing)
	}
	if o.byOwner() {
		s.uids, s.verdicts, s.filled = shared["uids"], shared["verdicts"], map[uint32]bool{}
	}
	return s, s.follow()
}

// follow makes the programs filter by what the book says now.
func (s *owners) follow() error {
	rules := apps.Rules{Others: s.whose.Others()}
	if s.book != nil {
		var warnings []string
		rules, warnings = s.book.Rules(s.whose)
		for _, w := range warnings {
			if !s.said[w] {
				s.said[w] = true
				s.log.Warn(w)
			}
		}
	}
	err := s.fill(rules)
	before := s.view.Swap(&view{rules})
	if s.byOwner() && before != nil && !maps.Equal(before.Of, rules.Of) {
		s.log.Info(fmt.Sprintf("packets are filtered by %d user and app ids from now on", len(rules.Of)))
	}
	return err
}

// fill has the programs filter by rules, and forget what they remember of those before.
func (s *owners) fill(rules apps.Rules) error {
	if s.uids == nil {
		return nil
	}
	err := s.put(rules)
	s.known.Generation = (s.known.Generation + 2) % (1 << 32)
	if e := s.verdicts.Put(uint32(0), &s.known); e != nil {
		err = errors.Join(err, fmt.Errorf("have the programs forget the user ids from before: %w", e))
	}
	return err
}

// put puts rules into the programs' map of uids. What is wanted comes before what is not any more goes.
func (s *owners) put(rules apps.Rules) error {
	for uid, pass := range rules.Of {
		if was, there := s.filled[uid]; there && was == pass {
			continue
		}
		value := uint8(0)
		if pass {
			value = 1
		}
		if err := s.uids.Put(uid, value); err != nil {
			return fmt.Errorf("have the programs filter by user id %d: %w", uid&^apps.AppID, err)
		}
		s.filled[uid] = pass
	}
	for uid := range s.filled {
		if _, stays := rules.Of[uid]; stays {
			continue
		}
		if err := s.uids.Delete(uid); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("have the programs filter by user id %d no more: %w", uid&^apps.AppID, err)
		}
		delete(s.filled, uid)
	}
	return nil
}

// changes has something to read from after each change of the apps that there are.
func (s *owners) changes() <-chan struct{} {
	if s.book == nil {
		return nil
	}
	return s.book.Changes()
}

// followApps has the programs follow the apps as they are installed and removed.
func (k *keeper) followApps() {
	for {
		select {
		case <-k.owners.changes():
			k.locked(k.owners.follow)
		case <-k.ended:
			return
		}
	}
}

// Close is called when nobody settles packets any more.
func (s *owners) Close() error {
	var errs []error
	for _, close := range slices.Backward(s.opened) {
		errs = append(errs, close())
	}
	s.opened = nil
	return errors.Join(errs...)
}

// first returns the lowest uid that is wanted, of the phone's first user where it is any user's.
func first(rules apps.Rules) (uid uint32, ok bool) {
	for key, pass := range rules.Of {
		if of := key &^ apps.AppID; pass && (!ok || of < uid) {
			uid, ok = of, true
		}
	}
	return uid, ok
}
