// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"
)

// full is an output with room for some bytes.
type full struct {
	bytes.Buffer
	room  int
	err   error
	calls int // after the first failure
}

func (f *full) Write(b []byte) (int, error) {
	if f.room < 0 {
		f.calls++
	}
	if n := f.room - f.Len(); n < len(b) {
		f.Buffer.Write(b[:max(n, 0)])
		f.room = -1
		return max(n, 0), f.err
	}
	return f.Buffer.Write(b)
}

// truncated is a full that can be cut back, as a regular file can.
type truncated struct{ full }

func (f *truncated) Truncate(n int64) error {
	f.Buffer.Truncate(int(n))
	return nil
}

// formats makes a Writer of each.
var formats = map[string]func(io.Writer) *Writer{
	"pcapng": func(out io.Writer) *Writer { return NewWriter(out, section) },
	"pcap":   func(out io.Writer) *Writer { return NewClassic(out, true) },
}

// fileOf returns blocks in a format.
func fileOf(t *testing.T, newWriter func(io.Writer) *Writer, blocks []Block) []byte {
	t.Helper()
	var whole bytes.Buffer
	w := newWriter(&whole)
	for _, b := range blocks {
		if err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return whole.Bytes()
}

// TestFailureAtEveryByte lets the output fail after every number of bytes of a small file, written in one piece and
// block by block: the whole blocks stay.
func TestFailureAtEveryByte(t *testing.T) {
	for name, newWriter := range formats {
		t.Run(name, func(t *testing.T) {
			whole := fileOf(t, newWriter, sample())
			for room := range len(whole) {
				want, packets, err := Whole(bytes.NewReader(whole[:room]))
				if err != nil {
					t.Fatal(err)
				}
				for _, step := range []bool{false, true} {
					out := &truncated{full{room: room, err: syscall.ENOSPC}}
					w := newWriter(out)
					var err error
					for _, b := range sample() {
						if err = w.Write(b); err == nil && step {
							err = w.Flush()
						}
						if err != nil {
							break
						}
					}
					if err == nil {
						err = w.Flush()
					}
					if !errors.Is(err, syscall.ENOSPC) {
						t.Fatalf("room for %d: error %v", room, err)
					}
					checkStopped(t, w, &out.full, err)
					if sum := w.Delivered(7) + w.Delivered(12); w.classic == nil && sum != packets {
						t.Fatalf("room for %d: %d packets delivered, want %d", room, sum, packets)
					}
					if !bytes.Equal(whole[:want], out.Bytes()) || w.Packets() != packets {
						t.Fatalf("room for %d: %d bytes, Packets() is %d; want %d bytes with %d packets", room, out.Len(), w.Packets(), want, packets)
					}
				}
			}
		})
	}
}

// A packet of a whole second has zeros where a block of pcapng would have its length.
func TestFailureAtAWholeSecond(t *testing.T) {
	for name, newWriter := range formats {
		t.Run(name, func(t *testing.T) {
			out := &truncated{full{room: 10_000, err: syscall.ENOSPC}}
			w := newWriter(out)
			if err := errors.Join(w.Write(&Interface{Index: 7, LinkType: Raw}), w.Flush()); err != nil {
				t.Fatal(err)
			}
			size := w.Size()
			packet := &Packet{Interface: 7, Time: 1795356192e9, Data: udp}
			if err := errors.Join(w.Write(packet), w.Write(packet)); err != nil {
				t.Fatal(err)
			}
			each := (w.Size() - size) / 2
			out.room = int(size + each + 20)
			err := w.Flush()
			if !errors.Is(err, syscall.ENOSPC) || int64(out.Len()) != size+each || w.Packets() != 1 {
				t.Fatalf("%d bytes, %d packets, %v; want %d bytes", out.Len(), w.Packets(), err, size+each)
			}
			checkStopped(t, w, &out.full, err)
		})
	}
}

// checkStopped checks that w repeats its error and leaves the output alone.
func checkStopped(t *testing.T, w *Writer, out *full, first error) {
	t.Helper()
	size := out.Len()
	if err := w.Write(&Interface{Index: 99}); err != first {
		t.Fatalf("Write after %v: %v", first, err)
	}
	if err := w.Flush(); err != first {
		t.Fatalf("Flush after %v: %v", first, err)
	}
	if out.calls != 0 || out.Len() != size || len(w.buf) != 0 {
		t.Fatalf("%d writes of %d bytes after %v; %d bytes wait", out.calls, out.Len()-size, first, len(w.buf))
	}
}

func TestFailureOfAPipe(t *testing.T) {
	out := &full{room: 700, err: syscall.EPIPE}
	w, err := write(out, sample())
	if !errors.Is(err, syscall.EPIPE) {
		t.Fatalf("error %v", err)
	}
	checkStopped(t, w, out, err)
	if out.Len() != 700 || w.Packets() == 0 || w.Packets() == 7 {
		t.Errorf("%d bytes and %d packets out", out.Len(), w.Packets())
	}
}

// short breaks the contract of io.Writer.
type short struct{}

func (short) Write(b []byte) (int, error) { return len(b) / 2, nil }

// stuck fails to be cut back.
type stuck struct{ full }

func (*stuck) Truncate(int64) error { return syscall.EIO }

func TestFailuresAreAllReported(t *testing.T) {
	tests := []struct {
		name string
		out  io.Writer
		want []error
	}{
		{"a short write without an error", short{}, []error{io.ErrShortWrite}},
		{"a file that cannot be cut back", &stuck{full{room: 30, err: syscall.ENOSPC}}, []error{syscall.ENOSPC, syscall.EIO}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := write(tt.out, sample())
			for _, want := range tt.want {
				if !errors.Is(err, want) {
					t.Errorf("error %v, want %v", err, want)
				}
			}
		})
	}
}
