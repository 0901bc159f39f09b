// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// Of a record's head (include/uapi/linux/bpf.h), which is a multiple of its size long.
const (
	headSize  = unix.BPF_RINGBUF_HDR_SZ // bytes
	busy      = unix.BPF_RINGBUF_BUSY_BIT
	discarded = unix.BPF_RINGBUF_DISCARD_BIT
)

// lag is how far the position that the kernel sees stays behind ours between two looks at the ring: then no record is
// the first one to it, and none wakes us. Any number of bytes does that is less than the shortest record.
const lag = headSize

// ringBuffer reads a BPF_MAP_TYPE_RINGBUF. cilium/ebpf's reader is told of every record that is there when it asks, so
// it cannot wait for many; and it cannot tell the kernel that it sleeps.
//
// The programs submit with the kernel's own rule: a record wakes us if we have read all before it (kernel/bpf/ringbuf.c,
// bpf_ringbuf_commit). They force it from wakeup bytes on. So while nothing comes we wait without an end, and the first
// record ends that; while records come we look every latency, or when wakeup bytes wait. No record is missed: the kernel
// makes it visible before it looks how far we are, and we say how far we are before we look for it.
type ringBuffer struct {
	file    *os.File // the map
	conn    syscall.RawConn
	wakeup  uint64 // bytes; 0: each record is wanted at once
	latency time.Duration
	now     func() time.Time
	flushed atomic.Bool

	mu       sync.Mutex // of what follows; Close waits for it before it unmaps
	consumer []byte     // a page that begins with our position
	producer []byte     // a page that begins with the kernel's, and the ring twice, so that no record is in two pieces
	pos      uint64     // of the next record
	recent   bool       // a record came since the last wait
	told     bool       // errEmpty was returned since the last record
}

// openRingBuffer opens a ring buffer, which may have no other reader. wakeup and latency are as in openRing.
func openRingBuffer(m *ebpf.Map, wakeup int, latency time.Duration) (_ *ringBuffer, err error) {
	r := &ringBuffer{wakeup: uint64(wakeup), latency: latency, now: time.Now}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the ring buffer: %w", err), r.release())
		}
	}()
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// The runtime's poller takes descriptors that do not block, and waits for edges (EPOLLET): what lies in the ring
	// does not end a wait, only what the kernel wakes us for does.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	r.file = os.NewFile(uintptr(fd), events)
	if err := r.file.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if r.conn, err = r.file.SyscallConn(); err != nil {
		return nil, err
	}
	page, size := os.Getpagesize(), int(m.MaxEntries())
	if r.consumer, err = unix.Mmap(fd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map its reader's page: %w", err)
	}
	if r.producer, err = unix.Mmap(fd, int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map its %d bytes: %w", size, err)
	}
	r.pos = atomic.LoadUint64(position(r.consumer))
	return r, nil
}

// position is the one that a page begins with, in bytes since the ring was made.
func position(page []byte) *uint64 { return (*uint64)(unsafe.Pointer(&page[0])) }

func (r *ringBuffer) next(buf []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.producer != nil {
		// Before the look: what came before flush is not left behind.
		flushed := r.flushed.Load()
		if raw := r.take(buf); raw != nil {
			r.told, r.recent = false, true
			return raw, nil
		}
		if flushed {
			return nil, plugin.ErrFlushed
		}
		if !r.told {
			r.told = true
			return nil, errEmpty
		}
		if err := r.wait(); err != nil {
			return nil, err
		}
	}
	return nil, os.ErrClosed
}

// take returns the next record, in buf if it fits, or nil if there is none.
func (r *ringBuffer) take(buf []byte) []byte {
	data := r.producer[os.Getpagesize():]
	mask := uint64(len(data)/2 - 1)
	for r.pos != atomic.LoadUint64(position(r.producer)) {
		at := r.pos & mask
		head := atomic.LoadUint32((*uint32)(unsafe.Pointer(&data[at])))
		for head&busy != 0 { // a program is writing it, and cannot be interrupted
			head = atomic.LoadUint32((*uint32)(unsafe.Pointer(&data[at])))
		}
		size := int(head &^ discarded)
		record := data[at+headSize:][:size]
		if head&discarded == 0 {
			buf = append(buf[:0], record...)
		}
		r.pos += headSize + (uint64(size)+headSize-1)&^(headSize-1)
		if r.wakeup == 0 {
			atomic.StoreUint64(position(r.consumer), r.pos)
		} else {
			atomic.StoreUint64(position(r.consumer), r.pos-lag)
		}
		if head&discarded == 0 {
			return buf
		}
	}
	return nil
}

// wait waits until the ring is worth a look.
func (r *ringBuffer) wait() error {
	enough, until := r.patience()
	if until.IsZero() {
		atomic.StoreUint64(position(r.consumer), r.pos)
	}
	if err := r.file.SetReadDeadline(until); err != nil {
		return err
	}
	err := r.conn.Read(func(uintptr) bool {
		return r.flushed.Load() || atomic.LoadUint64(position(r.producer))-r.pos >= enough
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// patience returns for how many bytes to wait, and until when; the zero time: without an end.
func (r *ringBuffer) patience() (enough uint64, until time.Time) {
	if r.wakeup == 0 || !r.recent {
		return 1, time.Time{}
	}
	r.recent = false
	// The kernel counts the lag, too.
	return max(r.wakeup, lag+1) - lag, r.now().Add(r.latency)
}

func (r *ringBuffer) flush() error {
	r.flushed.Store(true)
	return r.file.SetReadDeadline(time.Unix(1, 0)) // after that of a wait that has not seen flushed
}

func (r *ringBuffer) ordered() bool { return true }

// Close ends a wait of next.
func (r *ringBuffer) Close() error {
	err := r.file.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(err, r.unmap())
}

func (r *ringBuffer) unmap() error {
	var errs []error
	for _, m := range []*[]byte{&r.producer, &r.consumer} {
		if *m != nil {
			errs = append(errs, unix.Munmap(*m))
			*m = nil
		}
	}
	return errors.Join(errs...)
}

// release frees what an openRingBuffer that fails has opened.
func (r *ringBuffer) release() error {
	err := r.unmap()
	if r.file != nil {
		err = errors.Join(err, r.file.Close())
	}
	return err
}
