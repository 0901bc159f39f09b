// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"droidtap/agent/pcapng"
	"droidtap/android"
)

const (
	ethernetIndex = 7
	rawIndex      = 9
)

// testDecoder stamps a record of kernel time n with Unix time 1,000,000 + n.
func testDecoder(snaplen int) decoder {
	var all atomic.Pointer[judge]
	all.Store(&judge{})
	return decoder{
		judge:   &all,
		clock:   steadyClock(1_000_000),
		snaplen: snaplen,
		ports:   testPorts(),
	}
}

// testPorts are an interface of either kind, each with its index as its number.
func testPorts() *ports {
	var p ports
	for _, ifc := range []android.Interface{{Index: ethernetIndex, Name: "wlan0", Type: 1}, {Index: rawIndex, Name: "rmnet_data0", Type: 519}} {
		of, _ := p.add(ifc)
		of.number = ifc.Index
	}
	return &p
}

// raw makes a record as the programs do.
func raw(e event, bytes string) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(le.AppendUint64(nil, e.Time), e.Cgroup)
	for _, v := range []uint32{e.Ifindex, e.Len, e.Caplen, e.UID} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint16(b, e.VlanTCI)
	b = append(b, e.VlanProto[:]...)
	b = append(b, e.Direction, 0, 0, 0)
	return append(b, bytes...)
}

func TestDecode(t *testing.T) {
	const frame = "ddddddssssssTTpayload"
	tag := [2]byte{0x81, 0x00}
	for _, tc := range []struct {
		rule    string
		snaplen int
		event   event
		bytes   string
		want    pcapng.Packet
	}{
		{"a packet that came in", 100,
			event{Time: 5, Ifindex: ethernetIndex, Len: 21, Caplen: 21, UID: 10123, Direction: recordIngress}, frame,
			pcapng.Packet{Interface: ethernetIndex, Time: 1_000_005, Data: []byte(frame), Length: 21, UID: 10123, Direction: pcapng.Inbound}},
		{"a packet cut short keeps its length", 4,
			event{Ifindex: rawIndex, Len: 1500, Caplen: 4, Direction: recordEgress}, "\x45\x00\x05\xdc",
			pcapng.Packet{Interface: rawIndex, Time: 1_000_000, Data: []byte("\x45\x00\x05\xdc"), Length: 1500, Direction: pcapng.Outbound}},
		{"bytes of the size class behind the packet are not part of it", 100,
			event{Ifindex: ethernetIndex, Len: 21, Caplen: 21}, frame + "rubbish of the ring",
			pcapng.Packet{Interface: ethernetIndex, Time: 1_000_000, Data: []byte(frame), Length: 21}},
		{"a tag that the hardware took is put back behind the addresses", 100,
			event{Ifindex: ethernetIndex, Len: 21, Caplen: 21, VlanTCI: 0x6064, VlanProto: tag}, frame,
			pcapng.Packet{Interface: ethernetIndex, Time: 1_000_000, Data: []byte("ddddddssssss\x81\x00\x60\x64TTpayload"), Length: 25}},
		{"with the tag it is not longer than the snapshot length", 21,
			event{Ifindex: ethernetIndex, Len: 30, Caplen: 21, VlanTCI: 1, VlanProto: tag}, frame,
			pcapng.Packet{Interface: ethernetIndex, Time: 1_000_000, Data: []byte("ddddddssssss\x81\x00\x00\x01TTpay"), Length: 34}},
		{"there is no place for a tag in a packet cut before it", 11,
			event{Ifindex: ethernetIndex, Len: 21, Caplen: 11, VlanTCI: 1, VlanProto: tag}, frame[:11],
			pcapng.Packet{Interface: ethernetIndex, Time: 1_000_000, Data: []byte(frame[:11]), Length: 21}},
		{"nor in one that is cut before it here", 5,
			event{Ifindex: ethernetIndex, Len: 21, Caplen: 21, VlanTCI: 1, VlanProto: tag}, frame,
			pcapng.Packet{Interface: ethernetIndex, Time: 1_000_000, Data: []byte(frame[:5]), Length: 21}},
		{"nor in one that begins with the IP header", 100,
			event{Ifindex: rawIndex, Len: 21, Caplen: 21, VlanTCI: 1, VlanProto: tag}, frame,
			pcapng.Packet{Interface: rawIndex, Time: 1_000_000, Data: []byte(frame), Length: 21}},
		{"an empty packet", 100,
			event{Ifindex: rawIndex}, "",
			pcapng.Packet{Interface: rawIndex, Time: 1_000_000, Data: []byte{}}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			d := testDecoder(tc.snaplen)
			got := pcapng.Packet{Comments: []string{"of the packet before"}, Topic: &pcapng.Topic{}}
			if ok, err := d.decode(raw(tc.event, tc.bytes), &got); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreUnexported(pcapng.Topic{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	whole := raw(event{Ifindex: rawIndex, Len: 4, Caplen: 4}, "abcd")
	for n := range len(whole) {
		d := testDecoder(100)
		if ok, err := d.decode(whole[:n:n], &pcapng.Packet{}); ok || err == nil {
			t.Errorf("%d of %d bytes of a record are accepted", n, len(whole))
		}
	}
	d := testDecoder(100)
	if ok, err := d.decode(raw(event{Ifindex: 1}, ""), &pcapng.Packet{}); ok || err == nil {
		t.Error("a record of an interface that is not captured on is accepted")
	}
	if ok, err := d.decode(raw(event{Ifindex: rawIndex, Caplen: 0xffffffff}, "abcd"), &pcapng.Packet{}); ok || err == nil {
		t.Error("a record that claims 4 GiB is accepted")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(raw(event{Ifindex: ethernetIndex, Len: 14, Caplen: 14, VlanProto: [2]byte{0x81, 0}}, "ddddddssssssTT"))
	f.Add(raw(event{Ifindex: rawIndex, Caplen: 0xffffffff}, "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := testDecoder(64)
		record := bytes.Clone(b)
		var p pcapng.Packet
		ok, err := d.decode(record, &p)
		if ok == (err != nil) {
			t.Errorf("%t and %v", ok, err)
		}
		if len(p.Data) > len(b) {
			t.Errorf("%d bytes of packet from %d of record", len(p.Data), len(b))
		}
		if !bytes.Equal(record, b) {
			t.Error("the record was changed: it may lie in memory that only the kernel writes")
		}
	})
}

// TestPut writes an event as the kernel does.
func TestPut(t *testing.T) {
	want := event{Time: 1 << 60, Cgroup: 1<<32 | 45, Ifindex: 7, Len: 1514, Caplen: 96, UID: 10123, VlanTCI: 0x6042, VlanProto: [2]byte{0x81, 0}, Direction: recordEgress}
	raw := bytes.Repeat([]byte{0xff}, eventSize)
	want.put(raw)
	var got event
	if got.parse((*[eventSize]byte)(raw)); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if !bytes.Equal(raw[37:], []byte{0, 0, 0}) {
		t.Errorf("padding %x", raw[37:])
	}
}
