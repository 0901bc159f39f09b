// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestStalled has nobody read a capture while clsact is deleted under it: it is mended all the same, and the gaps are in the file.
func TestStalled(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	out, in, err := os.Pipe()
	must(t, err)
	defer in.Close()
	size, err := unix.FcntlInt(in.Fd(), unix.F_GETPIPE_SZ, 0)
	must(t, err)
	_, err = in.Write(make([]byte, size)) // no room is left
	must(t, err)
	cmd := near.Command("agent", "-U", "-w", "-", "-i", "veth0", "--backend", "tc", "udp")
	cmd.Stdout = in
	p := nettest.Start(t, cmd, "capturing on veth0")
	must(t, in.Close())
	f := flapper(t, near)
	index, err := f.Index("veth0")
	must(t, err)
	const gaps = 20 // more than wait for the writer otherwise
	for n := range gaps {
		if _, err := f.Clsact(index); err != nil {
			t.Fatalf("after %d: %v\n%s", n, err, p.Stderr())
		}
	}
	file := filepath.Join(t.TempDir(), "stalled.pcapng")
	read := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.Discard, out, int64(size))
		if err != nil {
			read <- err
			return
		}
		to, err := os.Create(file)
		if err == nil {
			_, err = io.Copy(to, out)
		}
		read <- err
	}()
	p.Stop(t, syscall.SIGINT)
	must(t, <-read)
	told(t, p, file, "veth0", gaps)
}
