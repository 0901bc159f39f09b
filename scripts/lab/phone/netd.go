// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"

	"droidtap/scripts/netd"
)

const netdUsage = `usage: phone netd [-s SOCKET] COMMAND
  start [-cgroup DIR] [-log FILE]   start it in the background, in this network namespace; returns when it is ready
  join IF, leave IF                 an interface joins its network, or leaves it
  tether UP DOWN                    the offload's filters
  offload ADDRESS IF [MAC]          what they redirect
  clat V4IF UNDERLYING, unclat V4IF
  police IF, dscp IF, vendor IF
  remove NAME                       a filter, by words of the name that seen prints
  check                             fails where something of its own is gone or changed
  mark, grown [NAME,...]            fails where a program has seen nothing since mark
  seen                              the counts: name, packets, redirected ones
  dump [CGROUP...], objects         what there is of anybody's, to compare
  restart                           as after a crash
  quit                              remove all of its own and end`

// netdCommand is the stand-in for netd: a server on a unix socket, and the client that talks to it.
func netdCommand(args []string) error {
	fs := flag.NewFlagSet("netd", flag.ExitOnError)
	socket := fs.String("s", "/tmp/netd.sock", "the server's `socket`")
	_ = fs.Parse(args)
	if fs.NArg() == 0 {
		return errors.New(netdUsage)
	}
	switch args := fs.Args(); args[0] {
	case "start":
		return netdStart(*socket, args[1:])
	case "serve":
		return netdServe(*socket, args[1:])
	default:
		return netdAsk(*socket, args)
	}
}

// netdStart runs "serve" in a session of its own, which writes to its third descriptor when it is ready or has failed.
func netdStart(socket string, args []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", append([]string{"netd", "-s", socket, "serve"}, args...)...)
	cmd.Args[0] = "phone"
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	said, err := io.ReadAll(r)
	if err == nil && string(said) != "ok\n" {
		err = fmt.Errorf("not started: %s", said)
	}
	return err
}

// netdServe serves one client after the other until "quit".
func netdServe(socket string, args []string) error {
	ready := os.NewFile(3, "ready")
	err := netdServeReady(socket, args, ready)
	if err != nil {
		fmt.Fprintln(ready, err)
	}
	return err
}

func netdServeReady(socket string, args []string, ready *os.File) error {
	fs := flag.NewFlagSet("netd serve", flag.ContinueOnError)
	cgroup := fs.String("cgroup", "/sys/fs/cgroup", "the cgroup2 to attach to; none without")
	logFile := fs.String("log", "/dev/null", "where netd logs to")
	if err := fs.Parse(args); err != nil {
		return err
	}
	log, err := os.OpenFile(*logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n, err := netd.Start(netd.Options{Cgroup: *cgroup, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		return err
	}
	// A server that was killed leaves its socket.
	if err = os.Remove(socket); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	var l net.Listener
	if err == nil {
		l, err = net.Listen("unix", socket)
	}
	if err == nil {
		defer l.Close()
		err = os.Chmod(socket, 0o666) // the tests' shell is not root
	}
	if err != nil {
		return errors.Join(err, n.Close())
	}
	fmt.Fprintln(ready, "ok")
	ready.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			return errors.Join(err, n.Close())
		}
		if quit := netdAnswer(n, c); quit {
			return nil
		}
	}
}

// netdAnswer answers one line with what the command prints and a last line, "ok" or "error: ...".
func netdAnswer(n *netd.Netd, c net.Conn) (quit bool) {
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return false
	}
	var out string
	args := strings.Split(strings.TrimSuffix(line, "\n"), "\x00")
	if quit = args[0] == "quit"; quit {
		err = n.Close()
	} else {
		out, err = netdDo(n, args[0], args[1:])
	}
	last := "ok\n"
	if err != nil {
		last = "error: " + strings.ReplaceAll(err.Error(), "\n", "; ") + "\n"
	}
	_, _ = io.WriteString(c, out+last)
	return quit
}

// netdDo does one command and returns what it prints.
func netdDo(n *netd.Netd, name string, args []string) (string, error) {
	switch name {
	case "grown":
		return "", n.Grown(words(args)...)
	case "dump":
		return netd.Dump(args...)
	case "offload":
		return "", netdOffload(n, args)
	}
	for _, c := range []struct {
		name string
		args int
		do   func() (string, error)
	}{
		{"join", 1, func() (string, error) { return "", n.Join(args[0]) }},
		{"leave", 1, func() (string, error) { return "", n.Leave(args[0]) }},
		{"tether", 2, func() (string, error) { return "", n.Tether(args[0], args[1]) }},
		{"clat", 2, func() (string, error) { return "", n.Clat(args[0], args[1], netd.DefaultTranslation) }},
		{"unclat", 1, func() (string, error) { return "", n.StopClat(args[0]) }},
		{"police", 1, func() (string, error) { return "", n.Police(args[0]) }},
		{"dscp", 1, func() (string, error) { return "", n.DSCP(args[0]) }},
		{"vendor", 1, func() (string, error) { return "", n.Vendor(args[0]) }},
		{"remove", 1, func() (string, error) { return "", n.Remove(args[0]) }},
		{"check", 0, func() (string, error) { return "", n.Check() }},
		{"mark", 0, func() (string, error) { return "", n.Mark() }},
		{"seen", 0, func() (string, error) { return netdSeen(n) }},
		{"objects", 0, netd.Objects},
		{"restart", 0, func() (string, error) { return "", n.Restart() }},
	} {
		if c.name == name && c.args == len(args) {
			return c.do()
		}
	}
	return "", fmt.Errorf("no such command: %s with %d arguments", name, len(args))
}

// words splits lists at commas: a name has spaces.
func words(args []string) (all []string) {
	for _, a := range args {
		all = append(all, strings.Split(a, ",")...)
	}
	return all
}

func netdOffload(n *netd.Netd, args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return errors.New("wants ADDRESS IF [MAC]")
	}
	addr, err := netip.ParseAddr(args[0])
	if err != nil {
		return err
	}
	var mac net.HardwareAddr
	if len(args) == 3 {
		if mac, err = net.ParseMAC(args[2]); err != nil {
			return err
		}
	}
	return n.Offload(addr, args[1], mac)
}

func netdSeen(n *netd.Netd) (string, error) {
	seen, err := n.Seen()
	var lines []string
	for name, c := range seen {
		lines = append(lines, fmt.Sprintf("%s: %d %d\n", name, c.Packets, c.Taken))
	}
	slices.Sort(lines)
	return strings.Join(lines, ""), err
}

// netdAsk sends a command to the server, prints its answer, and fails with its error.
func netdAsk(socket string, args []string) error {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, strings.Join(args, "\x00")+"\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	text, last := answer, answer
	if i := bytes.LastIndexByte(bytes.TrimSuffix(answer, []byte("\n")), '\n'); i >= 0 {
		text, last = answer[:i+1], answer[i+1:]
		if _, err := os.Stdout.Write(text); err != nil {
			return err
		}
	}
	if message, failed := strings.CutPrefix(string(last), "error: "); failed {
		return errors.New(message)
	}
	if string(last) != "ok\n" {
		return fmt.Errorf("the server ended: %q", last)
	}
	return nil
}
