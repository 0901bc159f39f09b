// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// connectPatience is for an agent that is busy, and answerPatience for what may be compiled and verified meanwhile.
	connectPatience = 5 * time.Second
	answerPatience  = 60 * time.Second
)

// ErrNobody is wrapped by the error of Dial where no agent listens.
var ErrNobody = errors.New("no agent listens there")

// ErrNotRoot is wrapped by the error of Dial where whoever listens is not root.
var ErrNotRoot = errors.New("whoever listens there is not root")

// Client asks an agent. It belongs to one goroutine.
type Client struct {
	Pid int // the agent's

	c     *os.File
	limit *io.LimitedReader // of c: what an answer may have
	lines *bufio.Reader
}

// Dial connects to the agent that listens at path. The error wraps ErrNobody, ErrNotRoot or os.ErrPermission.
func Dial(path string) (*Client, error) {
	c, err := connect(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%s: %w", path, ErrNobody)
	}
	if err != nil {
		return nil, err
	}
	peer, err := peerOf(c)
	if err == nil && peer.Uid != 0 {
		err = fmt.Errorf("%s: %w but user %d", path, ErrNotRoot, peer.Uid)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	limit := &io.LimitedReader{R: c}
	return &Client{Pid: int(peer.Pid), c: c, limit: limit, lines: bufio.NewReader(limit)}, nil
}

func connect(path string) (*os.File, error) {
	address, err := addressOf(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	patience := unix.NsecToTimeval(connectPatience.Nanoseconds())
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience); err == nil {
		err = unix.Connect(fd, address)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "connect to", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Ask sends a request and waits for the answer. The error is of the connection: what the agent says is in the answer.
func (c *Client) Ask(r Request) (a Answer, err error) {
	b, err := json.Marshal(r)
	if err != nil {
		return a, err
	}
	if err := c.c.SetDeadline(time.Now().Add(answerPatience)); err != nil {
		return a, err
	}
	// An agent that refuses has answered and hung up by now: its answer counts.
	_, failed := c.c.Write(append(b, '\n'))
	c.limit.N = mostLine
	line, err := c.lines.ReadBytes('\n')
	if err != nil {
		return a, fmt.Errorf("pid %d does not answer: %w", c.Pid, errors.Join(failed, err))
	}
	if err := json.Unmarshal(line, &a); err != nil {
		return a, fmt.Errorf("pid %d answers strangely: %w", c.Pid, err)
	}
	return a, nil
}

// Stop asks the agent to end, and waits until its process is gone, for as long as patience. The error wraps os.ErrDeadlineExceeded if it is not.
func (c *Client) Stop(patience time.Duration) (Answer, error) {
	// Before it ends: the number may be another process's later. Kernels before 5.3 have no such thing.
	fd, failed := unix.PidfdOpen(c.Pid, 0)
	if failed == nil {
		defer unix.Close(fd)
	}
	a, err := c.Ask(Request{Do: Stop})
	if err != nil || a.Error != "" {
		return a, err
	}
	end := time.Now().Add(patience)
	if err := c.c.SetReadDeadline(end); err != nil {
		return a, err
	}
	// It holds the connection as long as it lives.
	_, err = c.lines.ReadByte()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return a, fmt.Errorf("pid %d still runs: %w", c.Pid, err)
	}
	if failed != nil {
		return a, nil
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, int(max(0, time.Until(end).Milliseconds())))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return a, fmt.Errorf("wait for pid %d: %w", c.Pid, err)
		case n == 0:
			return a, fmt.Errorf("pid %d still runs: %w", c.Pid, os.ErrDeadlineExceeded)
		default:
			return a, nil
		}
	}
}

// Close ends the conversation.
func (c *Client) Close() error { return c.c.Close() }
