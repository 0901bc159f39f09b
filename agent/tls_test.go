// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
	"droidtap/scripts/tls"
)

// tlsConnections is how many each pair makes.
const tlsConnections = 100

// tlsFilter is what captures of pairs have: TCP and QUIC alike.
const tlsFilter = "port " + tls.Port

// TestTLS captures 100 connections of each pair of a client and a server, begun before the agent and behind it. What their libraries log is what the
// agent writes into its key log and its file, line by line and no other line of these connections, and tshark reads all connections from the file alone.
func TestTLS(t *testing.T) {
	nettest.Require(t, "agent", "tshark", "curl")
	for _, p := range tls.Pairs() {
		t.Run(p.Name, func(t *testing.T) {
			near, far := nettest.Pair(t)
			r := p.Start(t, near, far, nettest.Far4, true)
			dir := t.TempDir()
			file, keylog := filepath.Join(dir, "tls.pcapng"), filepath.Join(dir, "keys")
			const before = "# what was there before\n"
			must(t, os.WriteFile(keylog, []byte(before), 0o600))
			a := startAgent(t, near, file, "-i", "veth0", "--tls", "--keylog", keylog, tlsFilter)
			r.Connect(t, 0, tlsConnections)
			a.Stop(t, syscall.SIGINT)

			want := r.Log(t)
			if len(want) < tlsConnections {
				t.Errorf("the libraries have logged %d lines only", len(want))
			}
			text, err := os.ReadFile(keylog)
			must(t, err)
			if !strings.HasPrefix(string(text), before) {
				t.Errorf("the key log does not begin as it did: %.60q", text)
			}
			sameLines(t, "key log", want, string(text), a)
			f, err := nettest.Read(file)
			must(t, err)
			sameLines(t, "secrets of the file", want, secretsOf(t, f), a)
			all := tls.Conversations(t, file, "", p.QUIC)
			if got := p.Readable(all, tlsConnections); got != tlsConnections || len(all) != tlsConnections {
				t.Errorf("%d of %d connections can be read, of %d in the file\n%s", got, tlsConnections, len(all), a.Stderr())
			}
			eachEnd(t, r, near)
			nothingLeft(t, near)
		})
	}
}

// secretsOf is the text of a file's decryption secrets blocks.
func secretsOf(t *testing.T, f nettest.File) string {
	t.Helper()
	text := ""
	for _, s := range f.Secrets {
		if s.Type != 0x544c534b || !strings.HasSuffix(s.Text, "\n") {
			t.Errorf("a block of secrets of type %#x: %.60q", s.Type, s.Text)
		}
		text += s.Text
	}
	return text
}

// sameLines wants the lines of a key log that an agent has written, each once.
func sameLines(t *testing.T, what string, want []string, text string, a *nettest.Process) {
	t.Helper()
	text = ofOurs(t, what, want, text)
	got := tls.Lines(text)
	diff, n := cmp.Diff(want, got), strings.Count(text, "\n")
	if diff != "" {
		t.Errorf("%s: %d lines, the libraries have %d (-libraries +agent):\n%s", what, len(got), len(want), abbreviate(diff))
	}
	if n != len(got) {
		t.Errorf("%s: %d lines, %d of them different", what, n, len(got))
	}
	if diff != "" || n != len(got) {
		t.Logf("the agent:\n%s", a.Stderr())
	}
}

// ofOurs leaves out comments, and the lines of connections that ours has none of: whatever else talks on this machine meanwhile is no
// business of the test's. A secret of one of ours is none of another.
func ofOurs(t *testing.T, what string, ours []string, text string) string {
	t.Helper()
	randoms, secrets := map[string]bool{}, map[string]bool{}
	for _, line := range ours {
		randoms[tls.Random(line)], secrets[tls.Secret(line)] = true, true
	}
	kept := ""
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "#"):
		case tls.Random(line) == "" || !strings.HasSuffix(line, "\n"):
			t.Errorf("%s: no line of a key log: %q", what, line)
		case randoms[tls.Random(line)]:
			kept += line
		case secrets[tls.Secret(line)]:
			t.Errorf("%s: a secret of ours has another connection's random: %s", what, line)
		}
	}
	return kept
}

// eachEnd has a pair make some more connections, the client as another user than the server. Both ends of a connection have the same secrets, and
// of two agents each takes those of one end: neither can make up for the other.
func eachEnd(t *testing.T, r *tls.Running, near nettest.Space) {
	t.Helper()
	const more = 5
	server, client := r.Logs(t)
	ends := []*tlsEnd{{name: "server", uid: "0", before: server}, {name: "client", uid: "10123", before: client}}
	dir := t.TempDir()
	for _, e := range ends {
		e.keylog = filepath.Join(dir, e.name)
		args := []string{"agent", "-i", "veth0", "-w", e.keylog + ".pcapng", "--keylog", e.keylog, "--uid", e.uid}
		for _, path := range r.Libraries() {
			args = append(args, "--tls-lib", path)
		}
		e.agent = nettest.Start(t, near.Command(append(args, tlsFilter)...), "")
	}
	for _, e := range ends {
		e.agent.Await(t, "capturing on")
	}
	r.User = 10123
	r.Connect(t, tlsConnections, more)
	server, client = r.Logs(t)
	ends[0].after, ends[1].after = server, client
	for _, e := range ends {
		e.agent.Signal(t, syscall.SIGINT)
	}
	for _, e := range ends {
		if code := e.agent.Wait(t); code != 0 {
			t.Errorf("the agent of the %s: code %d\n%s", e.name, code, e.agent.Stderr())
		}
		text, err := os.ReadFile(e.keylog)
		must(t, err)
		want := slices.DeleteFunc(e.after, func(line string) bool { return slices.Contains(e.before, line) })
		if len(want) < more {
			t.Errorf("the library of the %s has logged %d lines only", e.name, len(want))
		}
		sameLines(t, "key log of the "+e.name+"'s user", want, string(text), e.agent)
	}
}

// tlsEnd is one end of connections.
type tlsEnd struct {
	name, uid, keylog string
	agent             *nettest.Process
	before, after     []string // lines that its library has logged
}

// pairNamed returns the pair.
func pairNamed(t *testing.T, name string) tls.Pair {
	t.Helper()
	all := tls.Pairs()
	i := slices.IndexFunc(all, func(p tls.Pair) bool { return p.Name == name })
	if i < 0 {
		t.Fatalf("there is no pair %q", name)
	}
	return all[i]
}

// TestTLSOwner captures connections of two users and has the secrets of one: none is written of a process of another's, the server for one.
func TestTLSOwner(t *testing.T) {
	nettest.Require(t, "agent", "setpriv")
	near, far := nettest.Pair(t)
	r := pairNamed(t, "boringssl-14, TLS 1.3, keys updated").Start(t, near, far, nettest.Far4, true)
	dir := t.TempDir()
	file, keylog := filepath.Join(dir, "tls.pcapng"), filepath.Join(dir, "keys")
	a := startAgent(t, near, file, "-i", "veth0", "--tls", "--keylog", keylog, "--uid", "10123", tlsFilter)
	r.User = 10123
	r.Connect(t, 0, 5)
	want := r.Log(t)
	r.User = 10124
	r.Connect(t, 5, 5)
	a.Stop(t, syscall.SIGINT)

	all := r.Log(t)
	if len(all) <= len(want) {
		t.Fatal("the other user's connections have logged nothing")
	}
	text, err := os.ReadFile(keylog)
	must(t, err)
	if diff := cmp.Diff(want, tls.Lines(ofOurs(t, "key log", all, string(text)))); diff != "" {
		t.Errorf("key log (-libraries +agent):\n%s", abbreviate(diff))
	}
	f, err := nettest.Read(file)
	must(t, err)
	if diff := cmp.Diff(want, tls.Lines(ofOurs(t, "secrets of the file", all, secretsOf(t, f)))); diff != "" {
		t.Errorf("secrets of the file (-libraries +agent):\n%s", abbreviate(diff))
	}
	if st, err := os.Stat(keylog); err != nil || st.Mode() != 0o600 {
		t.Errorf("the key log: %v (%v)", st.Mode(), err)
	}
	nothingLeft(t, near)
}

// TestTLSBefore captures what is left of a session that began before the capture: that it cannot be read is said.
func TestTLSBefore(t *testing.T) {
	nettest.Require(t, "agent", "tshark")
	near, far := nettest.Pair(t)
	p := pairNamed(t, "boringssl-14, TLS 1.3, keys updated")
	r := p.Start(t, near, far, nettest.Far4, true)
	resume := r.Hold(t, 0)
	file := filepath.Join(t.TempDir(), "tls.pcapng")
	a := startAgent(t, near, file, "-i", "veth0", "--tls", tlsFilter)
	resume(t)
	r.Connect(t, 1, 1)
	a.Stop(t, syscall.SIGINT)
	if all := tls.Conversations(t, file, "", false); len(all) != 2 || p.Readable(all, 2) != 1 {
		t.Errorf("%+v", all)
	}
	if !strings.Contains(a.Stderr(), "1 TLS connection") {
		t.Errorf("nothing of the session that began before:\n%s", a.Stderr())
	}
}

// TestTLSNone has the agent look for secrets in a file that has none: it says so, and the packets are captured.
func TestTLSNone(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	r := pairNamed(t, "go, stripped, TLS 1.2").Start(t, near, far, nettest.Far4, true)
	file := filepath.Join(t.TempDir(), "tls.pcapng")
	a := startAgent(t, near, file, "-i", "veth0", "--tls", "--tls-lib", "/bin/true", tlsFilter)
	r.Connect(t, 0, 1)
	a.Stop(t, syscall.SIGINT)
	f, err := nettest.Read(file)
	must(t, err)
	if len(f.Packets) == 0 || len(f.Secrets) != 0 || !strings.Contains(a.Stderr(), "/bin/true") {
		t.Errorf("%d packets, %d blocks of secrets:\n%s", len(f.Packets), len(f.Secrets), a.Stderr())
	}
}

// withoutUprobes runs a command where the kernel shows none. The mounts are those of ip netns exec's own mount namespace, and go with it.
const withoutUprobes = `mount -t tmpfs droidtap-test /sys/bus/event_source/devices && exec "$@"`

// TestTLSWithoutUprobes captures on a kernel without uprobes: that is said once, and the packets are captured.
func TestTLSWithoutUprobes(t *testing.T) {
	nettest.Require(t, "agent", "mount")
	near, far := nettest.Pair(t)
	r := pairNamed(t, "go, stripped, TLS 1.2").Start(t, near, far, nettest.Far4, true)
	file := filepath.Join(t.TempDir(), "tls.pcapng")
	a := nettest.Start(t, near.Command("sh", "-c", withoutUprobes, "sh", "agent", "-i", "veth0", "--tls", "-w", file, tlsFilter), "capturing on")
	r.Connect(t, 0, 1)
	a.Stop(t, syscall.SIGINT)
	f, err := nettest.Read(file)
	must(t, err)
	if len(f.Packets) == 0 || len(f.Secrets) != 0 || strings.Count(a.Stderr(), "no uprobes") != 1 {
		t.Errorf("%d packets, %d blocks of secrets:\n%s", len(f.Packets), len(f.Secrets), a.Stderr())
	}
	nothingLeft(t, near)
}

// TestTLSCommand types what eCapture's users do.
func TestTLSCommand(t *testing.T) {
	nettest.Require(t, "agent", "tshark")
	near, far := nettest.Pair(t)
	p := pairNamed(t, "openssl-3.0, TLS 1.3")
	r := p.Start(t, near, far, nettest.Far4, false)
	file := filepath.Join(t.TempDir(), "tls.pcapng")
	a := nettest.Start(t, near.Command("agent", "tls", "-i", "veth0", "-w", file, "tcp", "port", tls.Port), "capturing on")
	r.Connect(t, 0, 3)
	a.Stop(t, syscall.SIGINT)
	if got := p.Readable(tls.Conversations(t, file, "", false), 3); got != 3 {
		t.Errorf("%d of 3 connections can be read\n%s", got, a.Stderr())
	}
}
