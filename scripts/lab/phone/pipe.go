// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// arphrdRawIP is the type of a real rmnet device: packets without a link-layer
// header. Linux include/uapi/linux/if_arp.h, ARPHRD_RAWIP.
const arphrdRawIP = 519

// pipe makes tun device args[0] here and args[2] in network namespace args[1],
// and carries packets between them until it is killed. It stands in for rmnet,
// which Debian builds only into recent kernels. An ipip tunnel would not do:
// before Linux 5.14 tc sees its received packets with the outer header.
func pipe(args []string) error {
	if len(args) != 3 {
		return errors.New("wants TUN1 NETNS TUN2")
	}
	here, err := openTun(args[0])
	if err != nil {
		return err
	}
	// Only this thread changes its namespace; it copies from then on and is
	// never given back to the runtime.
	runtime.LockOSThread()
	ns, err := os.Open("/run/netns/" + args[1])
	if err != nil {
		return err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", args[1], err)
	}
	there, err := openTun(args[2])
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() { failed <- forward(here, there) }()
	go func() { failed <- forward(there, here) }()
	return <-failed
}

// openTun returns the descriptor of a new tun device of type ARPHRD_RAWIP.
func openTun(name string) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return -1, fmt.Errorf("make tun %s: %w", name, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETLINK, arphrdRawIP); err != nil {
		return -1, fmt.Errorf("set the type of %s: %w", name, err)
	}
	return fd, nil
}

// forward copies packets one way. A device that is down drops them (EIO).
func forward(from, to int) error {
	buf := make([]byte, 65536)
	for {
		n, err := unix.Read(from, buf)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("read: %w", err)
		}
		if err != nil {
			continue
		}
		if _, err := unix.Write(to, buf[:n]); err != nil && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("write: %w", err)
		}
	}
}
