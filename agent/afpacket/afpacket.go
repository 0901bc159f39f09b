// SPDX-License-Identifier: Apache-2.0

// Package afpacket receives the packets of one interface by a packet socket (packet(7)) with an eBPF filter and a ring
// in memory that the kernel shares with us, for interfaces where no program can be attached to tc.
package afpacket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrFlushed is returned by Next, once after Flush, when all packets that were there have been handed out.
var ErrFlushed = errors.New("packet ring flushed")

// Options say what to open.
type Options struct {
	Ifindex int           // of the interface, in the network namespace of the calling thread
	Name    string        // of the interface, for errors
	Buffer  int           // bytes for the ring, rounded up to whole blocks, at least two
	Snaplen int           // bytes: the most that the filter keeps of a packet, 1 to 262144
	Retire  time.Duration // how long a packet may wait in a block that does not fill up; whole milliseconds, at least one
}

// maxSnaplen is libpcap's MAXIMUM_SNAPLEN.
const maxSnaplen = 262144

// check returns an error for what the kernel would take for something else: the interface 0 is all of them, and the
// time 0 one of its own choice.
func (o Options) check() error {
	switch {
	case o.Ifindex <= 0:
		return fmt.Errorf("no interface has the index %d", o.Ifindex)
	case o.Snaplen < 1 || o.Snaplen > maxSnaplen:
		return fmt.Errorf("snaplen %d is not from 1 to %d", o.Snaplen, maxSnaplen)
	case o.Retire < time.Millisecond || o.Retire%time.Millisecond != 0:
		return fmt.Errorf("%v is not a number of milliseconds", o.Retire)
	}
	return nil
}

// Socket is a packet socket. Next belongs to one goroutine, the other methods may be called from any.
type Socket struct {
	name string
	fd   int
	wake int // an eventfd, which ends the wait of Next
	ring ring
	slot *ebpf.Map // holds the filter: see attach

	reading sync.Mutex // held by Next; Close waits for it before it unmaps the ring
	cursor  cursor

	flush   atomic.Bool // asked for, not yet seen by Next
	settled atomic.Bool // the kernel writes no more packets into the ring
	closed  atomic.Bool

	mu      sync.Mutex // of what follows, and of the file descriptors outside of Next
	ifindex int
	stopped bool
	dropped uint64
}

// Open opens a packet socket on an interface, which may be down, and returns it when packets that the filter takes
// come into its ring. filter is of the type ebpf.SocketFilter and returns how many bytes of the packet to keep, 0 for
// none of it; it may be closed afterwards. The interface does not become promiscuous.
//
// The error wraps os.ErrPermission without CAP_NET_RAW (EPERM) or by the policy of SELinux (EACCES), unix.EAFNOSUPPORT
// on a kernel without packet sockets (CONFIG_PACKET), unix.ENODEV where there is no such interface, and unix.ENOMEM
// where there is no room for the ring.
func Open(o Options, filter *ebpf.Program) (*Socket, error) {
	s := &Socket{name: o.Name, ifindex: o.Ifindex, fd: -1, wake: -1}
	err := o.check()
	if err == nil {
		err = s.open(o, filter)
	}
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", o.Name, errors.Join(err, s.release()))
	}
	return s, nil
}

// Try opens a packet socket with a filter and the smallest ring, and closes it again. It is bound to no interface, so that
// nothing comes to it. The error is as Open's.
func Try(filter *ebpf.Program) error {
	s := &Socket{fd: -1, wake: -1}
	err := errors.Join(s.prepare(Options{Snaplen: 1, Retire: time.Second}, filter), s.release())
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	return nil
}

// open binds last: no packet comes before the filter is there (net/packet/af_packet.c packet_create registers a socket
// without a protocol nowhere).
func (s *Socket) open(o Options, filter *ebpf.Program) error {
	if err := s.prepare(o, filter); err != nil {
		return err
	}
	return s.bind(unix.ETH_P_ALL)
}

func (s *Socket) bind(protocol uint16) error {
	to := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: s.ifindex} // big endian
	if err := unix.Bind(s.fd, to); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	return nil
}

// prepare makes all but the binding.
func (s *Socket) prepare(o Options, filter *ebpf.Program) error {
	var err error
	if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if s.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if s.ring, err = newRing(s.fd, o); err != nil {
		return err
	}
	s.slot, err = attach(s.fd, filter)
	return err
}

// do runs f unless the socket is closed, and keeps Close away meanwhile.
func (s *Socket) do(what string, f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := os.ErrClosed
	if !s.closed.Load() {
		err = f()
	}
	if err != nil {
		return fmt.Errorf("%s the packet socket on %s: %w", what, s.name, err)
	}
	return nil
}

// Update puts another filter in the place of the one that runs. Each packet is seen by the one or by the other. The
// error wraps os.ErrClosed after Stop.
func (s *Socket) Update(filter *ebpf.Program) error {
	return s.do("change the filter of", func() error {
		if s.stopped {
			return os.ErrClosed
		}
		return s.slot.Put(uint32(0), filter)
	})
}

// Stop lets no more packets into the ring; those in it remain to be read. It may be called again.
func (s *Socket) Stop() error {
	return s.do("stop", func() error {
		if s.stopped {
			return nil
		}
		if err := s.slot.Delete(uint32(0)); err != nil {
			return err
		}
		s.stopped = true
		// To be bound anew waits until the kernel is done with each packet that the filter took (net/packet/af_packet.c
		// packet_do_bind, synchronize_net). Which protocol it is does not matter: there is no filter that takes one. Of
		// an interface that is gone the kernel has taken off the socket before.
		err := s.bind(unix.ETH_P_LOOPBACK)
		if errors.Is(err, unix.ENODEV) {
			err = nil
		}
		s.settled.Store(err == nil)
		return err
	})
}

// Flush lets Next hand out the packets that are in the ring now, and then return ErrFlushed. It does not wait. Some
// may lie in the block that the kernel fills. After Stop they are handed out, too; before it they become visible only
// when their time (Options.Retire) is over, and Next waits for them.
func (s *Socket) Flush() error {
	return s.do("flush", func() error {
		s.flush.Store(true)
		return s.signal()
	})
}

// Bound tells whether the socket is on its interface still. One that was deleted never comes back to it, not even under
// the same index (net/packet/af_packet.c packet_notifier, NETDEV_UNREGISTER).
func (s *Socket) Bound() (bound bool, err error) {
	err = s.do("look at", func() error {
		address, err := unix.Getsockname(s.fd)
		if err != nil {
			return err
		}
		ll, ok := address.(*unix.SockaddrLinklayer)
		bound = ok && ll.Ifindex > 0
		return nil
	})
	return bound, err
}

// signal wakes Next.
func (s *Socket) signal() error {
	if _, err := unix.Write(s.wake, binary.NativeEndian.AppendUint64(nil, 1)); err != nil {
		return fmt.Errorf("wake the reader: %w", err)
	}
	return nil
}

// Dropped returns how many packets passed the filter and found no room in the ring, since Open. With an error it is
// what was known before.
func (s *Socket) Dropped() (dropped uint64, err error) {
	err = s.do("read the statistics of", func() error {
		// Reading resets them (packet_getsockopt).
		stats, err := unix.GetsockoptTpacketStatsV3(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			s.dropped += uint64(stats.Drops)
		}
		dropped = s.dropped
		return err
	})
	return dropped, err
}

// Close ends the wait of Next, if somebody is in it, and frees the ring, with the packet that was handed out last. It
// may be called again.
func (s *Socket) Close() error {
	s.mu.Lock()
	if s.closed.Swap(true) {
		s.mu.Unlock()
		return nil
	}
	woken := s.signal()
	s.mu.Unlock()
	s.reading.Lock()
	defer s.reading.Unlock()
	if err := errors.Join(woken, s.release()); err != nil {
		return fmt.Errorf("close the packet socket on %s: %w", s.name, err)
	}
	return nil
}

// release frees what open has opened, in reverse order. The slot outlives the socket: when it goes, its filter does.
func (s *Socket) release() error {
	var errs []error
	if s.ring.memory != nil {
		errs = append(errs, unix.Munmap(s.ring.memory))
		s.ring.memory = nil
	}
	for _, fd := range []int{s.wake, s.fd} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if s.slot != nil {
		errs = append(errs, s.slot.Close())
	}
	return errors.Join(errs...)
}
