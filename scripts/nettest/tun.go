// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// OpenTun makes a tun device, whose packets begin with the IP header, and reads what the kernel sends through it.
func OpenTun(t testing.TB, s Space, name string) *os.File {
	t.Helper()
	var tun *os.File
	s.Must(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		tun = os.NewFile(uintptr(fd), name)
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	read := make(chan struct{})
	// Only now can it be polled (drivers/net/tun.c tun_chr_poll), so the one above must not be read from.
	fd, err := unix.Dup(int(tun.Fd()))
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	reader := os.NewFile(uintptr(fd), name)
	go func() {
		defer close(read)
		b := make([]byte, 64<<10)
		for {
			if _, err := reader.Read(b); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		_ = tun.Close()
		_ = reader.Close()
		<-read
	})
	s.Run(t, "ip", "link", "set", name, "addrgenmode", "none", "up")
	return tun
}
