// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"
	"testing/iotest"
)

// pieces are a file's blocks, one after the other.
type pieces [][]byte

func (p pieces) file() []byte { return bytes.Join(p, nil) }

// rawBlock makes a block of a body.
func rawBlock(order binary.AppendByteOrder, kind uint32, body ...byte) []byte {
	length := uint32(len(body) + 12)
	b := order.AppendUint32(order.AppendUint32(nil, kind), length)
	return order.AppendUint32(append(b, body...), length)
}

// words makes bytes of 32-bit numbers.
func words(order binary.AppendByteOrder, numbers ...uint32) (b []byte) {
	for _, n := range numbers {
		b = order.AppendUint32(b, n)
	}
	return b
}

// sectionOf makes a section with an interface, each kind of packet, statistics and a block of an unknown type.
func sectionOf(order binary.AppendByteOrder) pieces {
	head := order.AppendUint16(order.AppendUint16(words(order, byteOrderMagic), 1), 0)
	old := append(order.AppendUint16(order.AppendUint16(nil, 0), 7), words(order, 0, 0, 4, 4)...)
	return pieces{
		rawBlock(order, blockSection, append(head, words(order, ^uint32(0), ^uint32(0))...)...),
		rawBlock(order, 0xbad, words(order, 1, 2, 3)...),
		rawBlock(order, blockInterface, append(order.AppendUint16(order.AppendUint16(nil, 101), 0), words(order, 0)...)...),
		rawBlock(order, blockPacket, append(words(order, 0, 0, 0, 32, 32), udp...)...),
		rawBlock(order, blockSimplePacket, append(words(order, 32), udp...)...),
		rawBlock(order, 0x80000bad),
		rawBlock(order, blockOldPacket, append(old, udp[:4]...)...),
		rawBlock(order, blockStatistics, words(order, 0, 0, 0)...),
	}
}

// classicOf makes a pcap file of three packets.
func classicOf(order binary.AppendByteOrder, magic uint32) pieces {
	head := order.AppendUint16(order.AppendUint16(words(order, magic), 2), 4)
	return pieces{
		append(head, words(order, 0, 0, 262144, 101)...),
		append(words(order, 1700000000, 5, 32, 32), udp...),
		words(order, 1700000000, 6, 0, 60),
		append(words(order, 1700000001, 7, 29, 32), udp[:29]...),
	}
}

func sampleBlocks(t *testing.T) (p pieces) {
	t.Helper()
	var whole bytes.Buffer
	if _, err := write(&whole, sample()); err != nil {
		t.Fatal(err)
	}
	for file := whole.Bytes(); len(file) > 0; file = file[len(p[len(p)-1]):] {
		p = append(p, file[:le.Uint32(file[4:])])
	}
	return p
}

// goodFiles are whole files by name.
func goodFiles(t *testing.T) map[string]pieces {
	little, big := sectionOf(binary.LittleEndian), sectionOf(binary.BigEndian)
	all := map[string]pieces{
		"ours":                       sampleBlocks(t),
		"little-endian":              little,
		"big-endian":                 big,
		"sections of either order":   append(append(append(pieces{}, big...), little...), big...),
		"a section and ours":         append(append(pieces{}, big...), sampleBlocks(t)...),
		"pcap, microseconds, little": classicOf(binary.LittleEndian, 0xa1b2c3d4),
		"pcap, microseconds, big":    classicOf(binary.BigEndian, 0xa1b2c3d4),
		"pcap, nanoseconds, little":  classicOf(binary.LittleEndian, 0xa1b23c4d),
		"pcap, nanoseconds, big":     classicOf(binary.BigEndian, 0xa1b23c4d),
	}
	return all
}

// isPacket tells what a piece of a file is, the n-th one.
func isPacket(p pieces, n int) bool {
	if first := le.Uint32(p[0]); first != blockSection {
		return n > 0
	}
	kind := le.Uint32(p[n])
	if kind > 0xffff { // of the other order
		kind = binary.BigEndian.Uint32(p[n])
	}
	return kind == blockPacket || kind == blockOldPacket || kind == blockSimplePacket
}

// TestWholePrefix cuts good files at each byte, and has something behind each block that is none.
func TestWholePrefix(t *testing.T) {
	for name, p := range goodFiles(t) {
		t.Run(name, func(t *testing.T) {
			file := p.file()
			size, packets, next := int64(0), uint64(0), 0
			for cut := range len(file) + 1 {
				for next < len(p) && int64(cut) == size+int64(len(p[next])) {
					size = int64(cut)
					if isPacket(p, next) {
						packets++
					}
					next++
				}
				n, count, err := Whole(iotest.HalfReader(bytes.NewReader(file[:cut])))
				if n != size || count != packets || err != nil {
					t.Fatalf("cut at %d: %d bytes, %d packets, %v; want %d and %d", cut, n, count, err, size, packets)
				}
				if int64(cut) != size || size == 0 {
					continue
				}
				for what, junk := range tails {
					n, count, err := Whole(bytes.NewReader(append(bytes.Clone(file[:cut]), junk...)))
					if n != size || count != packets || err != nil {
						t.Fatalf("%s behind %d: %d bytes, %d packets, %v; want %d packets", what, cut, n, count, err, packets)
					}
				}
			}
			if next != len(p) || packets < 3 {
				t.Fatalf("%d blocks of %d, %d packets", next, len(p), packets)
			}
		})
	}
}

// tails are what may stand behind the last whole block, of any format and byte order.
var tails = map[string][]byte{
	"zeros":                      make([]byte, 70_000),
	"ones":                       bytes.Repeat([]byte{0xff}, 70_000),
	"a section without an order": append([]byte("\x0a\x0d\x0d\x0a\x1c\x00\x00\x1c"), bytes.Repeat([]byte{0xff}, 100)...),
}

// TestWholeRefuses has blocks whose lengths agree, and which no program would take.
func TestWholeRefuses(t *testing.T) {
	o := binary.LittleEndian
	head := sectionOf(o)[:3] // a section with one interface
	for rule, b := range map[string][]byte{
		"a packet of an interface that is not described":      rawBlock(o, blockPacket, words(o, 1, 0, 0, 0, 0)...),
		"an old packet of an interface that is not described": rawBlock(o, blockOldPacket, words(o, 1, 0, 0, 0, 0)...),
		"statistics of an interface that is not described":    rawBlock(o, blockStatistics, words(o, 1, 0, 0)...),
		"a packet longer than its block":                      rawBlock(o, blockPacket, words(o, 0, 0, 0, 1, 1)...),
		"an old packet longer than its block":                 rawBlock(o, blockOldPacket, words(o, 0, 0, 0, 1, 1)...),
		"a packet too short for its fields":                   rawBlock(o, blockPacket, words(o, 0, 0, 0, 0)...),
		"an interface too short for its fields":               rawBlock(o, blockInterface, words(o, 0)...),
		"statistics too short for their fields":               rawBlock(o, blockStatistics, words(o, 0, 0)...),
		"a section too short for its fields":                  rawBlock(o, blockSection, words(o, byteOrderMagic, 1, 0)...),
		"a length that is no multiple of 4":                   append(words(o, 0xbad, 13), 0, 13, 0, 0, 0),
		"lengths that differ":                                 words(o, 0xbad, 16, 0, 20),
	} {
		t.Run(rule, func(t *testing.T) {
			file := append(head.file(), b...)
			file = append(file, sectionOf(o).file()...) // that is cut off, too
			if n, packets, err := Whole(bytes.NewReader(file)); n != int64(len(head.file())) || packets != 0 || err != nil {
				t.Errorf("%d bytes of %d, %d packets, %v; want %d", n, len(file), packets, err, len(head.file()))
			}
		})
	}
	twice := append(append(pieces{}, head...), head[0], rawBlock(o, blockPacket, words(o, 0, 0, 0, 0, 0)...))
	if n, _, err := Whole(bytes.NewReader(twice.file())); n != int64(len(head.file())+28) || err != nil {
		t.Errorf("a packet of an interface of the section before: %d bytes, %v", n, err)
	}
	if n, _, err := Whole(bytes.NewReader(append(sectionOf(o)[0], rawBlock(o, blockSimplePacket, 0, 0, 0, 0)...))); n != 28 || err != nil {
		t.Errorf("a simple packet without an interface: %d bytes, %v", n, err)
	}
}

func TestWholeFormat(t *testing.T) {
	classic := classicOf(binary.LittleEndian, 0xa1b23c4d)[0]
	for what, file := range map[string][]byte{
		"text":                       []byte("GET / HTTP/1.1"),
		"one letter":                 []byte("G"),
		"zeros":                      make([]byte, 100),
		"a section without an order": append([]byte("\x0a\x0d\x0d\x0a"), make([]byte, 100)...),
		"a section of version 2":     rawBlock(le, blockSection, words(le, byteOrderMagic, 2, ^uint32(0), ^uint32(0))...),
		"pcap of version 3":          append(append(bytes.Clone(classic[:4]), 3), classic[5:]...),
		"the other pcap magic":       append([]byte("\x34\xcd\xb2\xa1"), classic[4:]...),
	} {
		if n, packets, err := Whole(bytes.NewReader(file)); !errors.Is(err, ErrFormat) || n != 0 || packets != 0 {
			t.Errorf("%s: %d bytes, %d packets, %v", what, n, packets, err)
		}
	}
	broken := errors.New("the disk is broken")
	for name, p := range goodFiles(t) {
		for _, cut := range []int{0, 3, len(p[0]), len(p[0]) + len(p[1]) + 9, len(p.file())} {
			if _, _, err := Whole(io.MultiReader(bytes.NewReader(p.file()[:cut]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
				t.Errorf("%s, an error at %d: %v", name, cut, err)
			}
		}
	}
}

// endless is so many bytes, which stand nowhere.
type endless struct{ left int64 }

func (e *endless) Read(b []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(b)), e.left)
	e.left -= n
	clear(b[:n])
	return int(n), nil
}

// TestWholeMemory reads blocks as long as they can be, and some that say they are longer.
func TestWholeMemory(t *testing.T) {
	o := binary.LittleEndian
	head := sectionOf(o)[:3].file()
	for _, tt := range []struct {
		length uint32
		whole  bool
	}{{maxBlock, true}, {maxBlock + 4, false}, {1<<32 - 4, false}} {
		t.Run(fmt.Sprint(tt.length), func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n, _, err := Whole(io.MultiReader(bytes.NewReader(head), bytes.NewReader(words(o, 0xbad, tt.length)),
				&endless{int64(tt.length) - 12}, bytes.NewReader(words(o, tt.length))))
			runtime.ReadMemStats(&after)
			want := int64(len(head))
			if tt.whole {
				want += int64(tt.length)
			}
			if n != want || err != nil {
				t.Errorf("%d bytes, %v; want %d", n, err, want)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
				t.Errorf("%d bytes of memory", used)
			}
		})
	}
}

// FuzzWhole checks that what is whole stays so when the rest is cut off, and that a shorter file has no more.
func FuzzWhole(f *testing.F) {
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		f.Add(sectionOf(order).file(), 40)
		f.Add(classicOf(order, 0xa1b2c3d4).file(), 40)
		f.Add(classicOf(order, 0xa1b23c4d).file(), 90)
	}
	f.Fuzz(func(t *testing.T, file []byte, cut int) {
		size, packets, err := Whole(bytes.NewReader(file))
		if err != nil && (!errors.Is(err, ErrFormat) || size != 0 || packets != 0) {
			t.Fatalf("%d bytes, %d packets, %v", size, packets, err)
		}
		if size < 0 || size > int64(len(file)) || packets > uint64(size)/blockLeast {
			t.Fatalf("%d bytes of %d, %d packets", size, len(file), packets)
		}
		if n, p, err := Whole(bytes.NewReader(file[:size])); n != size || p != packets || err != nil {
			t.Fatalf("%d bytes and %d packets of the whole, want %d and %d: %v", n, p, size, packets, err)
		}
		cut = max(0, min(cut, len(file)))
		if n, p, _ := Whole(bytes.NewReader(file[:cut])); n > size || p > packets || cut >= int(size) && n != size {
			t.Fatalf("cut at %d: %d bytes, %d packets; the whole has %d and %d", cut, n, p, size, packets)
		}
	})
}
