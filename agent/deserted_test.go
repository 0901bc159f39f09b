// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestDeserted takes the readers of what the agent says away, as adb does when it
// is interrupted at the PC, with no packet coming.
func TestDeserted(t *testing.T) {
	nettest.Require(t, "agent")
	for _, tc := range []struct {
		name string
		args []string
		code int // 1: standard output was the capture
	}{
		{"messages", []string{"-w", "FILE"}, 0},
		{"capture", []string{"-w", "-"}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			near, _ := nettest.Pair(t)
			file := filepath.Join(t.TempDir(), "left.pcapng")
			argv := []string{"agent", "-i", "veth0"}
			for _, a := range tc.args {
				if a == "FILE" {
					a = file
				}
				argv = append(argv, a)
			}
			out, outW, err := os.Pipe()
			must(t, err)
			errR, errW, err := os.Pipe()
			must(t, err)
			cmd := near.Command(append(argv, "udp port 9")...)
			cmd.Stdout, cmd.Stderr = outW, errW
			must(t, cmd.Start())
			outW.Close()
			errW.Close()
			line := make([]byte, 100)
			n, err := errR.Read(line)
			must(t, err)
			if !bytes.HasPrefix(line[:n], []byte("capturing on veth0")) {
				t.Fatalf("it says %q", line[:n])
			}
			out.Close()
			if tc.code == 0 {
				errR.Close() // else its messages could still be read
			} else {
				defer errR.Close()
			}
			_ = cmd.Wait() // ends by itself, or the test's deadline does
			if code := cmd.ProcessState.ExitCode(); code != tc.code {
				t.Errorf("exit code %d, not %d", code, tc.code)
			}
			nothingLeft(t, near)
			if tc.code == 0 {
				wireshark(t, "capinfos", file)
			}
		})
	}
}

// TestRawTerminal gives the agent one raw terminal for standard output and
// standard error, as adb exec-out does: what comes is a capture and nothing else, whatever
// the agent is asked to say meanwhile.
func TestRawTerminal(t *testing.T) {
	nettest.Require(t, "agent", "tshark")
	near, far := nettest.Pair(t)
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	must(t, err)
	defer ptmx.Close()
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0))
	pts, err := os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)

	run := func() *exec.Cmd {
		cmd := near.Command("agent", "-i", "veth0", "-U", "--duration", "2", "--stats", "1", "-w", "-", "udp port 9")
		cmd.Stdout, cmd.Stderr = pts, pts
		return cmd
	}
	if err := run().Run(); err == nil {
		t.Error("a capture was written to a terminal that people look at")
	}
	refusal := make([]byte, 4096)
	_, err = ptmx.Read(refusal)
	must(t, err)

	termios, err := unix.IoctlGetTermios(int(pts.Fd()), unix.TCGETS)
	must(t, err)
	termios.Oflag &^= unix.OPOST
	termios.Lflag &^= unix.ECHO | unix.ICANON
	must(t, unix.IoctlSetTermios(int(pts.Fd()), unix.TCSETS, termios))
	read := make(chan []byte)
	go func() {
		got, _ := io.ReadAll(ptmx) // EIO once nobody has the terminal open
		read <- got
	}()
	cmd := run()
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for running := true; running; {
		select {
		case err := <-ended:
			must(t, err)
			running = false
		default:
			datagrams(t, far, 1) // nothing says when it captures
		}
	}
	must(t, pts.Close())
	got := <-read
	file := filepath.Join(t.TempDir(), "tty.pcapng")
	must(t, os.WriteFile(file, got, 0o600))
	f, err := nettest.Read(file)
	if err != nil || len(f.Packets) < 3 {
		t.Fatalf("%d packets, %v, from %d bytes: %.80q", len(f.Packets), err, len(got), got)
	}
	wireshark(t, "tshark", "-r", file)
}
