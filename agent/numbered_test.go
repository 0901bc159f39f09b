// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// numbered is a sender of frames with numbers, from 0 on, that nobody answers. The filter "ether proto 0x88b5" matches them.
type numbered struct {
	sent    atomic.Int64 // how many were
	stop    chan struct{}
	stopped chan error
	when    []time.Time // each was sent, if that is kept; for after end
}

// send starts a sender into s's veth0: rate a second, 0 for as many as can be, and no more than most. How long frames are is
// a function of their numbers.
func send(s nettest.Space, rate, most int, times bool) *numbered {
	n := &numbered{stop: make(chan struct{}), stopped: make(chan error, 1)}
	go func() { n.stopped <- s.Do(0, func() error { return n.run(rate, most, times) }) }()
	return n
}

func (n *numbered) run(rate, most int, times bool) error {
	ifc, err := net.InterfaceByName("veth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Ifindex: ifc.Index}
	frame := nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeLocal, make([]byte, 1486))
	burst, every := 1, time.Second
	switch {
	case rate == 0:
		burst = 100
	case rate > 1000:
		burst, every = rate/1000, time.Millisecond
	default:
		every /= time.Duration(rate)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for number := 0; number < most; {
		if rate > 0 {
			<-tick.C
		}
		select {
		case <-n.stop:
			return nil
		default:
		}
		for range min(burst, most-number) {
			binary.BigEndian.PutUint64(frame[14:], uint64(number))
			if times {
				n.when = append(n.when, time.Now())
			}
			for err = unix.ENOBUFS; errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR); {
				err = unix.Sendto(fd, frame[:lengthOf(number)], 0, to)
			}
			if err != nil {
				return err
			}
			number++
			n.sent.Store(int64(number))
		}
	}
	return nil
}

// lengthOf is how long a frame is: 60 to 1,499 bytes.
func lengthOf(number int) int { return 60 + number*37%1440 }

// end ends the sender and returns how many it has sent.
func (n *numbered) end(t *testing.T) int {
	t.Helper()
	close(n.stop)
	must(t, <-n.stopped)
	return int(n.sent.Load())
}

// numbers returns the numbers of packets.
func numbers(packets []nettest.Packet) (all []int) {
	for _, p := range packets {
		all = append(all, int(binary.BigEndian.Uint64([]byte(p.Data[14:]))))
	}
	return all
}

// family returns the files that a capture to path/name has made in the order of their numbers: name, name1, name2 and so on, or
// name_00001_<time> and so on.
func family(t *testing.T, dir, name string) (paths []string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, name+"*"))
	must(t, err)
	turn := func(path string) int {
		rest := strings.TrimPrefix(strings.TrimPrefix(path, filepath.Join(dir, name)), "_")
		digits, _, _ := strings.Cut(rest, "_")
		digits, _, _ = strings.Cut(digits, ".")
		n, _ := strconv.Atoi(digits)
		return n
	}
	slices.SortFunc(all, func(a, b string) int { return turn(a) - turn(b) })
	return all
}

// unpacked reads a capture file that may be compressed, and may be torn at its end. The error is of one that is. What can be
// read of a frame that kill -9 has torn in the middle of its write is no packet: it was never flushed.
func unpacked(t *testing.T, path string) (nettest.File, error) {
	t.Helper()
	raw, err := os.ReadFile(path)
	must(t, err)
	text, torn := unsqueezed(raw)
	plain := filepath.Join(t.TempDir(), "plain")
	must(t, os.WriteFile(plain, text, 0o600))
	f, err := nettest.Read(plain)
	if torn == nil && err == nil && whole(text) != len(text) {
		torn = fmt.Errorf("%d of %d bytes are whole blocks", whole(text), len(text))
	}
	return f, errors.Join(torn, err)
}

// unsqueezed returns what is in the whole frames of a file, all of it if it is not compressed. The error is of the first frame
// that is torn.
func unsqueezed(raw []byte) (text []byte, torn error) {
	var magic string
	var open func(io.Reader) (io.Reader, error)
	switch {
	case bytes.HasPrefix(raw, []byte("\x28\xb5\x2f\xfd")):
		magic, open = "\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) }
	case bytes.HasPrefix(raw, []byte("\x1f\x8b\x08")):
		magic, open = "\x1f\x8b\x08", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }
	default:
		return raw, nil
	}
	for end := len(raw); end > 0; end-- {
		if !strings.HasPrefix(magic, string(raw[end:min(end+len(magic), len(raw))])) {
			continue // no other frame begins here
		}
		r, err := open(bytes.NewReader(raw[:end]))
		if err == nil {
			text, err = io.ReadAll(r)
		}
		if err == nil {
			return text, torn
		}
		if torn == nil {
			torn = err
		}
	}
	return nil, torn
}

// whole returns how many bytes of a pcapng file are whole blocks.
func whole(b []byte) (n int) {
	for len(b)-n >= 12 {
		size := int(binary.LittleEndian.Uint32(b[n+4:]))
		if size < 12 || size > len(b)-n {
			break
		}
		n += size
	}
	return n
}

// envNumber is how often something is done: few times, or as often as the environment says.
func envNumber(name string, few int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return few
}

// usage tells what a process has taken until now: seconds on a processor, and the most memory.
func usage(t *testing.T, pid int) string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	_, after, _ := strings.Cut(string(stat), ") ")
	f := strings.Fields(after)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, most, _ := strings.Cut(string(text), "VmHWM:")
	most, _, _ = strings.Cut(most, "\n")
	return fmt.Sprintf("%.2f s of a processor, %s", float64(user+system)/100, strings.TrimSpace(most))
}
