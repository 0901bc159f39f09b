// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"droidtap/scripts/nettest"
)

// TestPairs has each pair make connections that a tcpdump captures: with what the libraries logged all of them can be read from the file, and without
// it none. That is what the agent is held to.
func TestPairs(t *testing.T) {
	nettest.Require(t, "tcpdump", "tshark", "editcap", "curl")
	for _, p := range Pairs() {
		t.Run(p.Name, func(t *testing.T) {
			near, far := nettest.Pair(t)
			r := p.Start(t, near, far, nettest.Far4, true)
			const n = 5
			file := filepath.Join(t.TempDir(), "pcap")
			tcpdump := nettest.Start(t, near.Command("tcpdump", "-Z", "root", "--immediate-mode", "-U", "-n", "-B", "16384", "-s", "8192", "-i", "veth0", "-w", file), "listening on")
			r.Connect(t, 0, n)
			end(t, near, file)
			tcpdump.Stop(t, syscall.SIGINT)

			lines := r.Log(t)
			if got := p.Readable(Conversations(t, file, "", p.QUIC), n); got != 0 {
				t.Errorf("%d of %d can be read without a key", got, n)
			}
			with := inject(t, file, lines)
			all := Conversations(t, with, "", p.QUIC)
			if got := p.Readable(all, n); got != n {
				t.Errorf("%d of %d can be read with %d lines of the key log: %+v", got, n, len(lines), all)
			}
			randoms := map[string]bool{}
			for _, line := range lines {
				randoms[Random(line)] = true
			}
			for i, c := range all {
				if !randoms[c.Random] {
					t.Errorf("conversation %d: nothing is logged of %q", i, c.Random)
				}
			}
			if len(all) != n || len(randoms) != n {
				t.Errorf("%d connections, %d in the capture and %d in the key log", n, len(all), len(randoms))
			}
			f, err := nettest.Read(with)
			if err != nil || len(f.Secrets) != 1 || len(Lines(f.Secrets[0].Text)) != len(lines) || f.Secrets[0].Type != 0x544c534b {
				t.Errorf("secrets of the file: %+v (%v)", f.Secrets, err)
			}
		})
	}
}

// end sends a packet and waits until it is in the capture: so are those ahead of it.
func end(t *testing.T, s nettest.Space, file string) {
	t.Helper()
	const mark = "the end of the test"
	addr := nettest.Far4 + "/9"
	s.Run(t, "bash", "-c", `echo -n "$1" >/dev/udp/"$2"`, "bash", mark, addr)
	nettest.Await(t, file, func(p nettest.Packet) bool { return strings.Contains(p.Data, mark) })
}

// inject makes a copy of a capture that begins with a key log.
func inject(t *testing.T, file string, lines []string) string {
	t.Helper()
	keys, with := file+".keys", file+"ng"
	if err := os.WriteFile(keys, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	nettest.Run(t, "editcap", "--inject-secrets", "tls,"+keys, file, with)
	return with
}

// TestLogsNothing has a library log nothing: there is no callback at all.
func TestLogsNothing(t *testing.T) {
	nettest.Require(t)
	for _, p := range Pairs() {
		if p.Name != "boringssl-14, TLS 1.3, keys updated" {
			continue
		}
		near, far := nettest.Pair(t)
		r := p.Start(t, near, far, nettest.Far6, false)
		resume := r.Hold(t, 7)
		resume(t)
		r.Connect(t, 0, 1)
		if lines := r.Log(t); len(lines) != 0 {
			t.Errorf("%d lines are logged", len(lines))
		}
		return
	}
	t.Error("there is no such pair")
}
