// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bufio"
	"compress/gzip"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"

	"droidtap/agent/pcapng"
)

// frames are the parts of a compressed file that can be read without those before them.
type frames interface {
	// next writes the content of the next frame to w and returns where in the file it ends. The error is io.EOF at the end.
	next(w io.Writer) (end int64, err error)
	close()
}

// gzipMembers are those of RFC 1952.
type gzipMembers struct {
	in *counted
	z  gzip.Reader
}

// counted counts what was read. gzip reads no byte too many from an io.ByteReader.
type counted struct {
	*bufio.Reader
	n int64
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	return n, err
}

func (c *counted) ReadByte() (byte, error) {
	b, err := c.Reader.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (g *gzipMembers) next(w io.Writer) (int64, error) {
	if err := g.z.Reset(g.in); err != nil {
		return 0, err
	}
	g.z.Multistream(false)
	if _, err := io.Copy(w, &g.z); err != nil {
		return 0, err
	}
	return g.in.n, nil
}

func (*gzipMembers) close() {}

// zstdFrames are those of RFC 8878.
type zstdFrames struct {
	file      io.ReaderAt
	at, size  int64
	decoder   *zstd.Decoder
	beginning [zstd.HeaderMaxSize]byte
}

var errTorn = errors.New("torn")

func (z *zstdFrames) next(w io.Writer) (int64, error) {
	if z.at == z.size {
		return 0, io.EOF
	}
	end, empty, err := z.end()
	if err != nil {
		return 0, err
	}
	if !empty {
		if err := z.decoder.Reset(io.NewSectionReader(z.file, z.at, end-z.at)); err != nil {
			return 0, err
		}
		if _, err := io.Copy(w, z.decoder); err != nil {
			return 0, err
		}
	}
	z.at = end
	return end, nil
}

// end returns where the frame ends, by what its head and those of its blocks say, and whether it is one without content.
func (z *zstdFrames) end() (end int64, empty bool, err error) {
	n, err := z.file.ReadAt(z.beginning[:min(int64(len(z.beginning)), z.size-z.at)], z.at)
	if err != nil {
		return 0, false, err
	}
	var head zstd.Header
	if err := head.Decode(z.beginning[:n]); err != nil {
		return 0, false, err
	}
	end = z.at + int64(head.HeaderSize)
	if head.Skippable {
		end += int64(head.SkippableSize)
		if end > z.size {
			return 0, false, errTorn
		}
		return end, true, nil
	}
	const single = 1 // RFC 8878, 3.1.1.2.2: RLE_Block
	for last := false; !last; {
		var b [3]byte
		if _, err := z.file.ReadAt(b[:], end); err != nil {
			return 0, false, err
		}
		block := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
		last = block&1 != 0
		size := block >> 3
		if block>>1&3 == single {
			size = 1
		}
		end += 3 + size
	}
	if head.HasCheckSum {
		end += 4
	}
	if end > z.size {
		return 0, false, errTorn
	}
	return end, false, nil
}

func (z *zstdFrames) close() { z.decoder.Close() }

// newFrames returns nil, nil for a file that is not compressed. Its first bytes are head.
func newFrames(head []byte, file io.ReaderAt, size int64) (frames, error) {
	switch string(head[:min(len(head), 4)]) {
	case "\x28\xb5\x2f\xfd":
		// More than a window of the best compression that is usual is not worth its memory.
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, err
		}
		return &zstdFrames{file: file, size: size, decoder: d}, nil
	}
	if len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b {
		return &gzipMembers{in: &counted{Reader: bufio.NewReaderSize(io.NewSectionReader(file, 0, size), 64<<10)}}, nil
	}
	return nil, nil
}

// boundary is where a frame ends: in the file, and in the content of all frames.
type boundary struct{ file, content int64 }

// content is what the frames of a file hold.
type content struct {
	ends    []boundary
	whole   int64 // bytes of whole blocks, of which some may be in a frame that is torn
	packets uint64
}

// read reads frames, of which the content after most bytes counts as missing.
func read(f frames, most int64) (c content, err error) {
	defer f.close()
	r, w := io.Pipe()
	sized := &sized{w: w, left: most}
	go func() {
		for {
			end, err := f.next(sized)
			if err != nil {
				w.Close()
				return
			}
			c.ends = append(c.ends, boundary{end, sized.n})
		}
	}()
	c.whole, c.packets, err = pcapng.Whole(r)
	_, rest := io.Copy(io.Discard, r) // what no block begins with
	return c, errors.Join(err, rest)
}

// sized writes the first bytes and counts all.
type sized struct {
	w       io.Writer
	n, left int64
}

func (s *sized) Write(b []byte) (int, error) {
	s.n += int64(len(b))
	head := b[:min(int64(len(b)), s.left)]
	s.left -= int64(len(head))
	if len(head) == 0 { // a pipe hands it on, and package bufio gives up on a reader that returns nothing again and again
		return len(b), nil
	}
	if _, err := s.w.Write(head); err != nil {
		return 0, err
	}
	return len(b), nil
}
