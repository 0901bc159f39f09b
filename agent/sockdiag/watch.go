// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Groups of NETLINK_SOCK_DIAG (include/uapi/linux/sock_diag.h enum sknetlink_groups).
const (
	groupTCPDestroy  = 1
	groupUDPDestroy  = 2
	groupTCP6Destroy = 3
	groupUDP6Destroy = 4
)

const (
	// room is the receive buffer in bytes. The kernel doubles it, and charges a message at least 576 (SKB_TRUESIZE).
	room = 1 << 20
	// most is how many messages one Next reads, so that it returns where they never end.
	most = 4096
)

// Watcher hears of UDP sockets and of TCP listeners that are closed. Next belongs to one goroutine, Close may be called from any.
type Watcher struct {
	file   *os.File // waits in the runtime's poller
	conn   syscall.RawConn
	buffer [4096]byte
}

// Watch begins to listen in the calling thread's network namespace. It may need CAP_NET_ADMIN.
//
// The kernel tells of a socket some time after it is closed, from a work queue (net/core/sock_diag.c
// sock_diag_broadcast_destroy): its port may be another's by then.
func Watch() (*Watcher, error) {
	w, err := watch(room)
	if err != nil {
		return nil, fmt.Errorf("watch the end of sockets: %w", err)
	}
	return w, nil
}

func watch(room int) (*Watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("sock_diag socket: %w", err)
	}
	w := &Watcher{file: os.NewFile(uintptr(fd), "sock_diag")}
	// Without CAP_NET_ADMIN net.core.rmem_max limits the buffer.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room)
	}
	if err == nil {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(notConnections)), Filter: &notConnections[0]})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{
			Family: unix.AF_NETLINK,
			Groups: 1<<(groupUDPDestroy-1) | 1<<(groupUDP6Destroy-1) | 1<<(groupTCPDestroy-1) | 1<<(groupTCP6Destroy-1),
		})
	}
	if err == nil {
		w.conn, err = w.file.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	return w, nil
}

// notConnections is a filter that lets through what is said of UDP sockets and of sockets without a remote port: each
// connection that ends would wake us otherwise. It loads the value of the attribute that holds the protocol; where that is
// missing, a byte of the header that is no 17.
var notConnections = [...]unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_IMM, K: sizeHeader + sizeSocket}, // where attributes begin
	{Code: unix.BPF_LDX | unix.BPF_IMM, K: attrProtocol},
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offExtensions + offAttribute},
	{Code: unix.BPF_MISC | unix.BPF_TAX},
	{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 4},
	{Code: unix.BPF_JMP | unix.BPF_JEQ, K: unix.IPPROTO_UDP, Jt: 2},
	{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: sizeHeader + 6}, // idiag_dport
	{Code: unix.BPF_JMP | unix.BPF_JEQ, K: 0, Jf: 1},
	{Code: unix.BPF_RET, K: 1<<32 - 1},
	{Code: unix.BPF_RET, K: 0},
}

// SKF_AD_OFF and SKF_AD_NLATTR of include/uapi/linux/filter.h.
const (
	offExtensions = 0xfffff000
	offAttribute  = 12
)

// Next waits until there are sockets that were closed, and returns them. lost says that there were more, of which the
// kernel could not tell. The error is os.ErrClosed after Close.
func (w *Watcher) Next() (closed []Socket, lost bool, err error) {
	var failed error
	err = w.conn.Read(func(fd uintptr) bool {
		closed, lost, failed = w.read(int(fd))
		return failed != nil || len(closed) > 0 || lost
	})
	switch {
	case err != nil:
		return nil, false, os.ErrClosed
	case failed != nil:
		return nil, false, fmt.Errorf("read sock_diag: %w", failed)
	}
	return closed, lost, nil
}

// read takes the messages that are there.
func (w *Watcher) read(fd int) (closed []Socket, lost bool, err error) {
	for n := 0; n < most; n++ {
		size, from, err := unix.Recvfrom(fd, w.buffer[:], 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return closed, lost, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			// What comes until the last message that was kept is read is thrown away without another word
			// (net/netlink/af_netlink.c netlink_overrun): all of them are read before it is told.
			lost, n = true, 0
			continue
		case err != nil:
			return nil, false, err
		}
		// Another process with CAP_NET_ADMIN may send to these groups, and any to this socket.
		if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
			continue
		}
		for b := w.buffer[:size]; len(b) > 0; {
			kind, _, body, rest, err := split(b)
			if err != nil {
				lost = true
				break
			}
			b = rest
			s, err := parseBody(kind, body)
			if err == nil && (s.Protocol == unix.IPPROTO_UDP || s.Protocol == unix.IPPROTO_TCP) {
				closed = append(closed, s)
			}
		}
	}
	return closed, lost, nil
}

// Close ends the wait of Next, if somebody is in it.
func (w *Watcher) Close() error {
	if err := w.file.Close(); err != nil {
		return fmt.Errorf("close the watch of sockets: %w", err)
	}
	return nil
}
