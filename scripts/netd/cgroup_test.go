// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const (
	allowOverride = 1 // BPF_F_ALLOW_OVERRIDE
	allowMulti    = 2 // BPF_F_ALLOW_MULTI
)

// intrude attaches a program of the test.
func intrude(t *testing.T, dir, name string, at ebpf.AttachType, flags uint32) error {
	t.Helper()
	p, err := load(name, nil, nil)
	must(t, err)
	t.Cleanup(func() { must(t, p.close()) })
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	return link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(d.Fd()), Program: p.Program, Attach: at, Flags: flags})
}

func TestCgroupRefusesOthers(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	dir := newCgroup(t)
	child := filepath.Join(dir, "child")
	must(t, os.Mkdir(child, 0o755))
	t.Cleanup(func() { must(t, os.Remove(child)) })
	n := start(t, s, Options{Cgroup: dir})
	if len(n.programs) != len(places) {
		t.Errorf("%d programs are attached, want %d", len(n.programs), len(places))
	}
	for _, c := range []struct {
		dir   string
		flags uint32
	}{{dir, allowMulti}, {dir, allowOverride}, {child, 0}, {child, allowMulti}, {child, allowOverride}} {
		for _, p := range places {
			if err := intrude(t, c.dir, p.program, p.at, c.flags); !errors.Is(err, unix.EPERM) {
				t.Errorf("%s with flags %d in %s: the error is %v, want EPERM", p.program, c.flags, filepath.Base(c.dir), err)
			}
		}
	}
	p, err := load("inet_egress", nil, nil)
	must(t, err)
	defer p.close()
	_, err = link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupInetEgress, Program: p.Program})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("a link: the error is %v, want EPERM", err)
	}
	must(t, n.Check())
}

func TestStartBesideAnother(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	dir := newCgroup(t)
	must(t, intrude(t, dir, "inet4_bind", ebpf.AttachCGroupInet4Bind, allowMulti))
	err := s.Do(0, func() error {
		_, err := Start(Options{Cgroup: dir})
		return err
	})
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("the error is %v, want EPERM", err)
	}
	wantError(t, err, "attach inet4_bind to "+dir+" with flags 0", "inet4_bind tag")
	// What it had attached until then is gone.
	var text string
	s.Must(t, func() (err error) {
		text, err = Dump(dir)
		return err
	})
	if got := strings.Count(text, "\ncgroup ") + strings.Count(text[:7], "cgroup "); got != 1 {
		t.Errorf("%d programs are attached, want the stranger's:\n%s", got, text)
	}
}

func TestCheckNoticesCgroup(t *testing.T) {
	nettest.Require(t)
	for _, c := range []struct {
		rule string
		harm func(t *testing.T, dir string, n *Netd)
		says []string
	}{
		{"replaced with flags 0", func(t *testing.T, dir string, n *Netd) {
			must(t, intrude(t, dir, "inet_egress", ebpf.AttachCGroupInetEgress, 0))
		}, []string{"cgroup inet_egress: program", "was replaced or joined", "inet_egress tag"}},
		{"detached", func(t *testing.T, dir string, n *Netd) {
			p := n.programs[3]
			must(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(n.cgroup.Fd()), Program: p.Program, Attach: p.at}))
		}, []string{"cgroup inet4_bind: the program is gone"}},
		{"attached again with other flags", func(t *testing.T, dir string, n *Netd) {
			p := n.programs[0]
			must(t, link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(n.cgroup.Fd()), Program: p.Program, Attach: p.at}))
			must(t, link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(n.cgroup.Fd()), Program: p.Program, Attach: p.at, Flags: allowMulti}))
		}, []string{"cgroup inet_egress: attach flags are 0x2, want 0"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			dir := newCgroup(t)
			n := start(t, nettest.NewSpace(t), Options{Cgroup: dir})
			must(t, n.Check())
			c.harm(t, dir, n)
			wantError(t, n.Check(), c.says...)
		})
	}
}

// TestCgroupSeesTraffic does what each of the programs is called for.
func TestCgroupSeesTraffic(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	n := start(t, s, Options{Cgroup: newCgroup(t)})
	must(t, n.CheckTraffic(func() error { return s.Do(0, talk) }))
	must(t, n.Check())
	// Without traffic nobody has seen any.
	err := n.CheckTraffic(func() error { return nil })
	for _, p := range places {
		wantError(t, err, "cgroup "+p.program+": it sees no traffic")
	}
}

// talk sends over loopback, by IPv4 and IPv6, connected and not.
func talk() error {
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.ListenPacket("udp", net.JoinHostPort(host, "0")) // create, bind, setsockopt
		if err != nil {
			return err
		}
		defer c.Close()
		d, err := net.Dial("udp", c.LocalAddr().String()) // connect
		if err != nil {
			return err
		}
		defer d.Close()
		buf := make([]byte, 16)
		for _, conn := range []net.Conn{d} {
			if _, err := conn.Write([]byte("one")); err != nil {
				return err
			}
		}
		if err := c.SetDeadline(time.Now().Add(nettest.Patience)); err != nil {
			return err
		}
		_, from, err := c.ReadFrom(buf) // recvmsg
		if err != nil {
			return err
		}
		if _, err := c.WriteTo([]byte("two"), from); err != nil { // sendmsg
			return err
		}
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var size int
		if ctl := raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF) }); ctl != nil || err != nil || size == 0 {
			return fmt.Errorf("SO_RCVBUF is %d: %w", size, errors.Join(ctl, err))
		}
	}
	return nil
}
