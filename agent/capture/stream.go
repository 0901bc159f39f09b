// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// stream is a ring of a source, and what makes blocks of its records.
type stream struct {
	ring
	decode  decode
	look    func()         // before some are decoded that were found by one look; nil: nobody is to know
	settler plugin.Settler // nil: they are complete
}

// decode is plugin.Source's.
type decode func(raw []byte, p *pcapng.Packet) (pcapng.Block, error)

// streamOf is the stream of a source's own ring, which is yet to be opened.
func streamOf(s plugin.Source) *stream {
	of := &stream{decode: s.Decode}
	of.settler, _ = s.(plugin.Settler)
	if l, ok := s.(plugin.Looker); ok {
		of.look = l.Look
	}
	return of
}

// begin has the streams read.
func (c *capture) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.started = true
	for _, r := range c.running {
		for _, s := range r.streams {
			c.readers.Go(func() { c.read(r, s) })
		}
	}
}

// stream has one more ring of a source read, from the start of the capture on.
func (c *capture) stream(r *running, s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.streams = append(r.streams, s)
	if c.started {
		c.readers.Go(func() { c.read(r, s) })
	}
}

// read moves the records of one stream to the writer, by a stage where they have to be settled, and closes it at its end.
func (c *capture) read(r *running, s *stream) {
	send, end := c.send, func() {}
	if s.settler != nil {
		st := newStage(s.settler, c.writer.pool, c.send, c.abort)
		go st.run()
		send, end = st.put, st.end
	}
	t, err := read(s, c.writer.pool, send)
	end()
	if err != nil {
		err = fmt.Errorf("probe %s: %w", r.Name, err)
		c.fail(err)
	}
	err = errors.Join(err, s.Close())
	c.mu.Lock()
	defer c.mu.Unlock()
	r.streams = slices.DeleteFunc(r.streams, func(other *stream) bool { return other == s })
	r.ended = r.ended.plus(t)
	if err != nil {
		r.errs = append(r.errs, err)
	}
}

// drain waits until the readers have read what is left in the rings, and ended.
func (c *capture) drain() error {
	var errs []error
	for _, r := range c.running {
		c.mu.Lock()
		left := slices.Clone(r.streams)
		c.mu.Unlock()
		for _, s := range left {
			// One that is closed was read to its end in this moment.
			if err := s.flush(); err != nil && !errors.Is(err, os.ErrClosed) {
				errs = append(errs, fmt.Errorf("flush a ring of probe %s: %w", r.Name, err), s.Close())
			}
		}
	}
	c.readers.Wait()
	return errors.Join(errs...)
}
