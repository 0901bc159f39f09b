// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// order is what the sender gets as JSON.
type order struct {
	Traffic traffic `json:"traffic"`
	// Ends are the namespaces of the network that is captured.
	Ends [2]string `json:"ends"`
	// Bare are those of one like it where nobody captures; "" is none.
	Bare [2]string `json:"bare"`
	// Softirq is the kernel's thread that takes over when packets become too many for the sender's processor. Its time is the sender's, too.
	Softirq int `json:"softirq"`
}

// sent is what the sender prints as JSON. Its times are ns of its processor, with what the kernel does with the packets on the way: it is
// done on the sender's back.
type sent struct {
	Packets uint64 `json:"packets"` // 0 of a stream
	// Each is for a packet: the median of chunks, so that a moment in which the machine does something else counts for nothing.
	Each float64 `json:"each"`
	// Bare is the same where nobody captures, at the same time: of a chunk in between now and then. A stream is all one chunk.
	Bare float64 `json:"bare"`
}

// sending is what sends a traffic.
type sending struct {
	step int // packets of a turn
	// turn sends the next packets, from the n-th on, and returns how many.
	turn func(n int) (int, error)
}

// sendCommand is the sub-command that sends, as a process of its own: its processor time is what is measured.
func sendCommand(spec string) error {
	var o order
	if err := json.Unmarshal([]byte(spec), &o); err != nil {
		return err
	}
	debug.SetGCPercent(-1)
	busy, err := newProcessor(o.Softirq)
	if err != nil {
		return err
	}
	var s sent
	// In the namespace for the sake of the first processor.
	if err := (nettest.Space{Name: o.Ends[0]}).Do(0, func() error {
		if err := hurry(); err != nil {
			return err
		}
		if o.Traffic.Kind == stream {
			s, err = o.stream(busy)
		} else {
			s, err = o.packets(busy)
		}
		return err
	}); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(s)
}

// networks are the one that is captured and the other one, nil if there is none.
func (o order) networks() (captured, bare *network) {
	of := func(ends [2]string) *network {
		return &network{near: nettest.Space{Name: ends[0]}, far: nettest.Space{Name: ends[1]}}
	}
	if o.Bare[0] != "" {
		bare = of(o.Bare)
	}
	return of(o.Ends), bare
}

// seldom is how many chunks are sent where they are captured for one that is not.
const seldom = 4

// packets sends what is not a stream.
func (o order) packets(busy *processor) (s sent, err error) {
	captured, bare := o.networks()
	t := o.Traffic
	there := meter{processor: busy}
	if there.sending, err = t.open(captured); err != nil {
		return s, err
	}
	elsewhere := meter{processor: busy}
	if bare != nil {
		if elsewhere.sending, err = t.open(bare); err != nil {
			return s, err
		}
	}
	turns := 1 // as they are due
	if t.Rate == 0 {
		turns = (chunk + there.step - 1) / there.step
	}
	pace := pacer{rate: t.Rate}
	for number := 1; there.packets < t.Count; number++ {
		pace.await(there.packets)
		if err := there.send(turns, t.Count); err != nil {
			return s, err
		}
		if bare != nil && number%seldom == 0 {
			if err := elsewhere.send(turns, t.Count); err != nil {
				return s, err
			}
		}
	}
	return sent{uint64(there.packets), there.each(), elsewhere.each()}, nil
}

// stream sends one.
func (o order) stream(busy *processor) (s sent, err error) {
	captured, bare := o.networks()
	each := func(n *network, t traffic) (float64, error) {
		before, err := n.packets(n.end(t))
		if err != nil {
			return 0, err
		}
		start := busy.process()
		if err := t.stream(n); err != nil {
			return 0, err
		}
		used := busy.process() - start
		after, err := n.packets(n.end(t))
		return float64(used) / float64(after-before), err
	}
	if bare != nil {
		if s.Bare, err = each(bare, o.Traffic.brief()); err != nil {
			return s, err
		}
	}
	s.Each, err = each(captured, o.Traffic)
	return s, err
}

// chunk is how many packets are measured at a time, at least.
const chunk = 1000

// meter sends, and measures it.
type meter struct {
	*processor
	sending
	packets int       // so far
	chunks  []float64 // ns for a packet
	// The chunk that is not full.
	used int64
	some int
}

// send sends so many turns of a traffic that has count packets.
func (m *meter) send(turns, count int) error {
	start := m.thread()
	for range turns {
		if m.packets >= count {
			break
		}
		n, err := m.turn(m.packets)
		if err != nil {
			return err
		}
		m.packets += n
		m.some += n
	}
	m.used += m.thread() - start
	if m.some >= chunk {
		m.chunks = append(m.chunks, float64(m.used)/float64(m.some))
		m.used, m.some = 0, 0
	}
	return nil
}

// each is ns for a packet; 0: there was no whole chunk.
func (m *meter) each() float64 { return spreadOf(m.chunks).Median }

// processor is the one that the sender is on.
type processor struct {
	softirq *os.File // what the kernel's thread has used
}

func newProcessor(softirq int) (*processor, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/schedstat", softirq))
	return &processor{f}, err
}

// thread is what the calling thread and the kernel's have used, in ns.
func (p *processor) thread() int64 { return clock(unix.CLOCK_THREAD_CPUTIME_ID) + p.kernel() }

// process is what all of this process and the kernel's thread have used, in ns.
func (p *processor) process() int64 { return clock(unix.CLOCK_PROCESS_CPUTIME_ID) + p.kernel() }

func (p *processor) kernel() int64 {
	var text [64]byte
	n, err := p.softirq.ReadAt(text[:], 0)
	if n == 0 {
		panic(err) // the kernel's threads do not end
	}
	first, _, _ := bytes.Cut(text[:n], []byte(" "))
	ns, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil {
		panic(err)
	}
	return ns
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

// open makes what packets are sent by.
func (t traffic) open(n *network) (sending, error) {
	switch t.Kind {
	case frames:
		return t.openFrames(n.near)
	case sockets:
		return t.openSockets(n.near, n.far)
	case flows:
		return t.openFlows(n.near)
	default:
		return sending{}, fmt.Errorf("no way %q", t.Kind)
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
			return sending{}, err
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
	return sending{step, func(n int) (int, error) {
		now := min(step, t.Count-n)
		for i, p := range payloads[:now] {
			t.address(p, n+i)
		}
		return now, m.Send(fds[n/step%len(fds)], 0, now)
	}}, nil
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
			return sending{}, err
		}
		fds = append(fds, fd)
		udp := nettest.UDP(peerPort, uint16(firstPort+i), make([]byte, length))
		frame := nettest.Ethernet(nearMAC, farMAC, nettest.TypeIPv4, nettest.IPv4(nobodyAddress, nearAddress, unix.IPPROTO_UDP, 0, nil, udp))
		in = append(in, nettest.NewBurst(slices.Repeat([][]byte{frame}, burst)))
	}
	back, err := packetSocket(far, device+"0")
	if err != nil {
		return sending{}, err
	}
	out := nettest.NewBurst(slices.Repeat([][]byte{make([]byte, length)}, burst))
	return sending{2 * burst, func(n int) (int, error) {
		i := n / (2 * burst) % socketCount
		return 2 * burst, errors.Join(out.Send(fds[i], 0, burst), in[i].Send(back, 0, burst))
	}}, nil
}

// openFlows makes one socket that sends to t.Flows addresses in turns.
func (t traffic) openFlows(near nettest.Space) (sending, error) {
	fd, err := udpSocket(near, app, firstPort, false)
	if err != nil {
		return sending{}, err
	}
	m := nettest.NewBurst(slices.Repeat([][]byte{make([]byte, 22)}, burst))
	names := make([]unix.RawSockaddrInet4, burst)
	for i := range names {
		names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swapped(peerPort)}
		m.To(i, &names[i])
	}
	return sending{burst, func(n int) (int, error) {
		for i := range names {
			flow := (n + i) % t.Flows
			names[i].Addr = [4]byte{10, 64 + byte(flow>>16), byte(flow >> 8), byte(flow)} // manyPrefix
		}
		return burst, m.Send(fd, 0, burst)
	}}, nil
}
