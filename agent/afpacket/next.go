// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// cursor is how far the ring has been read.
type cursor struct {
	block   int    // number of the block that is read or comes next
	held    bool   // it is ours, and will be until the last packet of it has been used
	packets uint32 // left in it
	at      uint32 // where the next of them is
	// flushing says that ErrFlushed is due after this many blocks more.
	flushing bool
	due      int
}

// Next returns the next packet, and waits for it until the deadline; without one (the zero time) for ever. What the
// previous call returned is not valid any more.
//
// The error is os.ErrDeadlineExceeded when the deadline is over and there is no packet, ErrFlushed after Flush, or
// os.ErrClosed after Close. An interface that goes down or is deleted is no error: packets come again when it is up.
func (s *Socket) Next(deadline time.Time) (Packet, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	c := &s.cursor
	for !s.closed.Load() {
		if c.packets > 0 {
			return s.read()
		}
		if c.held {
			s.pass()
		}
		if s.flush.Swap(false) {
			c.flushing, c.due = true, s.filled()
		}
		if c.flushing && c.due == 0 {
			c.flushing = false
			return Packet{}, ErrFlushed
		}
		// What the kernel has not handed over is complete where it writes no more, and filled has seen packets in it.
		if b := s.ring.block(c.block); b.ours() || c.flushing && s.settled.Load() {
			c.held, c.packets, c.at = true, b.packets(), b.first()
			continue
		}
		if err := s.wait(deadline); err != nil {
			return Packet{}, err
		}
	}
	return Packet{}, os.ErrClosed
}

// read returns the packet at the cursor.
func (s *Socket) read() (Packet, error) {
	c := &s.cursor
	p, next, err := s.ring.block(c.block).packet(c.at)
	if err != nil {
		return Packet{}, fmt.Errorf("read the ring of %s: %w", s.name, err)
	}
	c.packets--
	c.at = next
	return p, nil
}

// pass gives the block at the cursor back, all packets of which have been used.
func (s *Socket) pass() {
	c := &s.cursor
	s.ring.block(c.block).giveBack()
	c.held = false
	c.block = (c.block + 1) % s.ring.blocks
	if c.due > 0 {
		c.due--
	}
}

// filled returns how many blocks, from the cursor on, have packets in them. The last one may be the kernel's still.
//
// A block that is the kernel's, and then is seen without packets, held none at that moment: the kernel counts a packet
// before it hands over the block, and a block of ours stays as it is.
func (s *Socket) filled() int {
	for n := range s.ring.blocks {
		b := s.ring.block(s.cursor.block + n)
		switch {
		case b.ours():
		case b.packets() > 0:
			return n + 1
		default:
			return n
		}
	}
	return s.ring.blocks
}

// wait waits for a block, a signal, or the deadline.
func (s *Socket) wait(deadline time.Time) error {
	var timeout *unix.Timespec
	if !deadline.IsZero() {
		left := unix.NsecToTimespec(max(0, int64(time.Until(deadline))))
		timeout = &left
	}
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.wake), Events: unix.POLLIN}}
	n, err := unix.Ppoll(fds, timeout, nil)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("wait for packets of %s: %w", s.name, err)
	case n == 0:
		return os.ErrDeadlineExceeded
	}
	if fds[1].Revents != 0 {
		if _, err := unix.Read(s.wake, make([]byte, 8)); err != nil && !errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("wait for packets of %s: %w", s.name, err)
		}
	}
	if fds[0].Revents&^unix.POLLIN != 0 {
		return s.failure()
	}
	return nil
}

// failure returns the error of the socket, and clears it. ENETDOWN says that the interface went down; when it is up
// again the kernel hooks the socket again by itself (net/packet/af_packet.c packet_notifier).
func (s *Socket) failure() error {
	errno, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	if err != nil && !errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("receive packets of %s: %w", s.name, err)
	}
	return nil
}
