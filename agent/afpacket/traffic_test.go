// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"

	"droidtap/scripts/nettest"
)

// TestBefore opens sockets while packets pass, with a filter that wants none.
func TestBefore(t *testing.T) {
	near, _ := pair(t)
	traffic(t, near, "veth0")
	filter := ours(t, 0)
	for range 20 {
		s := open(t, near, "veth0", Options{}, filter)
		if ps := flushed(t, s); len(ps) != 0 || dropped(t, s) != 0 {
			t.Fatalf("%d packets, %d dropped", len(ps), dropped(t, s))
		}
		must(t, s.Close())
	}
}

// consecutive checks that no frame is missing, and returns how many bytes each has.
func consecutive(t *testing.T, ps []Packet) (sizes []int) {
	t.Helper()
	for i, p := range ps {
		if i > 0 && number(p) != number(ps[i-1])+1 {
			t.Fatalf("frame %d follows frame %d", number(p), number(ps[i-1]))
		}
		sizes = append(sizes, len(p.Data))
	}
	return sizes
}

func TestUpdate(t *testing.T) {
	near, _ := pair(t)
	s := open(t, near, "veth0", Options{Buffer: 32 << 20}, ours(t, 60))
	end := traffic(t, near, "veth0")
	var ps []Packet
	for _, bytes := range []int{60, 30, 40, 50} {
		must(t, s.Update(ours(t, int32(bytes))))
		for found := false; !found; found = len(ps[len(ps)-1].Data) == bytes {
			ps = append(ps, next(t, s))
		}
	}
	end()
	must(t, s.Stop())
	ps = append(ps, flushed(t, s)...)
	if got := slices.Compact(consecutive(t, ps)); !slices.Equal(got, []int{60, 30, 40, 50}) {
		t.Errorf("bytes of the packets were %v", got)
	}
	if n := dropped(t, s); n != 0 {
		t.Errorf("%d dropped", n)
	}
	if err := s.Update(ours(t, 60)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Stop: %v, want os.ErrClosed", err)
	}
	send(t, near, "veth0", frame(0, 60))
	if ps := flushed(t, s); len(ps) != 0 {
		t.Errorf("%d packets after Stop", len(ps))
	}
}

// TestLongFilter has filters that the kernel would not attach to a socket: it gives them 20 KiB before 6.7.
func TestLongFilter(t *testing.T) {
	near, _ := pair(t)
	near.Run(t, "sh", "-c", "! test -e /proc/sys/net/core/optmem_max || sysctl -qw net.core.optmem_max=20480")
	long := func(bytes int32) asm.Instructions {
		insns := asm.Instructions{
			asm.Mov.Imm(asm.R0, 0),
			asm.LoadMem(asm.R1, asm.R1, ctxProtocol, asm.Word),
			asm.JNE.Imm(asm.R1, int32(swap(nettest.TypeLocal)), "out"),
		}
		for len(insns) < 4000 { // 4.19 loads 4,096
			insns = append(insns, asm.Mov.Imm(asm.R0, bytes))
		}
		return append(insns, asm.Return().WithSymbol("out"))
	}
	s := open(t, near, "veth0", Options{}, program(t, long(40)...))
	send(t, near, "veth0", frame(0, 60))
	must(t, s.Update(program(t, long(50)...)))
	send(t, near, "veth0", frame(1, 60))
	must(t, s.Stop())
	if got := consecutive(t, flushed(t, s)); !slices.Equal(got, []int{40, 50}) {
		t.Errorf("bytes of the packets were %v", got)
	}
}

func TestStop(t *testing.T) {
	near, _ := pair(t)
	for _, c := range []struct {
		rule   string
		frames int
		retire time.Duration
	}{
		// A minute is more than a test waits for a packet.
		{"nothing was sent", 0, time.Minute},
		{"one packet that is not yet visible", 1, time.Minute},
		{"many packets, the last ones not yet visible", 5000, time.Minute},
		{"many packets, visible soon", 5000, 10 * time.Millisecond},
	} {
		t.Run(c.rule, func(t *testing.T) {
			// Nobody reads: the ring has a block for each time that one is over.
			s := open(t, near, "veth0", Options{Buffer: 32 << 20, Retire: c.retire}, ours(t, all))
			send(t, near, "veth0", frames(c.frames, 60)...)
			must(t, s.Stop())
			must(t, s.Stop())
			send(t, near, "veth0", frame(c.frames, 60))
			ps := flushed(t, s)
			consecutive(t, ps)
			if n := dropped(t, s); len(ps) != c.frames || n != 0 {
				t.Errorf("%d packets and %d dropped of %d", len(ps), n, c.frames)
			}
			none(t, s, "ErrFlushed comes once")
		})
	}
}

// TestStopUnderTraffic has every packet up to some moment, and none after it.
func TestStopUnderTraffic(t *testing.T) {
	near, _ := pair(t)
	s := open(t, near, "veth0", Options{Buffer: 32 << 20}, ours(t, all))
	end := traffic(t, near, "veth0")
	ps := []Packet{next(t, s)}
	must(t, s.Stop())
	ps = append(ps, flushed(t, s)...)
	consecutive(t, ps)
	if sent := end(); number(ps[0]) != 0 || len(ps) > sent || dropped(t, s) != 0 {
		t.Errorf("%d packets from %d on, of %d sent; %d dropped", len(ps), number(ps[0]), sent, dropped(t, s))
	}
}

// TestFlushUnderTraffic ends though packets come all the time, and another goroutine waits in Next.
func TestFlushUnderTraffic(t *testing.T) {
	near, _ := pair(t)
	s := open(t, near, "veth0", Options{Buffer: 32 << 20}, ours(t, all))
	end := traffic(t, near, "veth0")
	var ps []Packet
	first, reader := make(chan struct{}), make(chan error)
	go func() {
		for {
			p, err := s.Next(time.Now().Add(nettest.Patience))
			if err != nil {
				reader <- err
				return
			}
			p.Data = slices.Clone(p.Data)
			if ps = append(ps, p); len(ps) == 1 {
				close(first)
			}
		}
	}()
	<-first
	must(t, s.Flush())
	if err := <-reader; !errors.Is(err, ErrFlushed) {
		t.Fatalf("%v, want ErrFlushed", err)
	}
	ps = append(ps, next(t, s))
	sent := end()
	ps = append(ps, flushed(t, s)...)
	consecutive(t, ps)
	if len(ps) != sent || dropped(t, s) != 0 {
		t.Errorf("%d packets and %d dropped of %d", len(ps), dropped(t, s), sent)
	}
}

func TestOverflow(t *testing.T) {
	near, _ := pair(t)
	const each = 1000
	s := open(t, near, "veth0", Options{Buffer: 1}, ours(t, all))
	received := 0
	for round := 1; round <= 3; round++ {
		before := dropped(t, s)
		send(t, near, "veth0", frames(each, 1000)...)
		ps := flushed(t, s)
		received += len(ps)
		lost := dropped(t, s)
		// Two blocks of 64 KiB hold 60 frames each, and fewer where their time is over before.
		if len(ps) == 0 || len(ps) > 120 || lost <= before {
			t.Errorf("round %d: %d packets, %d dropped before and %d now", round, len(ps), before, lost)
		}
		if received+lost != round*each {
			t.Errorf("round %d: %d packets and %d dropped of %d", round, received, lost, round*each)
		}
	}
}

// TestMany reads while it is sent, through a ring that goes round several times.
func TestMany(t *testing.T) {
	near, far := pair(t)
	const count = 50000
	s := open(t, near, "veth0", Options{Buffer: 8 << 20, Retire: 10 * time.Millisecond}, ours(t, all))
	sent := make(chan error, 1)
	go func() { sent <- far.Do(0, func() error { return nettest.Send("veth0", frames(count, 60)...) }) }()
	for n := range count {
		if p := next(t, s); number(p) != n || len(p.Data) != 60 {
			t.Fatalf("packet %d is frame %d of %d bytes; %d dropped", n, number(p), len(p.Data), dropped(t, s))
		}
	}
	must(t, <-sent)
	if n := dropped(t, s); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// TestLongest has a packet that fills a block, with the longest head that there is.
func TestLongest(t *testing.T) {
	need(t)
	near := nettest.NewSpace(t)
	tun := nettest.OpenTun(t, near, "tun0")
	s := open(t, near, "tun0", Options{Buffer: 1, Snaplen: longest}, only(t, ctxProtocol, int32(swap(nettest.TypeIPv4)), all))
	if s.ring.size != minBlockSize || s.ring.blocks != 2 {
		t.Fatalf("%d blocks of %d bytes", s.ring.blocks, s.ring.size)
	}
	payload := make([]byte, longest-28)
	for i := range payload {
		payload[i] = byte(i % 251)
	}
	want := nettest.IPv4("10.0.0.2", "10.0.0.9", 17, 0, nil, nettest.UDP(1, 2, payload))
	for round := range 5 {
		if _, err := tun.Write(want); err != nil {
			t.Fatal(err)
		}
		if got := next(t, s); !slices.Equal(got.Data, want) || int(got.Length) != len(want) {
			t.Fatalf("%d bytes of %d, sent %d", len(got.Data), got.Length, len(want))
		}
		if s.cursor.block != round%2 {
			t.Fatalf("packet %d is in block %d: there was an empty one", round, s.cursor.block)
		}
	}
	if n := dropped(t, s); n != 0 {
		t.Errorf("%d dropped", n)
	}
}

// TestSegmentation has packets of up to 64 KiB, as the kernel hands them to a device that cuts them up itself.
func TestSegmentation(t *testing.T) {
	need(t)
	near := nettest.NewSpace(t)
	s := open(t, near, "lo", Options{Buffer: 64 << 20, Snaplen: maxSnaplen},
		only(t, ctxProtocol, int32(swap(nettest.TypeIPv4)), all))
	stream := make([]byte, 4<<20)
	for i := range stream {
		stream[i] = byte(i % 251)
	}
	near.Must(t, func() error { return pour(stream) })
	must(t, s.Stop())
	most, sum := 0, 0
	for _, p := range flushed(t, s) {
		if len(p.Data) != int(p.Length) {
			t.Fatalf("%d bytes of %d", len(p.Data), p.Length)
		}
		payload := p.Data[14+20+int(p.Data[14+20+12]>>4)*4:]
		for i := range len(payload) - 1 {
			if payload[i+1] != byte((int(payload[i])+1)%251) {
				t.Fatalf("byte %d of %d is wrong", i, len(p.Data))
			}
		}
		if p.Outgoing {
			most, sum = max(most, len(p.Data)), sum+len(payload)
		}
	}
	t.Logf("longest packet: %d bytes", most)
	if most < 60000 || sum < len(stream) || dropped(t, s) != 0 {
		t.Errorf("%d bytes of %d, %d in a packet at most; %d packets dropped", sum, len(stream), most, dropped(t, s))
	}
}

// pour sends a stream by TCP over the loopback interface.
func pour(stream []byte) error {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	out, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	in, err := l.Accept()
	if err != nil {
		return errors.Join(err, out.Close())
	}
	defer in.Close()
	written := make(chan error, 1)
	go func() {
		_, err := out.Write(stream)
		written <- errors.Join(err, out.Close())
	}()
	n, err := io.Copy(io.Discard, in)
	if err == nil && int(n) != len(stream) {
		err = fmt.Errorf("%d bytes came of %d", n, len(stream))
	}
	return errors.Join(err, <-written)
}
