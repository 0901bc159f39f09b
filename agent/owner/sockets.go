// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
)

// sockets asks the kernel: sock_diag, and for ping sockets, which that does not know, /proc/net/icmp and icmp6.
type sockets struct {
	conn  *sockdiag.Conn     // nil where the kernel cannot be asked
	pings map[uint8]*os.File // by protocol; those are missing that cannot be had
}

// open is called in the network namespace of the sockets. An error that wraps sockdiag.ErrNoDiag says that TCP, UDP or both
// cannot be asked about.
func (s *sockets) open() (err error) {
	s.pings = map[uint8]*os.File{}
	for protocol, name := range map[uint8]string{unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmp6"} {
		// Not /proc/net, which is of the process's first thread.
		if file, err := os.Open("/proc/thread-self/net/" + name); err == nil {
			s.pings[protocol] = file
		}
	}
	conn, err := sockdiag.Open()
	if err != nil {
		return err
	}
	s.conn = conn
	return conn.Missing()
}

// Find returns the socket of a flow. The error wraps sockdiag.ErrNoDiag where the kernel cannot be asked.
func (s *sockets) Find(f sockdiag.Flow) (sockdiag.Socket, bool, error) {
	switch f.Protocol {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return s.ping(f)
	}
	if s.conn == nil {
		return sockdiag.Socket{}, false, sockdiag.ErrNoDiag
	}
	return s.conn.Find(f)
}

// ping returns the ping socket with the identifier of an echo. Where ping has a raw socket its uid is not to be found.
func (s *sockets) ping(f sockdiag.Flow) (sockdiag.Socket, bool, error) {
	file := s.pings[f.Protocol]
	if file == nil {
		return sockdiag.Socket{}, false, nil
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return sockdiag.Socket{}, false, fmt.Errorf("list ping sockets: %w", err)
	}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if id, socket, ok := parsePing(lines.Text()); ok && id == f.Local.Port() {
			return socket, true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return sockdiag.Socket{}, false, fmt.Errorf("list ping sockets: %w", err)
	}
	return sockdiag.Socket{}, false, nil
}

// parsePing reads a line of /proc/net/icmp (net/ipv4/ping.c ping_v4_format_sock) or icmp6, not the first.
func parsePing(line string) (id uint16, s sockdiag.Socket, ok bool) {
	const local, uid, inode = 1, 7, 9 // fields
	f := strings.Fields(line)
	if len(f) <= inode {
		return 0, s, false
	}
	port, err := strconv.ParseUint(f[local][strings.LastIndexByte(f[local], ':')+1:], 16, 16)
	owner, err2 := strconv.ParseUint(f[uid], 10, 32)
	number, err3 := strconv.ParseUint(f[inode], 10, 64)
	if errors.Join(err, err2, err3) != nil {
		return 0, s, false
	}
	return uint16(port), sockdiag.Socket{UID: uint32(owner), Inode: uint32(number)}, true
}

func (s *sockets) close() error {
	var errs []error
	if s.conn != nil {
		errs = append(errs, s.conn.Close())
	}
	for _, file := range s.pings {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}
