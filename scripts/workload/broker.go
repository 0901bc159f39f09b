// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// sendFD sends an order with a socket; none for -1.
func sendFD(via int, o order, fd int) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	return sendRights(via, b, fd)
}

func sendRights(via int, b []byte, fd int) error {
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	if err := unix.Sendmsg(via, b, rights, nil, 0); err != nil {
		return fmt.Errorf("send a socket: %w", err)
	}
	return nil
}

// receive returns a message and the socket that came with it, or -1. No bytes are the end.
func receive(via int) (b []byte, fd int, err error) {
	b, fd = make([]byte, 4096), -1
	oob := make([]byte, unix.CmsgSpace(4))
	var n, on int
	if err := again(func() (err error) { n, on, _, _, err = unix.Recvmsg(via, b, oob, unix.MSG_CMSG_CLOEXEC); return err }); err != nil {
		return nil, -1, fmt.Errorf("receive a socket: %w", err)
	}
	if on > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:on])
		if err != nil {
			return nil, -1, err
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return nil, -1, err
		}
		fd = fds[0]
	}
	return b[:n], fd, nil
}

// answered waits for the broker's answer.
func answered(via int) (int, error) {
	b, fd, err := receive(via)
	if err != nil {
		return -1, err
	}
	if string(b) != "ok" {
		return -1, fmt.Errorf("broker: %s", b)
	}
	return fd, nil
}

// serveBroker uses the sockets of others and makes such for others, as root, until the other end closes.
func serveBroker(via int) {
	for {
		b, fd, err := receive(via)
		if err != nil || len(b) == 0 {
			return
		}
		answer := "ok"
		made, err := broke(b, fd)
		if err != nil {
			answer = err.Error()
		}
		err = sendRights(via, []byte(answer), made)
		if made >= 0 {
			err = errors.Join(err, unix.Close(made))
		}
		if err != nil {
			return
		}
	}
}

func broke(b []byte, fd int) (made int, err error) {
	var o order
	if err := json.Unmarshal(b, &o); err != nil {
		return -1, err
	}
	switch o.Do {
	case "use":
		return -1, use(fd, o.Way, o.To, o.Port)
	case "lose": // the kernel may refuse a filter to others where its memory for compiled ones is short
		return -1, errors.Join(lose(fd), unix.Close(fd))
	}
	if made, err = o.Way.open(o.N, 0, o.Port); err != nil {
		return -1, err
	}
	return made, unix.Fchown(made, o.From, -1)
}
