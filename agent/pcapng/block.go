// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf8"
)

var le = binary.LittleEndian

// Block types (section 11.1) and option codes (sections 3.5, 4.1, 4.2, 4.3, 4.6).
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6
	blockSecrets    = 10

	byteOrderMagic = 0x1a2b3c4d

	optEnd     = 0
	optComment = 1

	shbHardware    = 2
	shbOS          = 3
	shbApplication = 4

	ifName        = 2
	ifDescription = 3
	ifTSResol     = 9
	ifFilter      = 11
	ifOS          = 12

	epbFlags = 2

	isbStart     = 2
	isbEnd       = 3
	isbReceived  = 4
	isbDropped   = 5
	isbAccepted  = 6
	isbOSDropped = 7
	isbDelivered = 8

	maxOption = 0xffff // bytes of an option's value: its length is 16 bits
)

// appendSection appends a section header block of unknown length (section 4.1).
func appendSection(b []byte, s Section) []byte {
	b, start := begin(b, blockSection)
	b = le.AppendUint32(b, byteOrderMagic)
	b = le.AppendUint16(b, 1) // version 1.0
	b = le.AppendUint16(b, 0)
	b = le.AppendUint64(b, ^uint64(0))
	options := len(b)
	b = appendText(b, shbHardware, s.Hardware)
	b = appendText(b, shbOS, s.OS)
	b = appendText(b, shbApplication, s.Application)
	b = appendText(b, optComment, s.Comment)
	return end(b, start, options)
}

// appendInterface appends an interface description block (section 4.2). Its times are in nanoseconds.
func appendInterface(b []byte, i *Interface) []byte {
	b, start := begin(b, blockInterface)
	b = le.AppendUint16(b, uint16(i.LinkType))
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, i.Snaplen)
	options := len(b)
	b = appendText(b, ifName, i.Name)
	b = appendText(b, ifDescription, i.Description)
	if i.Filter != "" {
		// The leading byte 0 says that a libpcap expression follows.
		b = appendOption(b, ifFilter, "\x00"+limit(i.Filter, maxOption-1))
	}
	b = appendText(b, ifOS, i.OS)
	b = appendOption(b, ifTSResol, "\x09")
	return end(b, start, options)
}

// packetHead is the bytes of an enhanced packet block before its data, and packetTail those that it has behind it without comments.
const (
	packetHead = 28
	packetTail = 16
)

// appendPacket appends an enhanced packet block of interface id (section 4.3) with those comments.
func appendPacket(b []byte, id uint32, p *Packet, comments []string) []byte {
	data := p.Data[:min(len(p.Data), maxData)]
	start, options := len(b), len(b)+packetHead+(len(data)+3)&^3
	b = slices.Grow(b, options+packetTail-start)[:options]
	le.PutUint32(b[options-4:], 0) // what pads the data, which covers the rest of it
	head := (*[packetHead]byte)(b[start:])
	le.PutUint32(head[0:], blockPacket)
	le.PutUint32(head[8:], id)
	le.PutUint32(head[12:], uint32(p.Time>>32))
	le.PutUint32(head[16:], uint32(p.Time))
	le.PutUint32(head[20:], uint32(len(data)))
	le.PutUint32(head[24:], max(p.Length, uint32(len(p.Data))))
	copy(b[start+packetHead:], data)
	if p.Direction != DirectionUnknown {
		b = le.AppendUint32(b, epbFlags|4<<16)
		b = le.AppendUint32(b, uint32(p.Direction&3))
	}
	for _, comment := range comments {
		b = appendText(b, optComment, comment)
	}
	return end(b, start, options)
}

// appendStatistics appends an interface statistics block of interface id (section 4.6).
func appendStatistics(b []byte, id uint32, s *Statistics) []byte {
	b, start := begin(b, blockStatistics)
	b = le.AppendUint32(b, id)
	b = appendTime(b, s.Time)
	options := len(b)
	b = appendInstant(b, isbStart, s.Start)
	b = appendInstant(b, isbEnd, s.End)
	b = appendCounter(b, isbReceived, s.Received)
	// dumpcap puts the kernel's drops here, and it is the one drop counter that capinfos and Wireshark show.
	b = appendCounter(b, isbDropped, s.Dropped)
	b = appendCounter(b, isbAccepted, s.Accepted)
	b = appendCounter(b, isbOSDropped, s.Dropped)
	b = appendCounter(b, isbDelivered, s.Delivered)
	b = appendText(b, optComment, s.Comment)
	return end(b, start, options)
}

// begin appends the head of a block, whose length end fills in, and returns where the block starts.
func begin(b []byte, kind uint32) (buf []byte, start int) {
	start = len(b)
	b = le.AppendUint32(b, kind)
	return le.AppendUint32(b, 0), start
}

// end closes the options, if there are any since the offset options, and the block at start.
func end(b []byte, start, options int) []byte {
	if len(b) > options {
		b = le.AppendUint32(b, optEnd)
	}
	length := uint32(len(b) - start + 4)
	le.PutUint32(b[start+4:], length)
	return le.AppendUint32(b, length)
}

// appendTime appends a 64-bit time with its high half first, whatever the byte order.
func appendTime(b []byte, ns int64) []byte {
	b = le.AppendUint32(b, uint32(ns>>32))
	return le.AppendUint32(b, uint32(ns))
}

// appendInstant appends an option that holds a time, unless it is 0.
func appendInstant(b []byte, code uint16, ns int64) []byte {
	if ns == 0 {
		return b
	}
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, 8)
	return appendTime(b, ns)
}

// appendCounter appends an option that holds a 64-bit number.
func appendCounter(b []byte, code uint16, n uint64) []byte {
	b = le.AppendUint16(b, code)
	b = le.AppendUint16(b, 8)
	return le.AppendUint64(b, n)
}

// appendText appends an option that holds UTF-8 text, unless it is empty.
func appendText(b []byte, code uint16, s string) []byte {
	if s == "" {
		return b
	}
	return appendOption(b, code, limit(s, maxOption))
}

// appendOption appends an option of at most maxOption bytes.
func appendOption(b []byte, code uint16, value string) []byte {
	b = le.AppendUint32(b, uint32(code)|uint32(len(value))<<16)
	return pad(append(b, value...))
}

// pad fills b up to a multiple of four bytes. Blocks start at one, so b may hold several.
func pad(b []byte) []byte {
	return append(b, 0, 0, 0)[:(len(b)+3)&^3]
}

// limit returns s as valid UTF-8 of at most n bytes, cut between characters. It allocates only if s is not UTF-8.
func limit(s string, n int) string {
	if !utf8.ValidString(s) { // which takes ASCII by words
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if len(s) <= n {
		return s
	}
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// wholeBlocks returns the size of the whole blocks at the start of b, which this package made, and the number of
// packets and interfaces in them.
func wholeBlocks(b []byte) (size int, packets uint64, interfaces int) {
	for len(b)-size >= 12 {
		length := int(le.Uint32(b[size+4:]))
		if length > len(b)-size {
			break
		}
		switch le.Uint32(b[size:]) {
		case blockPacket:
			packets++
		case blockInterface:
			interfaces++
		}
		size += length
	}
	return size, packets, interfaces
}
