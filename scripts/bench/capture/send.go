// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// sent is what the sender prints as JSON.
type sent struct {
	Packets uint64 `json:"packets"` // 0 of a stream
	// CPU is the process's in ns, with what the kernel does with the packets on the way: it is done on the sender's back.
	CPU float64 `json:"cpu"`
	// Typical is that for a packet: the median of chunks, so that a moment in which the machine does something else counts for nothing.
	// Where the sender sleeps between packets only what sends them counts. 0 of a stream.
	Typical float64 `json:"typical"`
}

// sending is what sends a traffic.
type sending func(*meter) error

// sendCommand is the sub-command that sends, as a process of its own: its processor time is what is measured.
func sendCommand(argv []string) error {
	var t traffic
	if err := json.Unmarshal([]byte(argv[2]), &t); err != nil {
		return err
	}
	debug.SetGCPercent(-1)
	near, far := nettest.Space{Name: argv[0]}, nettest.Space{Name: argv[1]}
	send, err := t.open(near, far)
	if err != nil {
		return err
	}
	var s sent
	// In the namespace for the sake of the first processor.
	if err := near.Do(0, func() error {
		if err := hurry(); err != nil {
			return err
		}
		cpu := clock(unix.CLOCK_PROCESS_CPUTIME_ID)
		var m meter
		err := send(&m)
		s = sent{m.packets, float64(clock(unix.CLOCK_PROCESS_CPUTIME_ID) - cpu), spreadOf(m.each).Median}
		return err
	}); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// chunk is how many packets are measured at a time.
const chunk = 1000

// meter measures what one thread sends.
type meter struct {
	packets uint64
	each    []float64 // of the chunks, ns for a packet
	// The chunk that is not full.
	cpu  int64
	some int
}

// send has n packets sent.
func (m *meter) send(n int, f func() error) error {
	start := clock(unix.CLOCK_THREAD_CPUTIME_ID)
	if err := f(); err != nil {
		return err
	}
	m.cpu += clock(unix.CLOCK_THREAD_CPUTIME_ID) - start
	m.packets += uint64(n)
	if m.some += n; m.some >= chunk {
		m.each = append(m.each, float64(m.cpu)/float64(m.some))
		m.cpu, m.some = 0, 0
	}
	return nil
}

// clock is a time in ns.
func clock(id int32) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		panic(err) // there is no such clock
	}
	return t.Nano()
}

func monotonic() int64 { return clock(unix.CLOCK_MONOTONIC) }

// open makes what the traffic is sent by.
func (t traffic) open(near, far nettest.Space) (sending, error) {
	switch t.Kind {
	case frames:
		return t.openFrames(near)
	case sockets:
		return t.openSockets(near, far)
	case flows:
		return t.openFlows(near)
	case stream:
		return t.openStream(near, far)
	default:
		return nil, fmt.Errorf("no way %q", t.Kind)
	}
}

// pacer sleeps until a packet, or a byte, is due.
type pacer struct {
	start int64
	rate  int
}

// await waits until the n-th one is due.
func (p *pacer) await(n int) {
	if p.rate == 0 {
		return
	}
	if p.start == 0 {
		p.start = monotonic()
	}
	due := unix.NsecToTimespec(p.start + int64(n)*int64(time.Second)/int64(p.rate))
	for errors.Is(unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &due, nil), unix.EINTR) {
	}
}

// openFrames makes packet sockets that go past the queueing discipline. Of its packets number i*rarity are to port rare.
func (t traffic) openFrames(near nettest.Space) (sending, error) {
	var fds []int
	for i := range t.Links {
		fd, err := packetSocket(near, fmt.Sprintf("%s%d", device, i))
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
	}
	var payloads [][]byte
	for range burst {
		payloads = append(payloads, t.frame())
	}
	m := nettest.NewBurst(payloads)
	step := burst
	if t.Rate > 0 {
		step = min(burst, max(1, t.Rate/1000)) // a thousand times a second
	}
	return func(s *meter) error {
		pace := pacer{rate: t.Rate}
		for n, turn := 0, 0; n < t.Count; turn++ {
			pace.await(n)
			now := min(step, t.Count-n)
			for i, p := range payloads[:now] {
				t.address(p, n+i)
			}
			if err := s.send(now, func() error { return m.Send(fds[turn%len(fds)], 0, now) }); err != nil {
				return err
			}
			n += now
		}
		return nil
	}, nil
}

const portsAt = 14 + 20 // in a frame

// frame is a datagram to nobody.
func (t traffic) frame() []byte {
	const headers = 14 + 20 + 8
	udp := nettest.UDP(1, 1, make([]byte, t.Length-headers))
	return nettest.Ethernet(nobodyMAC, nearMAC, nettest.TypeIPv4, nettest.IPv4(nearAddress, nobodyAddress, unix.IPPROTO_UDP, 0, nil, udp))
}

// address writes the ports of the n-th packet: its flow's, or the rare one. A datagram has no checksum that would change.
func (t traffic) address(frame []byte, n int) {
	flow := n % t.Flows
	from, to := 1024+flow%50_000, 30_000+flow/50_000
	if n%rarity == 0 {
		to = rare
	}
	frame[portsAt], frame[portsAt+1] = byte(from>>8), byte(from)
	frame[portsAt+2], frame[portsAt+3] = byte(to>>8), byte(to)
}

// openSockets makes socketCount sockets and what sends to them from the far end.
func (t traffic) openSockets(near, far nettest.Space) (sending, error) {
	const length = 22 // of payload, as of a frame of 64 bytes
	var fds []int
	var in []nettest.Burst
	for i := range socketCount {
		uid := app
		if i >= socketCount/2 {
			uid = other
		}
		fd, err := udpSocket(near, uid, firstPort+i, true)
		if err != nil {
			return nil, err
		}
		fds = append(fds, fd)
		udp := nettest.UDP(peerPort, uint16(firstPort+i), make([]byte, length))
		frame := nettest.Ethernet(nearMAC, farMAC, nettest.TypeIPv4, nettest.IPv4(nobodyAddress, nearAddress, unix.IPPROTO_UDP, 0, nil, udp))
		in = append(in, nettest.NewBurst(slices.Repeat([][]byte{frame}, burst)))
	}
	back, err := packetSocket(far, device+"0")
	if err != nil {
		return nil, err
	}
	out := nettest.NewBurst(slices.Repeat([][]byte{make([]byte, length)}, burst))
	return func(s *meter) error {
		for range t.Count / cycle {
			for i, fd := range fds {
				both := func() error { return errors.Join(out.Send(fd, 0, burst), in[i].Send(back, 0, burst)) }
				if err := s.send(2*burst, both); err != nil {
					return err
				}
			}
		}
		return nil
	}, nil
}

// openFlows makes one socket that sends to t.Flows addresses in turns.
func (t traffic) openFlows(near nettest.Space) (sending, error) {
	fd, err := udpSocket(near, app, firstPort, false)
	if err != nil {
		return nil, err
	}
	m := nettest.NewBurst(slices.Repeat([][]byte{make([]byte, 22)}, burst))
	names := make([]unix.RawSockaddrInet4, burst)
	for i := range names {
		names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swapped(peerPort)}
		m.To(i, &names[i])
	}
	return func(s *meter) error {
		for n := 0; n < t.Count; n += burst {
			for i := range names {
				flow := (n + i) % t.Flows
				names[i].Addr = [4]byte{10, 64 + byte(flow>>16), byte(flow >> 8), byte(flow)} // manyPrefix
			}
			if err := s.send(burst, func() error { return m.Send(fd, 0, burst) }); err != nil {
				return err
			}
		}
		return nil
	}, nil
}
