// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// tcpdumpLibrary returns the libpcap of the tcpdump that is the reference, as
// filter.Version names ours.
var tcpdumpLibrary = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("tcpdump", "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("tcpdump --version: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "libpcap version ") {
			version, _, _ := strings.Cut(strings.TrimSpace(line), " (")
			return version, nil
		}
	}
	return "", fmt.Errorf("tcpdump --version says nothing of libpcap: %s", out)
})

// needTcpdump skips where there is no tcpdump, and fails where its libpcap is not
// of our version: their programs need not agree then.
func needTcpdump(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		t.Skipf("needs tcpdump: %v", err)
	}
	theirs, err := tcpdumpLibrary()
	if err != nil {
		t.Fatal(err)
	}
	ours, _, _ := strings.Cut(filter.Version(), " (")
	if ours != theirs {
		t.Fatalf("our %s is not tcpdump's %s", ours, theirs)
	}
}

// pcapFile is packets as a pcap file. The second of packet i is i.
func pcapFile(l pcapng.LinkType, packets [][]byte) []byte {
	le := binary.LittleEndian
	var b []byte
	for _, v := range []uint32{0xa1b2c3d4, 4<<16 | 2, 0, 0, 262144, uint32(l)} {
		b = le.AppendUint32(b, v)
	}
	for i, p := range packets {
		for _, v := range []uint32{uint32(i), 0, uint32(len(p)), uint32(len(p))} {
			b = le.AppendUint32(b, v)
		}
		b = append(b, p...)
	}
	return b
}

// pcapSeconds returns the seconds of the packets in a pcap file.
func pcapSeconds(file []byte) ([]uint32, error) {
	const fileHeader, packetHeader = 24, 16
	if len(file) < fileHeader {
		return nil, fmt.Errorf("pcap file of %d bytes", len(file))
	}
	var seconds []uint32
	for rest := file[fileHeader:]; len(rest) > 0; {
		if len(rest) < packetHeader {
			return nil, fmt.Errorf("pcap file ends in a header")
		}
		next := packetHeader + int(binary.LittleEndian.Uint32(rest[8:]))
		if len(rest) < next {
			return nil, fmt.Errorf("pcap file ends in a packet")
		}
		seconds = append(seconds, binary.LittleEndian.Uint32(rest))
		rest = rest[next:]
	}
	return seconds, nil
}

// tcpdumpVerdicts tells for each of n packets of a pcap file whether tcpdump -r
// takes it. libpcap's optimiser is on, as in a live capture.
func tcpdumpVerdicts(t *testing.T, file []byte, n int, expr string) []bool {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command("tcpdump", "-r", "-", "-w", "-", expr)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(file), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("tcpdump %q: %v: %s", expr, err, stderr.String())
	}
	seconds, err := pcapSeconds(stdout.Bytes())
	if err != nil {
		t.Fatalf("output of tcpdump %q: %v", expr, err)
	}
	verdicts := make([]bool, n)
	for _, s := range seconds {
		verdicts[s] = true
	}
	return verdicts
}

// tcpdumpText is what tcpdump prints about the program of expr; how is -d, -dd or -ddd.
func tcpdumpText(t *testing.T, how, dlt, expr string) string {
	t.Helper()
	args := []string{"-s", "262144", "-y", dlt, how}
	if expr != "" {
		args = append(args, expr)
	}
	var stderr bytes.Buffer
	cmd := exec.Command("tcpdump", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tcpdump %s %q: %v: %s", how, expr, err, stderr.String())
	}
	return string(out)
}
