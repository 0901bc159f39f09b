// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// largest is what a packet or a block may have, in bytes: nobody here writes more.
const largest = 1 << 20

var le = binary.LittleEndian

// countFiles reads all capture files of a directory: their packets and their bytes.
func countFiles(dir string) (packets, bytes uint64, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return 0, 0, err
	}
	for _, name := range names {
		n, size, err := countFile(name)
		if err != nil {
			return 0, 0, fmt.Errorf("read %s: %w", name, err)
		}
		packets, bytes = packets+n, bytes+size
	}
	return packets, bytes, nil
}

// holds tells if there are so many packets in the files of a directory, which may still grow: the end of one may be torn.
func holds(dir string, packets uint64) bool {
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return false
	}
	var there uint64
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return false
		}
		n, _ := countPackets(f)
		_ = f.Close()
		there += n
	}
	return there >= packets
}

func countFile(name string) (packets, bytes uint64, err error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	if packets, err = countPackets(f); err != nil {
		return 0, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	return packets, uint64(info.Size()), nil
}

// countPackets counts the packets of a little-endian pcap or pcapng file (draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng).
// It is strict: what ends within a block, or has a length that cannot be, is an error. Of an empty file there are none.
func countPackets(r io.Reader) (uint64, error) {
	b := bufio.NewReaderSize(r, largest)
	magic, err := b.Peek(4)
	if err != nil {
		if len(magic) == 0 && errors.Is(err, io.EOF) {
			return 0, nil
		}
		return 0, fmt.Errorf("magic number: %w", err)
	}
	switch m := le.Uint32(magic); m {
	case 0xa1b2c3d4, 0xa1b23c4d:
		return countRecords(b)
	case 0x0a0d0d0a:
		return countBlocks(b)
	default:
		return 0, fmt.Errorf("magic number %#x", m)
	}
}

// countRecords counts those of pcap.
func countRecords(b *bufio.Reader) (n uint64, err error) {
	if _, err := b.Discard(24); err != nil {
		return 0, fmt.Errorf("header: %w", err)
	}
	for ; ; n++ {
		head, err := b.Peek(16)
		if len(head) == 0 && errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("packet %d: %w", n, err)
		}
		caplen, length := le.Uint32(head[8:]), le.Uint32(head[12:])
		if caplen > largest || caplen > length {
			return n, fmt.Errorf("packet %d: %d bytes of %d", n, caplen, length)
		}
		if _, err := b.Discard(16 + int(caplen)); err != nil {
			return n, fmt.Errorf("packet %d: %w", n, err)
		}
	}
}

// Block types of pcapng.
const (
	interfaceDescription = 1
	enhancedPacket       = 6
)

// countBlocks counts the enhanced packet blocks of pcapng.
func countBlocks(b *bufio.Reader) (n uint64, err error) {
	var interfaces uint32
	for {
		head, err := b.Peek(8)
		if len(head) == 0 && errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, fmt.Errorf("behind packet %d: %w", n, err)
		}
		kind, size := le.Uint32(head), le.Uint32(head[4:])
		if size < 12 || size%4 != 0 || size > largest {
			return n, fmt.Errorf("behind packet %d: block of %d bytes", n, size)
		}
		block, err := b.Peek(int(size))
		if err != nil {
			return n, fmt.Errorf("behind packet %d: block of %d bytes: %w", n, size, err)
		}
		if le.Uint32(block[size-4:]) != size {
			return n, fmt.Errorf("behind packet %d: a block's two lengths differ", n)
		}
		switch kind {
		case interfaceDescription:
			interfaces++
		case enhancedPacket:
			if err := checkPacket(block, interfaces); err != nil {
				return n, fmt.Errorf("packet %d: %w", n, err)
			}
			n++
		}
		if _, err := b.Discard(int(size)); err != nil {
			return n, err
		}
	}
}

// checkPacket is for a whole enhanced packet block, behind so many interface descriptions.
func checkPacket(block []byte, interfaces uint32) error {
	const header, trailer = 28, 4
	if len(block) < header+trailer {
		return fmt.Errorf("block of %d bytes", len(block))
	}
	if i := le.Uint32(block[8:]); i >= interfaces {
		return fmt.Errorf("interface %d of %d", i, interfaces)
	}
	caplen, length := le.Uint32(block[20:]), le.Uint32(block[24:])
	if caplen > length || caplen > uint32(len(block)-header-trailer) {
		return fmt.Errorf("%d bytes of %d in a block of %d", caplen, length, len(block))
	}
	return nil
}
