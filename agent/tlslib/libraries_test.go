// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// library is a file of a Debian release, and what is known of it from elsewhere.
type library struct {
	file string
	// after is an exported function that the one to be found stands closely behind, in the source and so in the file.
	after  string
	offset uint64 // of the function, where the package is not updated any more
	want   string
	path   []uint32
}

var libraries = []library{
	{"bookworm-amd64/boringssl.so", "", 0x49b60, "BoringSSL", []uint32{0x30, 0x30}},
	{"bookworm-arm64/boringssl.so", "", 0x42ac0, "BoringSSL", []uint32{0x30, 0x30}},
	{"trixie-amd64/boringssl.so", "", 0x465e0, "BoringSSL", []uint32{0x30, 0x30}},
	{"trixie-arm64/boringssl.so", "", 0x4353c, "BoringSSL", []uint32{0x30, 0x30}},
	// ssl->s3->client_random; from 3.0 on s3 is a part of ssl.
	{"bullseye-amd64/openssl.so", "SSL_CTX_get_keylog_callback", 0, "OpenSSL", []uint32{0xa8, 0xb8}},
	{"bullseye-arm64/openssl.so", "SSL_CTX_get_keylog_callback", 0, "OpenSSL", []uint32{0xa8, 0xb8}},
	{"bookworm-amd64/openssl.so", "SSL_CTX_get_keylog_callback", 0, "OpenSSL", []uint32{0x160}},
	{"bookworm-arm64/openssl.so", "SSL_CTX_get_keylog_callback", 0, "OpenSSL", []uint32{0x160}},
	{"trixie-amd64/openssl.so", "SSL_CTX_get_keylog_callback", 0, "OpenSSL", []uint32{0x188}},
	{"trixie-arm64/openssl.so", "SSL_CTX_get_keylog_callback", 0, "OpenSSL", []uint32{0x188}},
	{"bookworm-amd64/gnutls.so", "gnutls_session_set_keylog_function", 0, "GnuTLS", []uint32{0x50}},
	{"bookworm-arm64/gnutls.so", "gnutls_session_set_keylog_function", 0, "GnuTLS", []uint32{0x50}},
	{"trixie-amd64/gnutls.so", "gnutls_session_set_keylog_function", 0, "GnuTLS", []uint32{0x50}},
	{"trixie-arm64/gnutls.so", "gnutls_session_set_keylog_function", 0, "GnuTLS", []uint32{0x50}},
}

// debian is the directory of Debian's libraries.
func debian(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("../../scripts/tls/libraries.sh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("unpack Debian's libraries: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// check compares with what is found in the bytes of a library.
func (l library) check(t *testing.T, b []byte) {
	t.Helper()
	found, err := Find(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(found) != 1 {
		t.Fatalf("got %+v, %v", found, err)
	}
	got := found[0]
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	a := arguments(f.Machine)
	want := Function{Library: l.want, Machine: f.Machine, Offset: l.offset, Path: l.path, Why: got.Why,
		Random: a[0], Label: a[1], LabelSize: NoRegister, Secret: a[2], Size: a[3]}
	if l.after != "" {
		want.Offset = got.Offset
		if s := symbolOffset(t, f, l.after); got.Offset <= s || got.Offset > s+0x100 {
			t.Errorf("found at %#x, which is not closely behind %s at %#x", got.Offset, l.after, s)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	t.Log(got.Why)
}

func symbolOffset(t *testing.T, f *elf.File, name string) uint64 {
	t.Helper()
	symbols, err := f.DynamicSymbols()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range symbols {
		for _, p := range f.Progs {
			if s.Name == name && p.Type == elf.PT_LOAD && s.Value-p.Vaddr < p.Filesz {
				return s.Value - p.Vaddr + p.Off
			}
		}
	}
	t.Fatalf("no %s", name)
	return 0
}

func TestLibraries(t *testing.T) {
	dir := debian(t)
	for _, l := range libraries {
		b, err := os.ReadFile(filepath.Join(dir, l.file))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(l.file, func(t *testing.T) { l.check(t, b) })
		t.Run(l.file+"/no section headers", func(t *testing.T) {
			b := bytes.Clone(b)
			clear(b[40:48]) // e_shoff
			clear(b[60:64]) // e_shnum, e_shstrndx
			if l.after != "" {
				// debug/elf knows no symbols then: that it is the same place is told by the file as it is.
				same(t, b, l.path)
				return
			}
			l.check(t, b)
		})
		// A static copy exports nothing. GnuTLS has no code of its own that shows the way.
		if l.want != "GnuTLS" {
			t.Run(l.file+"/no accessor", func(t *testing.T) {
				l.check(t, bytes.ReplaceAll(b, []byte("SSL_get_client_random"), []byte("SSL_got_client_random")))
			})
		}
	}
}

// same checks that the way to the random is known.
func same(t *testing.T, b []byte, path []uint32) {
	t.Helper()
	found, err := Find(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(found) != 1 {
		t.Fatalf("got %+v, %v", found, err)
	}
	if d := cmp.Diff(path, found[0].Path); d != "" || found[0].Guess {
		t.Errorf("-want +got:\n%s", d)
	}
}

// TestLibraryInAnotherFile: a library in an APK is a part of that, which begins and ends anywhere.
func TestLibraryInAnotherFile(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(debian(t), libraries[1].file))
	if err != nil {
		t.Fatal(err)
	}
	junk := bytes.Repeat([]byte("PK\x03\x04"), 5000)
	l := libraries[1]
	l.check(t, append(bytes.Clone(b), junk...))
}

func TestNSS(t *testing.T) {
	dir := debian(t)
	for _, file := range []string{"bookworm-amd64/nss.so", "bookworm-arm64/nss.so", "trixie-amd64/nss.so", "trixie-arm64/nss.so"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if found, err := Find(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), "NSS: ") {
			t.Errorf("%s: got %+v, %v", file, found, err)
		}
	}
}

// TestNotStripped finds the accessor by the table that strip removes.
func TestNotStripped(t *testing.T) {
	p := newProgram(elf.EM_AARCH64)
	p.passAll(boring, logAt)
	p.accessor()
	name := p.export
	p.export = "not this"
	b := withSymbols(p.file(), name, accessorAt)
	same(t, b, []uint32{0x58, 0x70})
}

// withSymbols adds section headers with a symbol table of one symbol.
func withSymbols(b []byte, name string, addr uint64) []byte {
	le := binary.LittleEndian
	names := len(b)
	b = append(b, "\x00other\x00"+name+"\x00"...)
	at := len(b)
	b = append(b, make([]byte, 48)...)
	le.PutUint32(b[at+24:], uint32(len("\x00other\x00")))
	le.PutUint16(b[at+30:], 1)
	le.PutUint64(b[at+32:], addr)
	sections := len(b)
	b = append(b, make([]byte, 3*64)...)
	for i, s := range [][4]int{{1, int(elf.SHT_SYMTAB), at, 48}, {2, int(elf.SHT_STRTAB), names, at - names}} {
		h := b[sections+64*(i+1):]
		le.PutUint32(h[4:], uint32(s[1]))
		le.PutUint64(h[24:], uint64(s[2]))
		le.PutUint64(h[32:], uint64(s[3]))
		le.PutUint32(h[40:], 2)
	}
	le.PutUint64(b[40:], uint64(sections))
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 3)
	return b
}
