// SPDX-License-Identifier: Apache-2.0

// Package tlskey is the probe that takes the secrets of TLS connections where the processes' libraries derive them, and writes
// them into the file ahead of the packets that they decrypt.
package tlskey

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/urfave/cli/v2"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
	"droidtap/agent/sockdiag"
)

func init() {
	plugin.RegisterProbe(plugin.Probe{
		Name:     "tlskey",
		Usage:    "secrets of TLS connections",
		Flags:    flags(),
		Optional: true,
		Word:     word(),
		New:      fromFlags,
	})
}

// lead is how long packets wait for the secrets that they need: a process derives those from a packet that was captured before
// it came to the process. A timer may be some milliseconds late, and it is to be no more than 20 in all.
const lead = 16 * time.Millisecond

// source is the probe configured for one capture.
type source struct {
	options
	connections *connections
	libraries   atomic.Pointer[libraries] // nil: none can be probed
	keys        *keyLog                   // nil: nobody asked for one
	log         *slog.Logger
	reader      reader
	warned      atomic.Bool

	writing sync.Mutex             // of the key log
	lost    func() (uint64, error) // records that were lost in the kernel

	refused atomic.Uint64 // secrets of others than those that are captured
	broken  atomic.Uint64 // that could not be read
}

func fromFlags(c *cli.Context) (plugin.Source, error) {
	o, asked, err := parse(c)
	if err != nil || !asked {
		return nil, err
	}
	return &source{options: o}, nil
}

// Prepare makes the ring one for secrets.
func (s *source) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	return prepare(spec, t)
}

// Attach finds the libraries, now and as they come. That it cannot is said, and no error: the packets are captured all the same.
func (s *source) Attach(coll *ebpf.Collection, t plugin.Target) (io.Closer, error) {
	s.log = t.Log
	s.connections = newConnections(t.Emit)
	if s.keyLog != "" {
		var err error
		if s.keys, err = openKeyLog(s.keyLog, t.Log); err != nil {
			return nil, err
		}
	}
	a := &attached{ended: make(chan struct{})}
	if err := s.whose.open(t.Log); err != nil {
		return a, s.without(err)
	}
	a.closers = append(a.closers, s.whose)
	a.run.Go(func() { s.whose.follow(a.ended) })
	if err := s.before(); err != nil {
		t.Log.Info("which TLS connections began before the capture is not known", "because", err)
	}
	p, lost, err := s.open(coll, t)
	if err != nil {
		return a, s.without(err)
	}
	s.lost = lost
	l := newLibraries(p, s.reader.read, t.Log)
	l.again = func(r secret) { s.write(l, r) }
	l.without = func(err error) { _ = s.without(err) }
	a.closers = append(a.closers, l)
	s.libraries.Store(l)
	l.open(s.options.libraries, s.auto)
	return a, nil
}

// attached is what Attach opened.
type attached struct {
	ended   chan struct{}
	run     sync.WaitGroup
	closers []io.Closer
}

func (a *attached) Close() error {
	close(a.ended)
	a.run.Wait()
	var errs []error
	for _, c := range slices.Backward(a.closers) {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// without says that there will be no secrets.
func (s *source) without(err error) error {
	s.log.Warn("no TLS secrets are written, packets are", "because", err)
	return nil
}

// before notes which connections there are already: nothing will decrypt them.
func (s *source) before() error {
	err := sockdiag.Sockets(func(k sockdiag.Socket) {
		if k.Remote.Port() != 0 {
			s.connections.began(k.Local, k.Remote, k.Protocol)
		}
	})
	if errors.Is(err, sockdiag.ErrNoDiag) {
		return nil // of one protocol
	}
	return err
}

// Follow looks for the handshakes in the packets.
func (s *source) Follow(p *pcapng.Packet, link pcapng.LinkType) {
	r, hello, early := s.connections.follow(p, link == pcapng.Ethernet)
	switch {
	case early && !s.warned.Swap(true):
		s.log.Warn("a TLS connection began before the capture: nothing decrypts its packets; begin it anew while capturing")
	case hello:
		if l := s.libraries.Load(); l != nil {
			l.hello(r)
		}
	}
}

// Lead is how long packets wait.
func (s *source) Lead() time.Duration { return lead }

// Decode takes the secret that a record is, which is written by itself.
func (s *source) Decode(raw []byte, _ *pcapng.Packet) (pcapng.Block, error) {
	r, err := s.reader.parse(raw)
	if err != nil {
		return nil, err
	}
	s.take(r)
	return nil, nil
}

// take writes a secret, if it is one that is wanted.
func (s *source) take(r secret) {
	if !s.whose.admits(int(r.PID), r.UID) {
		s.refused.Add(1)
		return
	}
	l := s.libraries.Load()
	l.guess(r)
	s.write(l, r)
}

// write writes a secret, ahead of the packets that wait.
func (s *source) write(l *libraries, r secret) {
	label, err := r.check(l.fixed(r.Number))
	if err != nil {
		if s.broken.Add(1) == 1 {
			s.log.Warn("a TLS secret could not be read", "process", r.PID, "because", err)
		}
		return
	}
	if label == "RSA" { // names no connection
		return
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	line := appendLine(nil, label, r.Random[:], r.Secret[:r.Size])
	if s.connections.add(r.Random, line) && s.keys != nil {
		s.keys.write(line)
	}
}

// check returns the label of a record that is whole: fixed, unless that is empty. A process may call its secret anything: it is not to
// make other lines of it.
func (r *secret) check(fixed string) (string, error) {
	label, _, _ := bytes.Cut(r.Label[:], []byte{0})
	if fixed != "" {
		label = []byte(fixed)
	}
	failed := r.Failed
	if fixed != "" {
		failed &^= noLabel
	}
	switch {
	case failed != 0:
		return "", fmt.Errorf("the kernel could not read the process's memory (%d)", failed)
	case len(label) == 0:
		return "", errors.New("its label is empty")
	case !isLabel(string(label)):
		return "", fmt.Errorf("its label is %q", label)
	case r.Size == 0 || int(r.Size) > len(r.Secret):
		return "", fmt.Errorf("it has %d bytes", r.Size)
	}
	return string(label), nil
}

// Counts tells at the end what became of the handshakes.
func (s *source) Counts(*ebpf.Collection) (plugin.Counts, error) {
	l := s.libraries.Load()
	if l == nil {
		return plugin.Counts{}, nil
	}
	lost, err := s.lost()
	return plugin.Counts{Notes: s.notes(l, s.connections.count(), lost)}, err
}

// notes are the lines of the summary.
func (s *source) notes(from *libraries, t tally, lost uint64) []string {
	notes := []string{fmt.Sprintf("%d TLS secrets of %d connections from %s; %d of %d handshakes over TCP that were captured have theirs",
		t.lines, t.keyed, from, t.decrypted, t.handshakes)}
	add := func(n uint64, format string) {
		if n > 0 {
			notes = append(notes, fmt.Sprintf(format, n))
		}
	}
	add(t.early, "%d TLS connections began before the capture: nothing decrypts them")
	add(t.late, "%d TLS secrets came late: they stand behind packets that need them")
	add(s.broken.Load(), "%d TLS secrets could not be read")
	add(lost, "%d TLS secrets were lost: they came faster than they could be read")
	add(t.excess, "%d TLS secrets were not written: their connections had too many")
	add(s.refused.Load(), "%d TLS secrets of others were left out")
	return notes
}

// End closes the key log: no more secrets come.
func (s *source) End() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.keys == nil {
		return nil
	}
	err := s.keys.close()
	s.keys = nil
	return err
}
