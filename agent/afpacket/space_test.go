// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// all is what a filter returns to keep the whole packet.
const all = maxSnaplen

// Fields of struct __sk_buff.
const (
	ctxPktType  = 4
	ctxProtocol = 16
)

// pair is nettest.Pair, or skips.
func pair(t *testing.T) (near, far nettest.Space) {
	t.Helper()
	need(t)
	return nettest.Pair(t)
}

func need(t *testing.T) {
	t.Helper()
	nettest.Require(t, "sysctl")
	must(t, rlimit.RemoveMemlock())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// program loads a filter.
func program(t *testing.T, insns ...asm.Instruction) *ebpf.Program {
	t.Helper()
	spec := ebpf.ProgramSpec{Name: "test", Type: ebpf.SocketFilter, License: "Apache-2.0", Instructions: insns}
	p, err := ebpf.NewProgram(&spec)
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// only keeps bytes of the packets whose field is the value. Like the agent's filters it has a function of its own.
func only(t *testing.T, field int16, value, bytes int32) *ebpf.Program {
	t.Helper()
	return program(t,
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.Call.Label("keep"),
		asm.LoadMem(asm.R1, asm.R6, field, asm.Word),
		asm.JEq.Imm(asm.R1, value, "out"),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return().WithSymbol("out"),
		asm.Mov.Imm(asm.R0, bytes).WithSymbol("keep"),
		asm.Return(),
	)
}

// ours keeps bytes of the frames that the tests send, and nothing of what the kernel sends by itself.
func ours(t *testing.T, bytes int32) *ebpf.Program {
	t.Helper()
	return only(t, ctxProtocol, int32(swap(nettest.TypeLocal)), bytes)
}

func swap(n uint16) uint16 { return n<<8 | n>>8 }

// open opens an interface of a space, with a block of 64 KiB and one millisecond where o does not say otherwise.
func open(t *testing.T, s nettest.Space, name string, o Options, filter *ebpf.Program) *Socket {
	t.Helper()
	o.Name = name
	if o.Snaplen == 0 {
		o.Snaplen = 1 << 10
	}
	if o.Buffer == 0 {
		o.Buffer = 1 << 20
	}
	if o.Retire == 0 {
		o.Retire = time.Millisecond
	}
	var socket *Socket
	s.Must(t, func() error {
		ifc, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		o.Ifindex = ifc.Index
		socket, err = Open(o, filter)
		return err
	})
	t.Cleanup(func() {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// frame is the n-th of the frames that a test sends.
func frame(n, size int) []byte {
	payload := binary.BigEndian.AppendUint64(nil, uint64(n))
	for len(payload) < size-14 {
		payload = append(payload, byte(n+len(payload)))
	}
	return nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeLocal, payload)
}

// frames returns count frames.
func frames(count, size int) (fs [][]byte) {
	for n := range count {
		fs = append(fs, frame(n, size))
	}
	return fs
}

// number is the n of a frame.
func number(p Packet) int { return int(binary.BigEndian.Uint64(p.Data[14:])) }

func send(t *testing.T, s nettest.Space, name string, frames ...[]byte) {
	t.Helper()
	s.Must(t, func() error { return nettest.Send(name, frames...) })
}

// next returns the next packet, with bytes of its own.
func next(t *testing.T, s *Socket) Packet {
	t.Helper()
	p, err := s.Next(time.Now().Add(nettest.Patience))
	must(t, err)
	p.Data = slices.Clone(p.Data)
	return p
}

// none checks that there is no packet now.
func none(t *testing.T, s *Socket, rule string) {
	t.Helper()
	if p, err := s.Next(time.Now()); !isDeadline(err) {
		t.Fatalf("%s: %v, error %v", rule, p, err)
	}
}

// flushed returns what is left in the ring.
func flushed(t *testing.T, s *Socket) (ps []Packet) {
	t.Helper()
	must(t, s.Flush())
	for {
		p, err := s.Next(time.Now().Add(nettest.Patience))
		if errors.Is(err, ErrFlushed) {
			return ps
		}
		must(t, err)
		p.Data = slices.Clone(p.Data)
		ps = append(ps, p)
	}
}

func dropped(t *testing.T, s *Socket) int {
	t.Helper()
	n, err := s.Dropped()
	must(t, err)
	return int(n)
}

// traffic sends frames without end, until the function that it returns is called, which says how many they were.
func traffic(t *testing.T, s nettest.Space, name string) (end func() int) {
	t.Helper()
	ending, ended, sent := make(chan struct{}), make(chan error, 1), 0
	go func() {
		ended <- s.Do(0, func() error {
			ifc, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			for ; ; sent++ {
				select {
				case <-ending:
					return nil
				default:
				}
				if err := unix.Sendto(fd, frame(sent, 60), 0, &unix.SockaddrLinklayer{Ifindex: ifc.Index}); err != nil {
					return fmt.Errorf("send frame %d: %w", sent, err)
				}
			}
		})
	}()
	once := false
	end = func() int {
		if !once {
			once = true
			close(ending)
			must(t, <-ended)
		}
		return sent
	}
	t.Cleanup(func() { end() })
	return end
}
