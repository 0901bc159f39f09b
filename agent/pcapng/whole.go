// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrFormat is the error of a file that is neither pcapng nor pcap.
var ErrFormat = errors.New("neither a pcapng nor a pcap file")

const (
	// maxBlock is what a block may have, in bytes: no program takes a packet of more than 128 MiB (Wireshark, D-Bus).
	maxBlock = 256 << 20

	blockOldPacket    = 2 // Packet Block, obsolete (appendix A)
	blockSimplePacket = 3 // section 4.4

	blockHead   = 8 // type and length
	blockLeast  = 12
	classicHead = 24
	recordHead  = 16
)

// magics are the first four bytes of the files that Whole reads: in the byte order of one machine, then of the other.
var magics = []string{"\x0a\x0d\x0d\x0a", "\xd4\xc3\xb2\xa1", "\xa1\xb2\xc3\xd4", "\x4d\x3c\xb2\xa1", "\xa1\xb2\x3c\x4d"}

// least is how many bytes a block of a type has at least, if programs are to read it.
var least = map[uint32]int{blockSection: 28, blockInterface: 20, blockOldPacket: 32, blockSimplePacket: 16, blockStatistics: 24, blockPacket: 32}

// Whole returns how many bytes at the start of a capture file are whole blocks, and how many packets those have. The file
// is pcapng, or pcap with times in microseconds or nanoseconds, of either byte order; its head counts as a block. What
// follows is torn, or no program would read on there. A file that has less than its head is 0 bytes.
//
// The error wraps ErrFormat where the first bytes are not those of a capture file, or is one of r. It needs the same little
// memory whatever the file says.
func Whole(r io.Reader) (size int64, packets uint64, err error) {
	s := scan{r: bufio.NewReaderSize(r, 64<<10), order: binary.LittleEndian}
	magic, err := s.r.Peek(4)
	if err != nil && err != io.EOF {
		return 0, 0, err
	}
	n := slices.IndexFunc(magics, func(m string) bool { return strings.HasPrefix(m, string(magic)) })
	switch {
	case n < 0:
		return 0, 0, ErrFormat
	case len(magic) < 4:
		return 0, 0, nil
	case n == 0:
		err = s.blocks()
	default:
		if n%2 == 0 {
			s.order = binary.BigEndian
		}
		err = s.records()
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return s.size, s.packets, err
}

// scan reads a file from block to block. Its methods return nil at what is no block, and io.EOF or io.ErrUnexpectedEOF at
// the end of the file.
type scan struct {
	r          *bufio.Reader
	order      binary.ByteOrder
	interfaces uint32 // of the section
	size       int64  // bytes of whole blocks
	packets    uint64
}

// blocks reads a pcapng file.
func (s *scan) blocks() error {
	for {
		head, err := s.r.Peek(blockHead)
		if err != nil {
			return err
		}
		kind := s.order.Uint32(head)
		if kind == blockSection { // the same in either byte order
			if err := s.section(); err != nil {
				return err
			}
		}
		length := s.order.Uint32(head[4:])
		if length < blockLeast || length > maxBlock || length%4 != 0 || int(length) < least[kind] {
			return nil
		}
		// The fixed fields: the longest are those of a packet.
		fixed, err := s.r.Peek(min(int(length), least[blockPacket]))
		if err != nil {
			return err
		}
		if !s.sound(kind, fixed, length) {
			return nil
		}
		if _, err := s.r.Discard(int(length) - 4); err != nil {
			return err
		}
		var again [4]byte
		if _, err := io.ReadFull(s.r, again[:]); err != nil {
			return err
		}
		if s.order.Uint32(again[:]) != length {
			return nil
		}
		s.count(kind, int64(length))
	}
}

// section learns the byte order of a section. Its error is ErrFormat if it is the first one and none.
func (s *scan) section() error {
	head, err := s.r.Peek(16)
	if err != nil {
		return err
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if order.Uint32(head[8:]) != byteOrderMagic {
		order = binary.BigEndian
	}
	if order.Uint32(head[8:]) != byteOrderMagic || order.Uint16(head[12:]) != 1 {
		if s.size > 0 {
			return io.EOF // as if the file ended before
		}
		return fmt.Errorf("%w: a section header without the byte order or the version 1", ErrFormat)
	}
	s.order = order
	return nil
}

// sound tells whether a block's fixed fields can be true.
func (s *scan) sound(kind uint32, fixed []byte, length uint32) bool {
	room := length - blockLeast
	switch kind {
	case blockPacket:
		return s.order.Uint32(fixed[8:]) < s.interfaces && s.order.Uint32(fixed[20:]) <= room-20
	case blockOldPacket:
		return uint32(s.order.Uint16(fixed[8:])) < s.interfaces && s.order.Uint32(fixed[20:]) <= room-20
	case blockSimplePacket:
		return s.interfaces > 0
	case blockStatistics:
		return s.order.Uint32(fixed[8:]) < s.interfaces
	}
	return true
}

func (s *scan) count(kind uint32, length int64) {
	s.size += length
	switch kind {
	case blockSection:
		s.interfaces = 0
	case blockInterface:
		s.interfaces++
	case blockPacket, blockOldPacket, blockSimplePacket:
		s.packets++
	}
}

// records reads a pcap file.
func (s *scan) records() error {
	head, err := s.r.Peek(classicHead)
	if err != nil {
		return err
	}
	if s.order.Uint16(head[4:]) != 2 {
		return fmt.Errorf("%w: the magic of pcap without the version 2", ErrFormat)
	}
	// libpcap takes longer packets than the head says, up to this.
	most := min(max(s.order.Uint32(head[16:]), maxData), maxBlock)
	if _, err := s.r.Discard(classicHead); err != nil {
		return err
	}
	s.size = classicHead
	for {
		head, err := s.r.Peek(recordHead)
		if err != nil {
			return err
		}
		length := s.order.Uint32(head[8:])
		// After a power cut the end of a file may be zeros, which would be packets of no bytes in 1970.
		if length > most || [recordHead]byte(head) == [recordHead]byte{} {
			return nil
		}
		if _, err := s.r.Discard(recordHead + int(length)); err != nil {
			return err
		}
		s.size += recordHead + int64(length)
		s.packets++
	}
}
