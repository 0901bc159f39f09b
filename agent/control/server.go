// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	aidShell = 2000 // Android's user of adb shell
	// mostOfOne is how many connections one user may have: shell must not keep root out.
	mostOfOne = 8
	// readPatience is how long a connection may be silent.
	readPatience = 30 * time.Second
)

// Handler does what is asked for. What it returns is put into Answer.Result.
type Handler func(context.Context, Request) (result any, err error)

// Server answers root and shell, and nobody else.
type Server struct {
	Handle Handler
	Code   func(error) int // the exit code for an error of Handle
	Refuse int             // that for a peer that may not ask

	listener *os.File
	path     string
	closed   chan struct{}
	// writePatience is how long an answer may wait to be read.
	writePatience time.Duration

	mu       sync.Mutex
	open     map[uint32]int // connections, by user
	stopping []*os.File     // stay open until the process has ended
}

// ErrTaken is wrapped by the error of Listen for a socket at which somebody listens.
var ErrTaken = errors.New("an agent listens there already")

// Listen makes the socket, in the place of one that nobody listens at. The caller has made sure that nobody but root may write in its
// directory.
func Listen(path string) (*Server, error) {
	address, err := addressOf(path)
	if err != nil {
		return nil, err
	}
	if err := free(path); err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err = unix.Bind(fd, address); err == nil {
		// Who may ask is looked at by user; the mode only lets shell's user come as far.
		err = errors.Join(os.Chown(path, 0, aidShell), os.Chmod(path, 0o660))
	}
	if err == nil {
		err = unix.Listen(fd, 2*mostOfOne)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return &Server{listener: f, path: path, closed: make(chan struct{}), writePatience: 5 * time.Second, open: map[uint32]int{}}, nil
}

// addressOf refuses what is too long for a socket: sun_path has 108 bytes.
func addressOf(path string) (*unix.SockaddrUnix, error) {
	if len(path) >= 108 || path == "" || path[0] == '@' {
		return nil, fmt.Errorf("socket %q: a socket has a path of 1 to 107 bytes", path)
	}
	return &unix.SockaddrUnix{Name: path}, nil
}

// free removes a socket that nobody listens at.
func free(path string) error {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if err == unix.ENOENT {
		return nil
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fmt.Errorf("%s is there and no socket", path)
	}
	c, err := connect(path)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("%s: %w", path, ErrTaken)
	case errors.Is(err, unix.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}

// Serve answers until Close. ctx is that of the requests.
func (s *Server) Serve(ctx context.Context) {
	for {
		c, err := s.accept()
		if err == nil {
			go s.talk(ctx, c)
			continue
		}
		select {
		case <-s.closed:
			return
		case <-time.After(time.Second): // too many open files, which is over some time
			slog.Warn("a request cannot be taken", "because", err)
		}
	}
}

func (s *Server) accept() (*os.File, error) {
	raw, err := s.listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	err = raw.Read(func(listener uintptr) bool {
		fd, _, failed = unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), s.path), nil
}

// Close takes the socket away. Connections over which a stop was asked for stay open until the process ends.
func (s *Server) Close() error {
	close(s.closed)
	err := os.Remove(s.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, s.listener.Close())
}

// talk answers the requests of one connection.
func (s *Server) talk(ctx context.Context, c *os.File) {
	kept := false
	defer func() {
		if !kept {
			c.Close()
		}
	}()
	uid, err := s.enter(c)
	if err != nil {
		s.answer(c, Answer{Error: err.Error(), Code: s.Refuse})
		return
	}
	defer s.leave(uid)
	lines := bufio.NewScanner(c)
	lines.Buffer(make([]byte, 0, 4096), mostLine)
	for {
		if c.SetReadDeadline(time.Now().Add(readPatience)) != nil || !lines.Scan() {
			if errors.Is(lines.Err(), bufio.ErrTooLong) {
				s.answer(c, Answer{Error: fmt.Sprintf("a request has at most %d bytes", mostLine), Code: s.Refuse})
			}
			return
		}
		a, stops := s.handle(ctx, lines.Bytes())
		if stops && !kept {
			kept = true
			s.keep(c)
		}
		if !s.answer(c, a) {
			return
		}
	}
}

// enter returns the peer's user, if that may ask.
func (s *Server) enter(c *os.File) (uint32, error) {
	peer, err := peerOf(c)
	if err != nil {
		return 0, err
	}
	if peer.Uid != 0 && peer.Uid != aidShell {
		return 0, fmt.Errorf("not permitted: only root and shell may ask, and not user %d", peer.Uid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[peer.Uid] >= mostOfOne {
		return 0, fmt.Errorf("user %d has %d connections already", peer.Uid, mostOfOne)
	}
	s.open[peer.Uid]++
	return peer.Uid, nil
}

func (s *Server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[uid]--
}

func (s *Server) keep(c *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopping = append(s.stopping, c)
}

func (s *Server) handle(ctx context.Context, line []byte) (a Answer, stops bool) {
	r, err := Parse(line)
	if err != nil {
		return Answer{Error: err.Error(), Code: 2}, false
	}
	result, err := s.Handle(ctx, r)
	if err != nil {
		return Answer{Error: err.Error(), Code: s.Code(err)}, false
	}
	if a.Result, err = json.Marshal(result); err != nil {
		return Answer{Error: err.Error(), Code: 1}, false
	}
	return a, r.Do == Stop
}

// answer writes an answer, and returns false if nobody reads it.
func (s *Server) answer(c *os.File, a Answer) bool {
	b, err := json.Marshal(a)
	if err == nil {
		err = c.SetWriteDeadline(time.Now().Add(s.writePatience))
	}
	if err == nil {
		_, err = c.Write(append(b, '\n'))
	}
	return err == nil
}

// peerOf returns who made the other end, or listened at it.
func peerOf(c *os.File) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("ask who is at the other end: %w", err)
	}
	return peer, nil
}
