// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// OpenTun makes a tun device, whose packets begin with the IP header, and reads what the kernel sends through it.
func OpenTun(t testing.TB, s Space, name string) *os.File {
	t.Helper()
	fd := device(t, s, name)
	// A file of its own: whoever asks for the number of the one that is returned makes that block.
	other, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	tun, reader := os.NewFile(uintptr(fd), name), os.NewFile(uintptr(other), name)
	read := make(chan struct{})
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
	up(t, s, name)
	return tun
}

// QuietTun makes one that nobody reads from yet.
func QuietTun(t testing.TB, s Space, name string) *os.File {
	t.Helper()
	tun := os.NewFile(uintptr(device(t, s, name)), name)
	t.Cleanup(func() { _ = tun.Close() })
	up(t, s, name)
	return tun
}

// device returns the file descriptor of a new tun device, for an os.File that may be closed while it is read from. It can be
// polled only once it has its name (drivers/net/tun.c tun_chr_poll), so it becomes one last.
func device(t testing.TB, s Space, name string) (fd int) {
	t.Helper()
	s.Must(t, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
		return err
	})
	return fd
}

func up(t testing.TB, s Space, name string) {
	t.Helper()
	s.Run(t, "ip", "link", "set", name, "addrgenmode", "none", "up")
}
