// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sleeper is a reader of a ring that tells when it was woken, whatever is in the ring.
type sleeper int

func newSleeper(t *testing.T, c *capture) sleeper {
	t.Helper()
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	ring := c.Maps["events"].FD()
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, ring, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}); err != nil {
		t.Fatal(err)
	}
	return sleeper(fd)
}

// woken tells whether it was since the last call. The kernel wakes from an interrupt of the processor that wrote, which is over
// when BPF_PROG_TEST_RUN returns; where it should have come it is waited for.
func (s sleeper) woken(t *testing.T, should bool) bool {
	t.Helper()
	patience := 0
	if should {
		patience = int(10 * time.Second / time.Millisecond) // only a bug lets it pass
	}
	for {
		n, err := unix.EpollWait(int(s), make([]unix.EpollEvent, 1), patience)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

// TestWakeup has a ring that nobody reads: the first record wakes by the kernel's rule, and then one in each 4 KiB.
func TestWakeup(t *testing.T) {
	needRoot(t)
	const wakeup = 4096
	c := start(t, "packet.ring.o", config{
		settings: settings{Snaplen: maxSnaplen, Directions: both, Wakeup: wakeup},
		buffer:   16 * max(wakeup, os.Getpagesize()),
	})
	s := newSleeper(t, c)
	c.run(t, "l2_ingress", loopback, frame(100))
	if !s.woken(t, true) {
		t.Fatal("the first one does not wake")
	}
	wakes := 0
	for begin := 8 + recordSize(c.Maps["events"], 100); begin < 12*wakeup; {
		size := []int{60, 500, 129, 2000, 100}[begin/8%5]
		end := begin + 8 + recordSize(c.Maps["events"], size)
		should := begin/wakeup != end/wakeup
		c.run(t, "l2_ingress", loopback, frame(size))
		if got := s.woken(t, should); got != should {
			t.Errorf("the record in %d to %d wakes: %v", begin, end, got)
		}
		if should {
			wakes++
		}
		begin = end
	}
	if wakes < 11 {
		t.Errorf("%d wake", wakes)
	}
}

// TestWakeupAtEach has -U's threshold of nothing.
func TestWakeupAtEach(t *testing.T) {
	needRoot(t)
	c := start(t, "packet.ring.o", config{settings: settings{Snaplen: 96, Directions: both}})
	s := newSleeper(t, c)
	for n := range 20 {
		c.run(t, "l2_ingress", loopback, frame(100))
		if !s.woken(t, true) {
			t.Fatalf("record %d does not wake", n)
		}
	}
}

// TestNews has records that cannot wait, and others.
func TestNews(t *testing.T) {
	needRoot(t)
	s := newSpace(t, 65536)
	s.configure(t)
	in := incoming("10.0.0.1", tcp, ack)
	out := ethernet(packet4(true, udp, 0, udpHead(true)), typeIP4)
	other := ethernet(packet4(true, udp, 0, append([]byte{0x9c, 0x41}, udpHead(true)[2:]...)), typeIP4)
	for _, c := range []struct {
		rule    string
		tier    tier
		owner   uint32
		before  []byte // goes out
		program string
		packet  []byte
		news    bool
	}{
		{"an unknown owner", tiers[1], tell, nil, "l2_ingress", in, true},
		{"an unknown owner, and nobody asks", tiers[1], ignore, nil, "l2_ingress", in, false},
		{"nobody's", tiers[2], tell, nil, "l2_ingress", in, false},
		{"a new flow", tiers[1], tell, nil, "l2_egress", out, true},
		{"a flow that is known", tiers[1], tell, out, "l2_egress", out, false},
		{"another flow", tiers[1], tell, out, "l2_egress", other, true},
		{"a connection to a listener", tiers[2], tell, nil, "l2_ingress", incoming("10.0.0.1", tcp, syn), true},
		{"a datagram to a socket", tiers[2], tell, nil, "l2_ingress", incoming("10.0.0.1", udp, 0), false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s.enter(t)
			socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "", 0}.open(t, app)
			socket{unix.AF_INET, unix.SOCK_STREAM, "0.0.0.0", "", "", 0}.open(t, app)
			o := start(t, c.tier.object, config{settings: c.tier.offsets(t, settings{Snaplen: 64, Directions: both, Wakeup: 1 << 20, Owner: c.owner}), interfaces: []uint32{0, s.other}})
			last := func() (ns uint64) {
				t.Helper()
				if err := o.Maps["told"].Lookup(uint32(0), &ns); err != nil {
					t.Fatal(err)
				}
				return ns
			}
			reader := newSleeper(t, o)
			if c.before != nil {
				o.run(t, "l2_egress", s.other, c.before)
			} else {
				o.run(t, "l2_ingress", s.other, frame(60)) // no IP
			}
			if !reader.woken(t, true) {
				t.Fatal("the first record does not wake")
			}
			if err := o.Maps["told"].Put(uint32(0), uint64(0)); err != nil {
				t.Fatal(err)
			}
			o.run(t, c.program, s.other, c.packet)
			if got := reader.woken(t, c.news); got != c.news || got != (last() != 0) {
				t.Errorf("it wakes: %v", got)
			}
			if !c.news || c.program != "l2_ingress" {
				return
			}
			// The next one is news, too, and does not wake unless it comes late.
			for range 1000 {
				before := last()
				o.run(t, c.program, s.other, c.packet)
				soon := last() == before
				if got := reader.woken(t, !soon); got == soon {
					t.Fatalf("it wakes: %v", got)
				}
				if soon {
					return
				}
			}
			t.Error("each one wakes")
		})
	}
}
