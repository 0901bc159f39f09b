// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"slices"
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

// anew is how many bytes of the ring are mapped behind its end once more: more than a record takes (MAX_CAPLEN of bpf/src/agent.h).
// All of them would count twice as memory of the process.
const anew = 1 << 19

// ringBuffer reads a BPF_MAP_TYPE_RINGBUF. cilium/ebpf's reader is told of every record that is there when it asks, so
// it cannot wait for many; it cannot tell the kernel that it sleeps; and it copies each record.
//
// The programs submit with the kernel's own rule: a record wakes us if we have read all before it (kernel/bpf/ringbuf.c,
// bpf_ringbuf_commit). They force it once in wakeup bytes, and for what has to be asked for soon. So while nothing comes we
// wait without an end, and the first record ends that; while records come we look at times, or when we are woken. No record
// is missed: the kernel makes it visible before it looks how far we are, and we say how far we are before we look for it.
//
// Records stay where they are until they were written. The kernel is told of many at a time: it looks at our position for
// each record, on another processor.
type ringBuffer struct {
	file     *os.File // the map
	conn     syscall.RawConn
	wakeup   uint64        // bytes
	each     bool          // record is wanted at once: then they are copied, and the kernel knows how far we are when we wait
	most     time.Duration // for which a record waits
	now      func() time.Time
	flushed  atomic.Bool
	consumer []byte // a page that begins with our position
	producer []byte // a page that begins with the kernel's, the ring, and its begin anew, so that no record is in two pieces
	data     []byte // of them, the ring
	mask     uint64 // of a position, to where it is there

	// Of the goroutine that calls next.
	pos    uint64        // of the next record
	ahead  uint64        // the kernel's, when we last looked
	reads  bool          // it is a user
	recent bool          // a record came since the last wait
	told   bool          // errEmpty was returned since the last record
	came   time.Time     // the last record that recent was about
	waited uint64        // where the last wait began
	pause  time.Duration // the last wait; 0: that had no end

	mu     sync.Mutex // of what follows
	loans  []loan     // the oldest first
	before uint64     // how many there were
	users  int        // the batches with records that lie here, and a goroutine in next: the memory is given back behind the last one
	closed bool
}

// loan is records up to a position that are needed, or were.
type loan struct {
	end  uint64
	over bool
}

// openRingBuffer opens a ring buffer, which may have no other reader.
func openRingBuffer(m *ebpf.Map, o ringOptions) (_ *ringBuffer, err error) {
	r := &ringBuffer{wakeup: uint64(o.wakeup), each: o.each, most: o.most, now: time.Now}
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
	if r.producer, err = unix.Mmap(fd, int64(page), page+size+min(size, anew), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map its %d bytes: %w", size, err)
	}
	r.data, r.mask = r.producer[page:], uint64(size-1)
	r.pos = atomic.LoadUint64(position(r.consumer))
	r.ahead = r.pos
	return r, nil
}

// position is the one that a page begins with, in bytes since the ring was made.
func position(page []byte) *uint64 { return (*uint64)(unsafe.Pointer(&page[0])) }

func (r *ringBuffer) next(buf []byte) ([]byte, error) {
	for r.enter() {
		// Before the look: what came before flush is not left behind.
		flushed := r.flushed.Load()
		if raw := r.take(); raw != nil {
			r.told, r.recent = false, true
			if r.each {
				raw = append(buf[:0], raw...)
				r.consumed(r.pos - lag)
			}
			return raw, nil
		}
		if flushed {
			r.leave()
			return nil, plugin.ErrFlushed
		}
		if !r.told {
			r.told = true
			return nil, errEmpty
		}
		if err := r.wait(); err != nil {
			r.leave()
			return nil, err
		}
	}
	return nil, os.ErrClosed
}

// enter makes the goroutine that calls next a user, and returns false behind Close.
func (r *ringBuffer) enter() bool {
	if r.reads {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.reads = true
	r.users++
	return true
}

// leave is for when next is not called again, or finds the ring closed.
func (r *ringBuffer) leave() {
	r.reads = false
	r.mu.Lock()
	defer r.mu.Unlock()
	r.quit()
}

// take returns the next record where it lies, or nil if there is none.
func (r *ringBuffer) take() []byte {
	if r.pos == r.ahead {
		if r.ahead = atomic.LoadUint64(position(r.producer)); r.pos == r.ahead {
			return nil
		}
	}
	data := r.data
	for r.pos != r.ahead {
		at := r.pos & r.mask
		head := atomic.LoadUint32((*uint32)(unsafe.Pointer(&data[at])))
		for head&busy != 0 { // a program is writing it, and cannot be interrupted
			head = atomic.LoadUint32((*uint32)(unsafe.Pointer(&data[at])))
		}
		size := uint64(head &^ discarded)
		r.pos += headSize + (size+headSize-1)&^(headSize-1)
		if head&discarded == 0 {
			return data[at+headSize:][:size:size]
		}
	}
	return nil
}

// consumed tells the kernel that it may write over what lies before a position.
func (r *ringBuffer) consumed(end uint64) {
	atomic.StoreUint64(position(r.consumer), end)
}

func (r *ringBuffer) lends() bool { return !r.each }

func (r *ringBuffer) lend() (lender, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loans = append(r.loans, loan{end: r.pos})
	r.users++
	return r, r.before + uint64(len(r.loans)-1)
}

func (r *ringBuffer) free(loan uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loans[loan-r.before].over = true
	n := 0
	for ; n < len(r.loans) && r.loans[n].over; n++ {
		r.consumed(r.loans[n].end - lag)
	}
	r.loans = slices.Delete(r.loans, 0, n)
	r.before += uint64(n)
	r.quit()
}

// lent tells whether records are needed.
func (r *ringBuffer) lent() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.loans) > 0
}

// wait waits until the ring is worth a look.
func (r *ringBuffer) wait() error {
	r.pause = r.patience()
	enough, until := max(r.wakeup, lag+1)-lag, time.Time{} // the kernel counts the lag, too
	if r.pause == 0 {
		enough = 1
		r.consumed(r.pos)
	} else {
		until = r.now().Add(r.pause)
	}
	if err := r.file.SetReadDeadline(until); err != nil {
		return err
	}
	woken := false
	err := r.conn.Read(func(uintptr) bool {
		// The programs wake for what has to be asked for soon, too, of however few bytes.
		done := woken || r.flushed.Load() || atomic.LoadUint64(position(r.producer))-r.pos >= enough
		woken = true
		return done
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// patience returns for how long to wait; 0: until a record comes. While records come it grows, to spare wake-ups; those that come
// one by one are better waited for.
func (r *ringBuffer) patience() time.Duration {
	least, most := min(latency, r.most), r.most
	if r.pos-r.waited > few {
		most = min(most, soon)
	}
	r.waited = r.pos
	if r.each {
		return 0
	}
	if !r.recent {
		if r.lent() { // the kernel is not to know how far we are
			return max(r.pause, least)
		}
		return 0
	}
	r.recent = false
	now := r.now()
	gap := now.Sub(r.came)
	r.came = now
	switch {
	case r.pause > 0:
		return min(2*r.pause, most)
	case gap >= r.most && r.most > least && !r.lent():
		return 0
	default:
		return min(max(2*gap, least), most)
	}
}

func (r *ringBuffer) flush() error {
	r.flushed.Store(true)
	return r.file.SetReadDeadline(time.Unix(1, 0)) // after that of a wait that has not seen flushed
}

// Close ends a wait of next. What was lent stays until it is freed. Another call does nothing.
func (r *ringBuffer) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.file.Close()
	if r.users == 0 {
		err = errors.Join(err, r.unmap())
	}
	return err
}

// quit is one user less. mu is held.
func (r *ringBuffer) quit() {
	if r.users--; r.users == 0 && r.closed {
		_ = r.unmap() // of what was mapped it cannot fail
	}
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
