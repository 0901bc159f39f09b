// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// Conversation is what can be read of a connection in a capture.
type Conversation struct {
	Random         string // the client's, in hexadecimal; "" without a ClientHello
	Port           string // the client's
	Client, Server string // what each says
}

// Conversations returns those of a capture, by the number that tshark gives them; keys is a key log, or "" where the file's own are to do.
func Conversations(t testing.TB, file, keys string, quic bool) []Conversation {
	t.Helper()
	if quic {
		return inQUIC(t, file, keys)
	}
	all := hellos(t, file)
	var follow []string
	for i := range all {
		follow = append(follow, "-z", fmt.Sprintf("follow,tls,raw,%d", i))
	}
	if all == nil {
		return nil
	}
	i, server := -1, ""
	for line := range strings.Lines(tshark(t, file, keys, append([]string{"-q"}, follow...)...)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "Filter: tcp.stream eq "):
			i = atoi(t, line[len("Filter: tcp.stream eq "):])
		case strings.HasPrefix(line, "Node 0: "):
			// It is who sent the first packet of the capture, which may have begun later than the connection.
			if server = "\t"; strings.HasSuffix(line, ":"+Port) {
				server = ""
			}
		case i < 0 || strings.ContainsAny(line, ":="):
		default:
			text, err := hex.DecodeString(strings.TrimPrefix(line, "\t"))
			if err != nil {
				t.Fatalf("tshark: %q: %v", line, err)
			}
			if strings.HasPrefix(line, "\t") == (server == "\t") {
				all[i].Server += string(text)
			} else {
				all[i].Client += string(text)
			}
		}
	}
	return all
}

// hellos returns a conversation for each TCP stream, with its client random.
func hellos(t testing.TB, file string) (all []Conversation) {
	t.Helper()
	for line := range strings.Lines(tshark(t, file, "", "-Y", "tcp", "-T", "fields", "-e", "tcp.stream",
		"-e", "tls.handshake.type", "-e", "tls.handshake.random", "-e", "tcp.port")) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		i := atoi(t, f[0])
		for len(all) <= i {
			all = append(all, Conversation{})
		}
		if f[1] == "1" {
			all[i].Random = f[2]
		}
		from, to, _ := strings.Cut(f[3], ",")
		if all[i].Port = from; from == Port {
			all[i].Port = to
		}
	}
	return all
}

func inQUIC(t testing.TB, file, keys string) (all []Conversation) {
	t.Helper()
	for line := range strings.Lines(tshark(t, file, keys, "-Y", "quic", "-T", "fields", "-e", "quic.connection.number", "-e", "udp.srcport",
		"-e", "quic.stream_data", "-e", "tls.handshake.type", "-e", "tls.handshake.random")) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		first, _, _ := strings.Cut(f[0], ",")
		if first == "" {
			continue // tshark does not know of which it is
		}
		i := atoi(t, first)
		for len(all) <= i {
			all = append(all, Conversation{})
		}
		if strings.HasPrefix(f[3], "1") {
			all[i].Random, _, _ = strings.Cut(f[4], ",")
		}
		text, err := hex.DecodeString(strings.NewReplacer(",", "", "<MISSING>", "").Replace(f[2])) // a frame may be empty
		if err != nil {
			t.Fatalf("tshark: %q: %v", f[2], err)
		}
		if f[1] == Port {
			all[i].Server += string(text)
		} else {
			all[i].Client += string(text)
		}
	}
	return all
}

// tshark reads a capture once, from its beginning to its end.
func tshark(t testing.TB, file, keys string, args ...string) string {
	t.Helper()
	args = append([]string{"-n", "-r", file, "-o", "tls.keylog_file:" + keys}, args...)
	cmd := exec.Command("tshark", args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.String())
	}
	return string(out)
}

func atoi(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Readable counts the connections of numbers from 0 to n-1 whose request and answer are readable in one conversation.
func (p Pair) Readable(all []Conversation, n int) (count int) {
	for i := range n {
		for _, c := range all {
			if (p.hides && i > 0 || strings.Contains(c.Client, Request(i))) && strings.Contains(c.Server, Answer(i)) {
				count++
				break
			}
		}
	}
	return count
}
