// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
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

// TestTLSRotation rotates the file while connections come and go and one stays. A file with a whole connection lets it be read, with no other; the last
// with a part of one has all its secrets; and all files behind one another let everything be read.
func TestTLSRotation(t *testing.T) {
	nettest.Require(t, "agent", "tshark")
	near, far := nettest.Pair(t)
	p := pairNamed(t, "boringssl-14, TLS 1.3, keys updated")
	r := p.Start(t, near, far, nettest.Far4, true)
	r6 := pairNamed(t, "boringssl-13, TLS 1.3, keys updated").Start(t, near, far, nettest.Far6, true)
	dir := t.TempDir()
	a := nettest.Start(t, near.Command("agent", "-i", "veth0", "--tls", "-w", filepath.Join(dir, "size"), "-C", "40k", tlsFilter), "capturing on")
	ring := nettest.Start(t, near.Command("agent", "-i", "veth0", "--tls", "-w", filepath.Join(dir, "ring"), "-C", "40k", "-W", "2", tlsFilter), "capturing on")
	const held = tls.Most - 1
	resume := r6.Hold(t, held)
	r.Connect(t, 0, tlsConnections)
	resume(t)
	a.Stop(t, syscall.SIGINT)
	ring.Stop(t, syscall.SIGINT)

	lines := slices.Concat(r.Log(t), r6.Log(t))
	whole, texts := "", ""
	paths := family(t, dir, "size")
	for _, path := range paths {
		b, err := os.ReadFile(path)
		must(t, err)
		whole += string(b)
	}
	if len(paths) < 4 {
		t.Fatalf("there are %d files only", len(paths))
	}
	must(t, os.WriteFile(filepath.Join(dir, "whole"), []byte(whole), 0o600))
	all := tls.Conversations(t, filepath.Join(dir, "whole"), "", false)
	if got := p.Readable(all, tlsConnections); got != tlsConnections {
		t.Errorf("%d of %d connections can be read from all files", got, tlsConnections)
	}
	if !slices.ContainsFunc(all, func(c tls.Conversation) bool {
		return strings.Contains(c.Client, tls.Request(held)) && strings.Contains(c.Server, tls.Answer(held))
	}) {
		t.Error("the connection that stayed cannot be read from all files")
	}
	inFiles(t, paths, all, lines, len(all)/4)
	for _, path := range paths {
		f, err := nettest.Read(path)
		must(t, err)
		texts += secretsOf(t, f)
	}
	slices.Sort(lines)
	if diff := cmp.Diff(lines, tls.Lines(ofOurs(t, "secrets of all files", lines, texts))); diff != "" {
		t.Errorf("secrets of all files (-libraries +agent):\n%s", abbreviate(diff))
	}
	left := family(t, dir, "ring")
	if len(left) != 2 {
		t.Errorf("-W 2: %d files", len(left))
	}
	inFiles(t, left, all, lines, 1)
	nothingLeft(t, near)
}

// inFiles looks whether each file lets the connections be read that are whole in it, and whether the last one with data of a connection has all its secrets.
// all are the connections as they are read from all files, and so many are to be whole in one.
func inFiles(t *testing.T, paths []string, all []tls.Conversation, lines []string, whole int) {
	t.Helper()
	last, alone := map[string]string{}, 0 // the file by the client's port
	for _, path := range paths {
		f, err := nettest.Read(path)
		must(t, err)
		for _, packet := range f.Packets {
			if port, ok := tlsPort(packet.Data); ok {
				last[port] = max(last[port], path)
			}
		}
		for _, c := range tls.Conversations(t, path, "", false) {
			i := slices.IndexFunc(all, func(w tls.Conversation) bool { return w.Port == c.Port })
			if i < 0 {
				t.Errorf("%s: a connection from port %s, which is in no other", path, c.Port)
				continue
			}
			if c.Client == all[i].Client && c.Server == all[i].Server {
				alone++
			} else if w := wholeIn(f, c.Port); w {
				t.Errorf("%s: %q and %q of %q and %q", path, c.Client, c.Server, all[i].Client, all[i].Server)
			}
		}
	}
	for _, c := range all {
		path := last[c.Port]
		if path == "" {
			continue // in a file that is gone
		}
		f, err := nettest.Read(path)
		must(t, err)
		has := tls.Lines(secretsOf(t, f))
		for _, line := range lines {
			if tls.Random(line) == c.Random && !slices.Contains(has, line) {
				t.Errorf("%s is the last file of the connection from port %s, and lacks %.60s", path, c.Port, line)
			}
		}
	}
	if alone < whole {
		t.Errorf("%d of %d connections can be read from one file, less than %d", alone, len(last), whole)
	}
}

// tlsPort returns the client's port of a TCP packet with data.
func tlsPort(data string) (string, bool) {
	ports, flags, payload, ok := tlsSegment(data)
	_ = flags
	return ports, ok && payload > 0
}

// wholeIn says whether a file has a TCP connection from its first packet to the end of both directions.
func wholeIn(f nettest.File, port string) bool {
	syn, fins := 0, 0
	for _, packet := range f.Packets {
		if p, flags, _, ok := tlsSegment(packet.Data); ok && p == port {
			syn += int(flags >> 1 & 1)
			fins += int(flags & 1)
		}
	}
	return syn == 2 && fins == 2
}

// tlsSegment takes a frame with IPv4 or IPv6, without options, and TCP apart: the client's port, the flags, the bytes of data.
func tlsSegment(data string) (port string, flags byte, payload int, ok bool) {
	at := 14 + 20
	switch {
	case len(data) < 14+20+20:
		return "", 0, 0, false
	case data[12:14] == "\x86\xdd":
		at = 14 + 40
	}
	if len(data) < at+20 {
		return "", 0, 0, false
	}
	source, to := int(data[at])<<8|int(data[at+1]), int(data[at+2])<<8|int(data[at+3])
	port = fmt.Sprint(source)
	if port == tls.Port {
		port = fmt.Sprint(to)
	}
	return port, data[at+13], len(data) - at - int(data[at+12]>>4)*4, true
}
