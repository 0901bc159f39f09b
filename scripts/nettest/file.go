// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is one of a capture file.
type Packet struct {
	Time      int64 // ns
	Length    int   // original, bytes
	Data      string
	Interface int    // its number in the file
	Direction int    // 0 unknown, 1 in, 2 out
	Comment   string // the last
	Comments  []string
}

// Interface is one of a capture file.
type Interface struct {
	Name     string
	Filter   string
	LinkType int
	Snaplen  int
	// Counters of its last statistics block by option code; nil without a block.
	Statistics map[uint16]uint64
	Comments   []string // of its statistics blocks
	Commented  []int64  // their times, ns
}

// File is what a capture file holds. Its last block may still be missing: captures are read while they grow.
type File struct {
	Interfaces []Interface
	Packets    []Packet
	Secrets    []Secrets
}

// Secrets is a decryption secrets block of a capture file.
type Secrets struct {
	Type  uint32
	Text  string
	Ahead int // the packets ahead of it
}

var le = binary.LittleEndian

// Read reads a little-endian pcap or pcapng file.
func Read(path string) (File, error) {
	b, err := os.ReadFile(path)
	if err != nil || len(b) < 24 {
		return File{}, err
	}
	switch magic := le.Uint32(b); magic {
	case 0xa1b2c3d4:
		return pcap(b, 1000), nil
	case 0xa1b23c4d:
		return pcap(b, 1), nil
	case 0x0a0d0d0a:
		f, err := pcapng(b)
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return f, err
	default:
		return File{}, fmt.Errorf("%s: magic number %#x", path, magic)
	}
}

func pcap(b []byte, unit int64) (f File) {
	f.Interfaces = []Interface{{Snaplen: int(le.Uint32(b[16:])), LinkType: int(le.Uint32(b[20:]))}}
	for b = b[24:]; len(b) >= 16; {
		caplen := int(le.Uint32(b[8:]))
		if len(b) < 16+caplen {
			break
		}
		f.Packets = append(f.Packets, Packet{
			Time:   int64(le.Uint32(b))*1e9 + int64(le.Uint32(b[4:]))*unit,
			Length: int(le.Uint32(b[12:])),
			Data:   string(b[16:][:caplen]),
		})
		b = b[16+caplen:]
	}
	return f
}

func pcapng(b []byte) (f File, err error) {
	for len(b) >= 12 {
		size := int(le.Uint32(b[4:]))
		if size < 12 || size%4 != 0 {
			return f, fmt.Errorf("block of %d bytes", size)
		}
		if size > len(b) {
			break
		}
		if int(le.Uint32(b[size-4:])) != size {
			return f, errors.New("a block's two lengths differ")
		}
		body := b[8 : size-4]
		switch le.Uint32(b) {
		case 1:
			f.Interfaces = append(f.Interfaces, describe(body))
		case 5:
			i := &f.Interfaces[le.Uint32(body)]
			i.Statistics = map[uint16]uint64{}
			for code, value := range options(body[12:]) {
				switch {
				case code == 1:
					i.Comments = append(i.Comments, value)
					i.Commented = append(i.Commented, int64(uint64(le.Uint32(body[4:]))<<32|uint64(le.Uint32(body[8:]))))
				case len(value) == 8:
					i.Statistics[code] = le.Uint64([]byte(value))
				}
			}
		case 6:
			f.Packets = append(f.Packets, enhanced(body))
		case 10:
			f.Secrets = append(f.Secrets, Secrets{le.Uint32(body), string(body[8:][:le.Uint32(body[4:])]), len(f.Packets)})
		}
		b = b[size:]
	}
	return f, nil
}

func describe(body []byte) Interface {
	o := options(body[8:])
	i := Interface{LinkType: int(le.Uint16(body)), Snaplen: int(le.Uint32(body[4:])), Name: o[2]}
	if o[11] != "" {
		i.Filter = o[11][1:]
	}
	return i
}

func enhanced(body []byte) Packet {
	caplen := int(le.Uint32(body[12:]))
	p := Packet{
		Interface: int(le.Uint32(body)),
		Time:      int64(uint64(le.Uint32(body[4:]))<<32 | uint64(le.Uint32(body[8:]))),
		Length:    int(le.Uint32(body[16:])),
		Data:      string(body[20:][:caplen]),
	}
	o := options(body[20+(caplen+3)&^3:])
	if flags := o[2]; len(flags) == 4 {
		p.Direction = int(flags[0] & 3)
	}
	p.Comment = o[1]
	each(body[20+(caplen+3)&^3:], func(code uint16, value string) {
		if code == 1 {
			p.Comments = append(p.Comments, value)
		}
	})
	return p
}

// options returns the options of a block by code, the last of each.
func options(b []byte) map[uint16]string {
	o := map[uint16]string{}
	each(b, func(code uint16, value string) { o[code] = value })
	return o
}

// each gives the options of a block in their order.
func each(b []byte, f func(code uint16, value string)) {
	for len(b) >= 4 {
		code, size := le.Uint16(b), int(le.Uint16(b[2:]))
		if code == 0 {
			break
		}
		f(code, string(b[4:][:size]))
		b = b[4+(size+3)&^3:]
	}
}

// Await reads the file as it grows until it holds a packet that found takes.
func Await(t testing.TB, path string, found func(Packet) bool) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatalf("inotify: %v", err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		t.Fatalf("watch %s: %v", path, err)
	}
	deadline := time.Now().Add(Patience)
	for {
		f, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Packets {
			if found(p) {
				return
			}
		}
		left := time.Until(deadline)
		if left <= 0 {
			t.Fatalf("%s has %d packets, and not the one that is waited for", path, len(f.Packets))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			_, err = unix.Read(fd, make([]byte, 64<<10))
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatalf("wait for %s: %v", path, err)
		}
	}
}
