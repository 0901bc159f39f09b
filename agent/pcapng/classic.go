// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"encoding/binary"
	"fmt"
	"io"
)

const (
	classicMagic = 0xa1b23c4d // times in nanoseconds

	macLength      = 6
	ethernetHeader = 2*macLength + 2
	sll2Header     = 20

	// Protocols of frames of 802.3, which have a length in place of one: ETH_P_802_3 and ETH_P_802_2 of linux/if_ether.h.
	novell = 1
	llc    = 4

	arphrdEthernet = 1
	arphrdNone     = 0xfffe
)

// Packet types of LINKTYPE_LINUX_SLL2.
const (
	toUs      = 0
	toAll     = 1
	toSeveral = 2
	sentByUs  = 4
)

// classic is what a Writer of pcap files knows of the one that it writes.
type classic struct {
	mixed    bool
	linkType LinkType // of the file; 0: it has no head yet
}

// NewClassic returns a Writer of pcap files with times in nanoseconds. They have packets, and nothing of what else is
// written: no comments, names, secrets, statistics or interfaces, but for the link type, of which a file has one. It is that of the
// interfaces which are described before the first packet or Flush, if they agree. If they do not, or it is mixed, in which
// case there may be others later, it is LINKTYPE_LINUX_SLL2: there each packet has the kernel's index and the kind of its
// interface, its direction and the sender's address in place of a link layer header.
func NewClassic(w io.Writer, mixed bool) *Writer {
	writer := NewWriter(w, Section{})
	writer.buf = writer.buf[:0]
	writer.classic = &classic{mixed: mixed}
	return writer
}

// addHead queues the head of a file that has none, unless nothing says what its link type is.
func (w *Writer) addHead() {
	c := w.classic
	if c.linkType != 0 || len(w.order) == 0 && !c.mixed {
		return
	}
	if c.mixed {
		c.linkType = linuxSLL2
	}
	snaplen := uint32(0)
	for _, index := range w.order {
		i := w.interfaces[index].latest
		if c.linkType == 0 {
			c.linkType = i.LinkType
		} else if c.linkType != i.LinkType {
			c.linkType = linuxSLL2
		}
		snaplen = max(snaplen, i.Snaplen)
		if i.Snaplen == 0 {
			snaplen = maxData
		}
	}
	if snaplen == 0 {
		snaplen = maxData
	}
	if c.linkType == linuxSLL2 {
		// All that was captured is kept behind the header: libpcap cuts packets that are longer than the head says.
		snaplen = min(snaplen+sll2Header, maxData)
	}
	w.buf = le.AppendUint32(w.buf, classicMagic)
	w.buf = le.AppendUint16(w.buf, 2) // version 2.4
	w.buf = le.AppendUint16(w.buf, 4)
	w.buf = le.AppendUint64(w.buf, 0) // UTC
	w.buf = le.AppendUint32(w.buf, snaplen)
	w.buf = le.AppendUint32(w.buf, uint32(c.linkType))
}

// addRecord queues a packet of an interface in a pcap file, and its head if it has none.
func (w *Writer) addRecord(i *Interface, p *Packet) error {
	w.addHead()
	linkType := w.classic.linkType
	if linkType != linuxSLL2 && linkType != i.LinkType {
		return fmt.Errorf("packet of %s: %w", i.Name, ErrLinkType)
	}
	w.buf = appendRecord(w.buf, linkType, i, p)
	w.queued++
	return nil
}

// appendRecord appends a packet of an interface to a pcap file of a link type.
func appendRecord(b []byte, linkType LinkType, i *Interface, p *Packet) []byte {
	data := p.Data
	length := max(p.Length, uint32(len(data)))
	most := maxData
	if linkType == linuxSLL2 {
		most -= sll2Header
		if i.LinkType == Ethernet {
			data = data[min(ethernetHeader, len(data)):]
			length -= min(ethernetHeader, length)
		}
		length += sll2Header
	}
	data = data[:min(len(data), most)]
	time := max(p.Time, 0)
	b = le.AppendUint32(b, uint32(time/1e9))
	b = le.AppendUint32(b, uint32(time%1e9))
	b = le.AppendUint32(b, uint32(len(data)+maxData-most))
	b = le.AppendUint32(b, length)
	if linkType == linuxSLL2 {
		b = appendSLL2(b, i, p)
	}
	return append(b, data...)
}

// appendSLL2 appends what stands in place of a packet's link layer header, as libpcap makes it: see
// https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL2.html. What is not captured is 0.
func appendSLL2(b []byte, i *Interface, p *Packet) []byte {
	protocol, kind, hardware := uint16(0), byte(toUs), i.Hardware
	var sender []byte
	if i.LinkType == Ethernet {
		if hardware == 0 {
			hardware = arphrdEthernet
		}
		if len(p.Data) >= 2*macLength {
			kind = receivers([macLength]byte(p.Data))
			sender = p.Data[macLength : 2*macLength]
		}
		protocol = ethernetProtocol(p.Data)
	} else {
		if hardware == 0 {
			hardware = arphrdNone
		}
		protocol = ipProtocol(p.Data)
	}
	if p.Direction == Outbound {
		kind = sentByUs
	}
	b = binary.BigEndian.AppendUint16(b, protocol)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, i.Kernel)
	b = binary.BigEndian.AppendUint16(b, hardware)
	b = append(b, kind, byte(len(sender)))
	b = append(b, sender...)
	return append(b, "\x00\x00\x00\x00\x00\x00\x00\x00"[len(sender):]...)
}

// receivers returns the packet type of what is sent to an address.
func receivers(mac [macLength]byte) byte {
	switch {
	case mac == [macLength]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		return toAll
	case mac[0]&1 != 0:
		return toSeveral
	}
	return toUs
}

// ethernetProtocol returns the protocol of what is behind an Ethernet header, as eth_type_trans of the kernel finds it. That of a
// VLAN tag is the tag's: the rest of it is behind the header.
func ethernetProtocol(frame []byte) uint16 {
	if len(frame) < ethernetHeader {
		return 0
	}
	protocol := binary.BigEndian.Uint16(frame[2*macLength:])
	switch {
	case protocol >= 0x600:
		return protocol
	case len(frame) >= ethernetHeader+2 && frame[ethernetHeader] == 0xff && frame[ethernetHeader+1] == 0xff:
		return novell
	}
	return llc
}

// ipProtocol returns the EtherType of an IP packet, or 0.
func ipProtocol(packet []byte) uint16 {
	if len(packet) == 0 {
		return 0
	}
	switch packet[0] >> 4 {
	case 4:
		return 0x0800
	case 6:
		return 0x86dd
	}
	return 0
}

// wholeRecords returns the size of the whole records at the start of b, which this package made, and the number of packets in
// them. A file's head stands before them if b is the start of one.
func wholeRecords(b []byte, start bool) (size int, packets uint64) {
	if start && len(b) < classicHead {
		return 0, 0
	}
	if start {
		size = classicHead
	}
	for len(b)-size >= recordHead {
		length := recordHead + int(le.Uint32(b[size+8:]))
		if length > len(b)-size {
			break
		}
		packets++
		size += length
	}
	return size, packets
}
