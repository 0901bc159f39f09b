// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"compress/gzip"
	"errors"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"

	"droidtap/agent/plugin"
)

// The values of --compress, and how the names of such files end.
const (
	compressNone = "none"
	compressZstd = "zstd"
	compressGzip = "gzip"
)

var suffixes = map[string]string{compressZstd: ".zst", compressGzip: ".gz"}

// suffixOf returns how name ends if that tells of compression, and which.
func suffixOf(name string) (suffix, method string) {
	for method, suffix := range suffixes {
		if strings.HasSuffix(path.Base(name), suffix) {
			return suffix, method
		}
	}
	return "", compressNone
}

// newSqueezer returns what appends the frame (of zstd) or the member (of gzip) that holds a text, with its checksum. It is
// nil for none.
func newSqueezer(method string) (func(to, text []byte) ([]byte, error), error) {
	switch method {
	case compressZstd:
		// The window holds what the writer writes at once: each frame stands alone.
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithWindowSize(512<<10), zstd.WithLowerEncoderMem(true))
		if err != nil {
			return nil, err
		}
		return func(to, text []byte) ([]byte, error) { return e.EncodeAll(text, to), nil }, nil
	case compressGzip:
		var out bytes.Buffer
		z, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		return func(to, text []byte) ([]byte, error) {
			out.Reset()
			z.Reset(&out)
			_, err := z.Write(text)
			err = errors.Join(err, z.Close())
			return append(to, out.Bytes()...), err
		}, nil
	}
	return nil, nil
}

// compressed makes one frame of each write: whoever reads the file while it grows, or after a crash, has all that was
// written until then.
type compressed struct {
	plugin.File
	squeeze func(to, text []byte) ([]byte, error)
	buf     []byte
	size    int64 // bytes of whole frames
}

// Write writes all of b or nothing.
func (c *compressed) Write(b []byte) (n int, err error) {
	if c.buf, err = c.squeeze(c.buf[:0], b); err != nil {
		return 0, err
	}
	n, err = c.File.Write(c.buf)
	if err != nil {
		if cut, ok := c.File.(interface{ Truncate(int64) error }); ok && n > 0 {
			err = errors.Join(err, cut.Truncate(c.size))
		}
		return 0, err
	}
	c.size += int64(n)
	return len(b), nil
}

// compressedFile is a compressed one that is on a disk.
type compressedFile struct {
	*compressed
	plugin.Syncer
}
