// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"droidtap/agent/plugin"
	"droidtap/agent/tlslib"
	"droidtap/scripts/nettest"
)

// libssl is this host's, which its openssl maps.
func libssl(t *testing.T) *os.File {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/*/libssl.so.3")
	if err != nil || len(found) == 0 {
		t.Fatalf("there is no libssl.so.3: %v", err)
	}
	f, err := os.Open(found[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// openssl runs a server, and a client of it that logs its keys. It returns the lines.
func openssl(t *testing.T, version string) []string {
	t.Helper()
	dir := t.TempDir()
	key, cert, log := filepath.Join(dir, "key"), filepath.Join(dir, "cert"), filepath.Join(dir, "log")
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
		"-subj", "/CN=test", "-keyout", key, "-out", cert).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close() // the server wants the port
	server := exec.Command("openssl", "s_server", "-accept", address, "-cert", cert, "-key", key, "-naccept", "1", "-www")
	stdout, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill() // it may have ended
		_ = server.Wait()
	}()
	for told := []byte{}; !bytes.Contains(told, []byte("ACCEPT")); {
		b := make([]byte, 256)
		n, err := stdout.Read(b)
		if err != nil {
			t.Fatalf("%v: %s", err, told)
		}
		told = append(told, b[:n]...)
	}
	client := exec.Command("openssl", "s_client", "-connect", address, "-keylogfile", log, version)
	client.Stdin = strings.NewReader("Q\n")
	if out, err := client.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// line is how the key log has a secret.
func (s *secret) line() string {
	return fmt.Sprintf("%s %x %x\n", bytes.TrimRight(s.Label[:], "\x00"), s.Random, s.Secret[:min(int(s.Size), len(s.Secret))])
}

// ways opens one of both, and returns how to read all that it has recorded.
func ways(t *testing.T, name string) (prober, func() []secret) {
	if name == "ring" {
		r := openRing(t)
		return r.programs, func() (all []secret) {
			for r.records.AvailableBytes() > 0 {
				all = append(all, r.next(t))
			}
			return all
		}
	}
	tr := openTracesFor(t)
	var all []secret
	flushed := make(chan error)
	go func() { // at once: whose they are is asked for when they are read
		for {
			raw, err := tr.Next(nil, time.Time{})
			if err != nil {
				flushed <- err
				return
			}
			s, err := new(reader).parse(raw)
			if err != nil {
				t.Error(err)
			}
			all = append(all, s)
		}
	}()
	return tr, func() []secret {
		if err := tr.Flush(); err != nil {
			t.Error(err)
		}
		if err := <-flushed; !errors.Is(err, plugin.ErrFlushed) {
			t.Error(err)
		}
		return all
	}
}

// TestOpenSSLLogsTheSameLines: the client's, in which nobody need ask for them, and the server's, which has the same ones.
func TestOpenSSLLogsTheSameLines(t *testing.T) {
	nettest.Require(t)
	f := libssl(t)
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	all, err := tlslib.Find(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range []string{"ring", "trace"} {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			t.Run(way+version, func(t *testing.T) {
				p, read := ways(t, way)
				for _, fn := range all {
					closer, err := p.probe(f, 0, fn, 1)
					if err != nil {
						t.Fatal(err)
					}
					defer closer.Close()
				}
				want := openssl(t, version)
				byProcess := map[uint32][]string{}
				for _, s := range read() {
					// A process may be gone before its uid was asked for, which only the other way need not do.
					if s.Failed != 0 || s.UID != uint32(os.Getuid()) && (way == "ring" || s.UID != unknownUID) {
						t.Errorf("failed %b, uid %d", s.Failed, s.UID)
					}
					byProcess[s.PID] = append(byProcess[s.PID], s.line())
				}
				slices.Sort(want)
				if len(byProcess) != 2 || len(want) == 0 {
					t.Errorf("%d processes have secrets, and the key log %d lines", len(byProcess), len(want))
				}
				for pid, got := range byProcess {
					slices.Sort(got)
					if !slices.Equal(got, want) {
						t.Errorf("process %d has\n%q\nand the key log\n%q", pid, got, want)
					}
				}
			})
		}
	}
}
