// SPDX-License-Identifier: Apache-2.0

// Package tls gives tests TLS clients and servers that talk in network namespaces, with libraries of several makers and releases. Each
// connection asks for a text of its own and is answered with one: what of it a capture lets read can be counted. The libraries log their
// secrets themselves, which is what others are held against.
package tls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"droidtap/scripts/nettest"
)

// Port is the one on which servers listen.
const Port = "443"

// Most is how many connections may be numbered, from 0.
const Most = 1000

// Dir is where scripts/tls/peers.sh has put the programs for "amd64" or "arm64"; it makes them if they are not there.
func Dir(t testing.TB, arch string) string {
	t.Helper()
	root, err := os.Getwd()
	for ; err == nil && root != "/"; root = filepath.Dir(root) {
		script := filepath.Join(root, "scripts/tls/peers.sh")
		if _, err := os.Stat(script); err == nil {
			return strings.TrimSpace(nettest.Run(t, script, arch))
		}
	}
	t.Fatalf("scripts/tls/peers.sh is in no directory above this one (%v)", err)
	return ""
}

// Certify writes a certificate of its own and its key, as cert.pem and key.pem.
func Certify(t testing.TB, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "test"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Running is a pair whose server runs.
type Running struct {
	Pair
	Server     *nettest.Process
	near       nettest.Space
	address    string
	dir, peers string
	logs       bool
	// User is whose the clients are.
	User int
}

// Start starts the pair's server in a namespace, to be reached from another. With logs the libraries log their secrets.
func (p Pair) Start(t testing.TB, near, far nettest.Space, address string, logs bool) *Running {
	t.Helper()
	r := &Running{Pair: p, near: near, address: address, dir: t.TempDir(), peers: Dir(t, runtime.GOARCH), logs: logs}
	Certify(t, r.dir)
	for n := range Most { // what servers of files have to answer with, and what gtlsclient sends
		for name, text := range map[string]string{Request(n): Answer(n) + "\n", "ask-" + number(n): Request(n)} {
			if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.Server = nettest.Start(t, r.command(far, p.server(r), "server.log"), p.ready)
	return r
}

// Request and Answer are the texts that connection n, from 0, sends and gets, once each.
func Request(n int) string { return "hello-" + number(n) }
func Answer(n int) string  { return "answer-" + number(n) }

func number(n int) string { return fmt.Sprintf("%03d", n) }

// Log is what the libraries of both ends have logged so far, as Lines gives it.
func (r *Running) Log(t testing.TB) []string {
	t.Helper()
	server, client := r.Logs(t)
	return Lines(strings.Join(slices.Concat(server, client), "\n"))
}

// Logs is what each end's library has logged so far, as Lines gives it.
func (r *Running) Logs(t testing.TB) (server, client []string) {
	t.Helper()
	read := func(name string) []string {
		b, err := os.ReadFile(filepath.Join(r.dir, name))
		if err != nil && r.logs {
			t.Fatal(err)
		}
		return Lines(string(b))
	}
	return read("server.log"), read("client.log")
}

// command is one of the pair's in a namespace. All that it says is on standard error.
func (r *Running) command(s nettest.Space, argv []string, log string) *exec.Cmd {
	if r.logs && r.keylog != "" {
		argv = append(argv[:1:1], append([]string{r.keylog, filepath.Join(r.dir, log)}, argv[1:]...)...)
	}
	argv = r.program(argv)
	argv = append([]string{"sh", "-c", `exec "$@" >&2`, "sh"}, argv...)
	if r.User != 0 {
		// What they read and write is root's.
		argv = append([]string{"setpriv", "--reuid", strconv.Itoa(r.User), "--inh-caps", "+dac_override", "--ambient-caps", "+dac_override"}, argv...)
	}
	cmd := s.Command(argv...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "HOME="+r.dir, "OPENSSL_CONF=/dev/null", "SSLKEYLOGFILE=")
	if r.logs {
		cmd.Env = append(cmd.Env, "SSLKEYLOGFILE="+filepath.Join(r.dir, log))
	}
	return cmd
}

// program has a program of a package run with the libraries beside it.
func (r *Running) program(argv []string) []string {
	path := filepath.Join(r.peers, argv[0])
	if !strings.Contains(argv[0], "/") { // the host's
		return argv
	}
	lib := filepath.Join(filepath.Dir(path), "lib")
	if _, err := os.Stat(lib); err != nil {
		return append([]string{path}, argv[1:]...)
	}
	return append([]string{filepath.Join(lib, "ld.so"), "--library-path", lib, path}, argv[1:]...)
}

// Libraries are the files with the pair's TLS code.
func (r *Running) Libraries() []string {
	var paths []string
	for _, name := range r.libraries {
		if !filepath.IsAbs(name) {
			name = filepath.Join(r.peers, name)
		}
		paths = append(paths, name)
	}
	return paths
}

// Connect makes n connections one after the other, numbered from first, and waits until they have ended.
func (r *Running) Connect(t testing.TB, first, n int) {
	t.Helper()
	if r.many {
		r.once(t, first, n)
		return
	}
	for i := first; i < first+n; i++ {
		r.once(t, i, 1)
	}
}

func (r *Running) once(t testing.TB, first, n int) {
	t.Helper()
	cmd := r.command(r.near, r.client(r, first, n), "client.log")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("GET /%s HTTP/1.0\r\n\r\n", Request(first)))
	if r.echoes {
		cmd.Stdin = strings.NewReader(Request(first) + " " + Answer(first) + "\n")
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s\n%s", cmd, err, out, r.Server.Stderr())
	}
	// Those that make many connections look themselves.
	if !r.many && !strings.Contains(string(out), Answer(first)) {
		t.Fatalf("%s has no answer:\n%s", cmd, out)
	}
	if says := strings.ReplaceAll(r.says, "ALL", strconv.Itoa(n-1)); !strings.Contains(string(out), says) {
		t.Fatalf("%s does not say %q:\n%s", cmd, says, out)
	}
}

// Hold makes a connection with that number up to the end of the handshake. The function that it returns has it ask, and ends it.
func (r *Running) Hold(t testing.TB, n int) (resume func(testing.TB)) {
	t.Helper()
	argv := r.client(r, n, 1)
	if !strings.HasSuffix(argv[0], "/boring") {
		t.Fatalf("%s cannot wait", argv[0])
	}
	cmd := r.command(r.near, append(argv[:1:1], append([]string{"-w"}, argv[1:]...)...), "client.log")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c := nettest.Start(t, cmd, "connected")
	return func(t testing.TB) {
		t.Helper()
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		if code := c.Wait(t); code != 0 {
			t.Fatalf("%s: code %d\n%s", cmd, code, c.Stderr())
		}
	}
}
