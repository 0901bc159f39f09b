// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"droidtap/bpf"
)

// The structs of bpf/src; TestABI of agent/probe/packet holds such mirrors
// against the objects' BTF.

type event struct {
	Time, Cgroup              uint64
	Ifindex, Len, Caplen, UID uint32
	VlanTCI                   uint16
	VlanProto                 [2]byte // big endian
	Direction                 uint8
	_                         [3]uint8
}

type settings struct {
	Snaplen, Directions, Owner, Wakeup, LoopbackOnce, Others, Unattributed uint32
	Cgroups, SockUID, SockCgroup, CgroupNode, NodeID                       uint32
}

// Keys and values of the maps of owner.h. Ports are big endian.

type flow struct {
	Local, Remote         [16]byte
	LocalPort, RemotePort [2]byte
	Protocol              uint8
	_                     [3]uint8
}

type owner struct {
	UID                uint32
	_                  uint32
	Cgroup, Seen, Born uint64
}

type fragment struct {
	Src, Dst          [16]byte
	ID                [4]byte // big endian
	Protocol, Version uint8
	_                 [2]uint8
}

type firstPorts struct {
	Src, Dst       [2]byte
	Protocol, Kind uint8
	_              [2]uint8
	Seen           uint64
}

type counts struct{ In, Out, Received, Dropped, Unattributed, Ifindex uint64 }

const (
	ingress, egress = 1, 2
	both            = ingress | egress
	maxSnaplen      = 262144
	uidUnknown      = 0xffffffff
	uidNone         = 0xfffffffe
	ignore          = 0 // OWNER_IGNORE, OWNER_TELL and OWNER_FILTER
	tell            = 1
	byOwner         = 2
	loopback        = 1 // its ifindex, in every namespace
	slots           = 256
	actUnspec       = 0xffffffff // TC_ACT_UNSPEC
)

// programs are those of the packet probe, with the direction that each records.
var programs = []struct {
	name      string
	direction uint8
}{{"l2_ingress", ingress}, {"l2_egress", egress}, {"l3_ingress", ingress}, {"l3_egress", egress}}

// sockets are its filters of packet sockets.
var sockets = []string{"l2_socket", "l3_socket"}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to load bpf programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

// open opens an object by its name in bpf.Names.
func open(t testing.TB, name string) *ebpf.CollectionSpec {
	t.Helper()
	part := strings.Split(name, ".")
	spec, err := bpf.Open(part[0], part[1])
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// packetObjects are the names of the packet probe's objects.
func packetObjects() []string {
	return slices.DeleteFunc(bpf.Names(), func(name string) bool { return !strings.HasPrefix(name, "packet.") })
}

// forPacketObjects runs a test for each of them.
func forPacketObjects(t *testing.T, test func(t *testing.T, name string)) {
	t.Helper()
	needRoot(t)
	for _, name := range packetObjects() {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

// config is what a capture writes before the load.
type config struct {
	settings
	interfaces []uint32                   // keys of the map; nil: 0 and loopback
	slots      []uint32                   // interfaces that have a slot
	uids       []uint32                   // that pass
	verdicts   map[uint32]uint8           // entries of the map of uids, besides
	buffer     int                        // bytes, for perf on each processor
	edit       func(*ebpf.CollectionSpec) // before the load
}

// capture is a loaded object of the packet probe and its ring.
type capture struct {
	*ebpf.Collection
	ring ring
}

// ring is the reader's end; next returns ringbuf.ErrFlushed behind what flush found.
type ring interface {
	next() ([]byte, error)
	Flush() error
	SetDeadline(time.Time)
	Close() error
}

type ringBuffer struct{ *ringbuf.Reader }

func (r ringBuffer) next() ([]byte, error) {
	rec, err := r.Read()
	return rec.RawSample, err
}

type perfBuffer struct{ *perf.Reader }

func (p perfBuffer) next() ([]byte, error) {
	for {
		rec, err := p.Read()
		if err != nil || rec.LostSamples == 0 {
			return rec.RawSample, err
		}
	}
}

func start(t testing.TB, name string, c config) *capture {
	t.Helper()
	spec := open(t, name)
	if err := bpf.TellFunctions(spec); err != nil {
		t.Fatal(err)
	}
	if v, ok := spec.Variables["settings"]; ok {
		if err := v.Set(c.settings); err != nil {
			t.Fatal(err)
		}
	} else {
		spec.Maps["settings"].Contents = []ebpf.MapKV{{Key: uint32(0), Value: c.settings}}
	}
	if c.interfaces == nil {
		c.interfaces = []uint32{0, loopback}
	}
	for _, index := range c.interfaces {
		spec.Maps["interfaces"].Contents = append(spec.Maps["interfaces"].Contents,
			ebpf.MapKV{Key: index, Value: make([]counts, ebpf.MustPossibleCPU())})
	}
	for _, index := range c.slots {
		spec.Maps["slots"].Contents = append(spec.Maps["slots"].Contents, ebpf.MapKV{Key: index % slots, Value: claim(index)})
	}
	for _, uid := range c.uids {
		spec.Maps["uids"].Contents = append(spec.Maps["uids"].Contents, ebpf.MapKV{Key: uid, Value: uint8(1)})
	}
	for uid, verdict := range c.verdicts {
		spec.Maps["uids"].Contents = append(spec.Maps["uids"].Contents, ebpf.MapKV{Key: uid, Value: verdict})
	}
	spec.Maps["uids"].MaxEntries = max(1, uint32(len(spec.Maps["uids"].Contents)))
	if c.buffer == 0 {
		c.buffer = 1 << 22
	}
	if m := spec.Maps["events"]; m.Type == ebpf.RingBuf {
		m.MaxEntries = uint32(c.buffer)
	}
	if c.edit != nil {
		c.edit(spec)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load %s: %v", name, err)
	}
	t.Cleanup(coll.Close)
	return &capture{coll, openRing(t, coll.Maps["events"], c.buffer)}
}

// claim is the value of a slot of an interface.
func claim(ifindex uint32) []counts {
	cpus := make([]counts, ebpf.MustPossibleCPU())
	for i := range cpus {
		cpus[i].Ifindex = uint64(ifindex)
	}
	return cpus
}

func openRing(t testing.TB, m *ebpf.Map, buffer int) ring {
	t.Helper()
	var r ring
	if m.Type() == ebpf.RingBuf {
		reader, err := ringbuf.NewReader(m)
		if err != nil {
			t.Fatal(err)
		}
		r = ringBuffer{reader}
	} else {
		reader, err := perf.NewReader(m, buffer)
		if err != nil {
			t.Fatal(err)
		}
		r = perfBuffer{reader}
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close the ring: %v", err)
		}
	})
	return r
}

// skb is the head of struct __sk_buff, of which BPF_PROG_TEST_RUN takes some fields.
type skb struct {
	_       [40]byte
	Ifindex uint32
}

// run passes a packet of an interface to a program, and fails unless the packet
// goes on as it was.
func (c *capture) run(t *testing.T, program string, ifindex uint32, packet []byte) {
	t.Helper()
	opts := ebpf.RunOptions{
		Data:    packet,
		DataOut: make([]byte, len(packet)+64),
		Context: skb{Ifindex: ifindex},
	}
	ret, err := c.Programs[program].Run(&opts)
	if err != nil {
		t.Fatalf("run %s over %d bytes: %v", program, len(packet), err)
	}
	if ret != actUnspec {
		t.Errorf("%s returns %#x, not TC_ACT_UNSPEC", program, ret)
	}
	if !slices.Equal(opts.DataOut, packet) {
		t.Errorf("%s changes the packet:\n%x\n%x", program, packet, opts.DataOut)
	}
}

type record struct {
	event
	size  int    // of the whole, in bytes
	bytes []byte // of the packet, and what follows them
}

// keeps returns how many bytes of a packet of the loopback interface a packet socket's filter keeps.
func (c *capture) keeps(t *testing.T, program string, packet []byte) uint32 {
	t.Helper()
	// For this type of program BPF_PROG_TEST_RUN takes off an Ethernet header (net/bpf/test_run.c, is_l2).
	const header = 14
	ret, err := c.Programs[program].Run(&ebpf.RunOptions{Data: append(make([]byte, header), packet...), Context: skb{Ifindex: loopback}})
	if err != nil {
		t.Fatalf("run %s over %d bytes: %v", program, len(packet), err)
	}
	return ret
}

// records returns what is in the ring.
func (c *capture) records(t *testing.T) []record {
	t.Helper()
	if err := c.ring.Flush(); err != nil {
		t.Fatal(err)
	}
	c.ring.SetDeadline(time.Now().Add(10 * time.Second)) // only a bug lets it pass
	var all []record
	for {
		raw, err := c.ring.next()
		if errors.Is(err, ringbuf.ErrFlushed) {
			return all
		}
		if err != nil {
			t.Fatalf("read a record: %v", err)
		}
		all = append(all, parse(t, raw))
	}
}

// parse reads a record, whose bytes stay raw's.
func parse(t *testing.T, raw []byte) record {
	t.Helper()
	r := record{size: len(raw)}
	n, err := binary.Decode(raw, binary.LittleEndian, &r.event)
	if err != nil {
		t.Fatalf("record of %d bytes: %v", len(raw), err)
	}
	r.bytes = raw[n:]
	return r
}

// counts returns the entry of an interface, summed over the processors.
func (c *capture) counts(t *testing.T, ifindex uint32) counts {
	t.Helper()
	var cpus []counts
	if err := c.Maps["interfaces"].Lookup(ifindex, &cpus); err != nil {
		t.Fatal(err)
	}
	var sum counts
	for _, cpu := range cpus {
		sum.In += cpu.In
		sum.Out += cpu.Out
		sum.Received += cpu.Received
		sum.Dropped += cpu.Dropped
		sum.Unattributed += cpu.Unattributed
	}
	return sum
}

// bootTime is CLOCK_BOOTTIME in nanoseconds.
func bootTime(t *testing.T) uint64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		t.Fatal(err)
	}
	return uint64(ts.Nano())
}

// frame is an Ethernet frame of n bytes, 14 or more, for no protocol that the kernel knows.
func frame(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	copy(b[12:], []byte{0x88, 0xb5}) // IEEE 802 local experiment
	return b
}
