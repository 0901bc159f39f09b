// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"io"
	"sync"

	"droidtap/agent/hook"
	"droidtap/agent/plan"
	"droidtap/android"
)

// places are those that TCX holds on interfaces while the programs for them are verified: see hook.Hold.
type places struct {
	taking sync.WaitGroup
	held   map[place]hook.Attachment // not to be looked at before all are taken
}

// place is a point of an interface as it was when it was taken.
type place struct {
	index int
	name  string
	at    point
}

// Hold begins to take the places at which Attach will put its programs, if they are TCX's.
func (s *source) Hold(first plan.Hook) io.Closer {
	s.places = &places{held: map[place]hook.Attachment{}}
	if first == plan.TCX {
		s.places.taking.Go(func() { s.places.take(s.chosen, s.points) })
	}
	return s.places
}

// take takes the points of interfaces. What cannot be had is Attach's to tell of.
func (p *places) take(of []android.Interface, points func(android.Interface) []point) {
	for _, ifc := range of {
		for _, at := range points(ifc) {
			if held, err := hook.Hold(ifc, at.direction()); err == nil {
				p.held[place{ifc.Index, ifc.Name, at}] = held
			}
		}
	}
}

// at hands over a place, nil if it is not held.
func (p *places) at(ifc android.Interface, at point) hook.Attachment {
	if p == nil {
		return nil
	}
	p.taking.Wait()
	key := place{ifc.Index, ifc.Name, at}
	held := p.held[key]
	delete(p.held, key)
	return held
}

// Close gives back those that nobody wanted.
func (p *places) Close() error {
	p.taking.Wait()
	var errs []error
	for _, held := range p.held {
		errs = append(errs, held.Close())
	}
	p.held = nil
	return errors.Join(errs...)
}
