// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"droidtap/agent/pcapng"
)

// A compressed file has all that was written so far, for other programs too, while it is still open.
func TestReadWhileItGrows(t *testing.T) {
	for method, program := range map[string]string{compressZstd: "zstd", compressGzip: "gzip"} {
		t.Run(method, func(t *testing.T) {
			path, err := exec.LookPath(program)
			if err != nil {
				t.Skip(program, "is not installed")
			}
			o, err := parse(t, "-w "+filepath.Join(t.TempDir(), "x.pcapng"+suffixes[method]))
			if err != nil {
				t.Fatal(err)
			}
			f := next(t, o)
			var want bytes.Buffer
			noise := random(1000)
			for i := range 30 {
				text := bytes.Repeat([]byte("text "), 3000*i)
				if i%3 == 0 {
					text = append(text, noise(i)...)
				}
				want.Write(text)
				if n, err := f.Write(text); n != len(text) || err != nil {
					t.Fatal(n, err)
				}
				got, err := exec.Command(path, "-dc", f.Name()).Output()
				if err != nil || !bytes.Equal(got, want.Bytes()) {
					t.Fatalf("after write %d: %d of %d bytes, %v", i, len(got), want.Len(), err)
				}
			}
			st, err := os.Stat(f.Name())
			if err != nil || st.Size() > int64(want.Len()/10) {
				t.Errorf("%d bytes were written, of %d: %v", st.Size(), want.Len(), err)
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// Standard output can be compressed, too.
func TestCompressedStandardOutput(t *testing.T) {
	o, err := parse(t, "-w - --compress gzip")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o.stdout = w
	f, err := o.Next("any")
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.WriteString(f, "text")
	if err := errors.Join(err, f.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.HasPrefix(got, []byte("\x1f\x8b")) {
		t.Errorf("read %q, %v", got, err)
	}
}

// frameOf compresses a text as a file does.
func frameOf(t testing.TB, method string, text []byte) []byte {
	t.Helper()
	squeeze, err := newSqueezer(method)
	if err != nil {
		t.Fatal(err)
	}
	if squeeze == nil {
		return text
	}
	frame, err := squeeze(nil, text)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// blocksOf are what a writer has written at once: whole blocks, with so many packets each.
func blocksOf(t testing.TB, packets ...int) (texts [][]byte) {
	t.Helper()
	var out bytes.Buffer
	w := pcapng.NewWriter(&out, pcapng.Section{Application: "test"})
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.Write(&pcapng.Interface{Index: 1, Name: "wlan0", LinkType: pcapng.Raw}))
	for _, n := range packets {
		for i := range n {
			must(w.Write(&pcapng.Packet{Interface: 1, Time: int64(i), Data: []byte("a packet of some bytes")}))
		}
		must(w.Flush())
		texts = append(texts, bytes.Clone(out.Bytes()))
		out.Reset()
	}
	return texts
}
