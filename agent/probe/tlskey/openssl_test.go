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

	"github.com/cilium/ebpf/ringbuf"

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

// openssl runs a server, and a client of it that logs its keys. It returns the lines, sorted, and who has their secrets.
func openssl(t *testing.T, version string) (lines []string, processes [2]uint32) {
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
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines, [2]uint32{uint32(server.Process.Pid), uint32(client.Process.Pid)}
}

// line is how the key log has a secret.
func (s *secret) line() string {
	return fmt.Sprintf("%s %x %x\n", bytes.TrimRight(s.Label[:], "\x00"), s.Random, s.Secret[:min(int(s.Size), len(s.Secret))])
}

// ways opens one of both, and returns how to end the recording and get all of it.
func ways(t *testing.T, name string) (prober, func() []secret) {
	if name == "ring" {
		r := openRing(t)
		return r.programs, collect(t, r.records.Flush, ringbuf.ErrFlushed, func() ([]byte, error) {
			record, err := r.records.Read()
			return record.RawSample, err
		})
	}
	tr := openTracesFor(t)
	return tr, collect(t, tr.Flush, plugin.ErrFlushed, func() ([]byte, error) { return tr.Next(nil, time.Time{}) })
}

// collect reads records as they come: other processes of this machine use the library, too, and would fill the ring. And whose a
// record of tracefs is, is asked for when it is read.
func collect(t *testing.T, flush func() error, flushed error, next func() ([]byte, error)) func() []secret {
	var all []secret
	var r reader
	ended := make(chan error, 1)
	go func() {
		for {
			raw, err := next()
			if err != nil {
				ended <- err
				return
			}
			s, err := r.parse(raw)
			if err != nil {
				t.Error(err)
			}
			all = append(all, s)
		}
	}()
	return func() []secret {
		if err := flush(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, flushed) {
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
				want, processes := openssl(t, version)
				byProcess := map[uint32][]string{}
				for _, s := range read() {
					if !slices.Contains(processes[:], s.PID) {
						continue
					}
					// A process may be gone before its uid was asked for, which only the other way need not do.
					if s.Failed != 0 || s.UID != uint32(os.Getuid()) && (way == "ring" || s.UID != unknownUID) {
						t.Errorf("failed %b, uid %d", s.Failed, s.UID)
					}
					byProcess[s.PID] = append(byProcess[s.PID], s.line())
				}
				if len(want) == 0 {
					t.Error("the key log has no line")
				}
				for i, who := range []string{"server", "client"} {
					got := byProcess[processes[i]]
					slices.Sort(got)
					if !slices.Equal(got, want) {
						t.Errorf("the %s has\n%q\nand the key log\n%q", who, got, want)
					}
				}
			})
		}
	}
}
