// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// ErrMismatch is wrapped by the error of a Check that found something else than it should have at an offset.
var ErrMismatch = errors.New("the offset is not this kernel's")

// ErrNoKernelRead is wrapped by the error of a Check on a kernel that lets no program read its memory: before 5.8,
// without CAP_PERFMON, or locked down. It wraps ebpf.ErrNotSupported.
var ErrNoKernelRead = fmt.Errorf("no program may read kernel memory: %w", ebpf.ErrNotSupported)

// Check reads through the offsets what the kernel also tells without them, and returns those that hold. The others are 0
// in what it returns and must not be used; the error says why. Sockets, cgroups and tasks are three groups that hold or
// fall each by itself: on a custom kernel tasks are laid out differently and sockets are not.
//
// The error wraps ErrMismatch, ErrNoKernelRead, another ebpf.ErrNotSupported (such as raw tracepoints that cannot be run
// by hand, before 5.10) or os.ErrPermission, one for each group. Wrong offsets do no harm: bpf_probe_read_kernel refuses
// an address where nothing is.
//
// Before 5.11 raise RLIMIT_MEMLOCK first. The programs run once, by BPF_PROG_TEST_RUN, and are attached nowhere. The socket
// that they look up is bound to an address that no host has, so no packet can come to it, and it sends none.
func (o Offsets) Check() (Offsets, error) {
	held := o
	var sockets, cgroups, tasks error
	err := onThread(func() error {
		if sockets = o.checkSockets(); sockets != nil {
			held.SockUID, held.SockCookie = 0, 0
			sockets = fmt.Errorf("check socket offsets: %w", sockets)
		}
		if cgroups = o.checkCgroups(); cgroups != nil {
			held.SockCgroup, held.CgroupNode, held.NodeID = 0, 0, 0
			cgroups = fmt.Errorf("check cgroup offsets: %w", cgroups)
		}
		if tasks = o.checkTasks(); tasks != nil {
			held.TaskTgid, held.TaskComm = 0, 0
			tasks = fmt.Errorf("check task offsets: %w", tasks)
		}
		return errors.Join(sockets, cgroups, tasks)
	})
	return held, err
}

// checkSockets compares the user and the cookie of a socket of ours.
func (o Offsets) checkSockets() error {
	if o.SockUID == 0 && o.SockCookie == 0 {
		return nil
	}
	p, s, err := newSocketProbe()
	if err != nil {
		return err
	}
	defer p.Close()
	defer s.Close()
	uid := p.read(o.SockUID, 4)
	cookie := p.read(o.SockCookie, 8)
	if err := p.runOn(s); err != nil {
		return err
	}
	return errors.Join(
		p.compare("sock.sk_uid", uid, binary.NativeEndian.AppendUint32(nil, s.uid)),
		p.compare("sock.__sk_common.skc_cookie", cookie, binary.NativeEndian.AppendUint64(nil, s.cookie)))
}

// checkCgroups compares the id of the cgroup of a socket of ours with that of our own cgroup, where the socket was made. In
// the root cgroup that is 1, the one number here that a wrong offset might meet by chance.
func (o Offsets) checkCgroups() error {
	if o.SockCgroup == 0 && o.CgroupNode == 0 && o.NodeID == 0 {
		return nil
	}
	if o.SockCgroup == 0 || o.CgroupNode == 0 || o.NodeID == 0 {
		return fmt.Errorf("sock.sk_cgrp_data, cgroup.kn and kernfs_node.id are not all known: %w", ebpf.ErrNotSupported)
	}
	ours, err := currentCgroup()
	if err != nil {
		return err
	}
	p, s, err := newSocketProbe()
	if err != nil {
		return err
	}
	defer p.Close()
	defer s.Close()
	cgroup := p.follow(o.SockCgroup)
	node := p.follow(o.CgroupNode)
	id := p.read(o.NodeID, 8)
	if err := p.runOn(s); err != nil {
		return err
	}
	// Each of the three may be the wrong one.
	name := "sock.sk_cgrp_data"
	if err := p.refusal(name, cgroup); err != nil {
		return err
	}
	if a := p.number(cgroup.member); a == 0 || a&3 != 0 {
		return fmt.Errorf("%s at %d: no address there, as before kernel 5.15 while net_cls or net_prio is in use: %w",
			name, cgroup.offset, ebpf.ErrNotSupported)
	}
	name += fmt.Sprintf(" at %d, cgroup.kn", cgroup.offset)
	if err := p.refusal(name, node); err != nil {
		return err
	}
	name += fmt.Sprintf(" at %d, kernfs_node.id", node.offset)
	return p.compare(name, id, ours)
}

// currentCgroup returns the id of the thread's cgroup of version 2, mounted or not, as it is in memory.
func currentCgroup() ([]byte, error) {
	p, err := newProbe(ebpf.RawTracepoint)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	id := p.call(asm.FnGetCurrentCgroupId)
	if err := p.run(); err != nil {
		return nil, err
	}
	return p.left[id:][:8], nil
}

// checkTasks compares the process id and the name of our thread, which gets a name that no other has. The helpers answer in
// the same run, and in the first pid namespace like the members.
func (o Offsets) checkTasks() error {
	if o.TaskTgid == 0 && o.TaskComm == 0 {
		return nil
	}
	p, err := newProbe(ebpf.RawTracepoint)
	if err != nil {
		return err
	}
	defer p.Close()
	name, err := unix.BytePtrFromString(fmt.Sprintf("check-%08x", rand.Uint32()))
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0); err != nil {
		return fmt.Errorf("name the thread: %w", err)
	}
	ids := p.call(asm.FnGetCurrentPidTgid)
	text := p.callComm()
	p.task()
	tgid := p.read(o.TaskTgid, 4)
	comm := p.read(o.TaskComm, commSize)
	if err := p.run(); err != nil {
		return err
	}
	return errors.Join(
		// The process is the upper half; task_struct.pid is the lower and is not the same, see onThread.
		p.compare("task_struct.tgid", tgid, binary.NativeEndian.AppendUint32(nil, uint32(p.number(ids)>>32))),
		p.compare("task_struct.comm", comm, p.left[text:][:commSize]))
}

// newSocketProbe returns a program of the kind that can look up a socket, and a socket for it.
func newSocketProbe() (*probe, socket, error) {
	p, err := newProbe(ebpf.SchedCLS)
	if err != nil {
		return nil, socket{}, err
	}
	s, err := openSocket()
	if err != nil {
		return nil, socket{}, errors.Join(err, p.Close())
	}
	return p, s, nil
}

// socket is one of ours, to be looked up by a program.
type socket struct {
	fd     int
	port   uint16
	uid    uint32
	cookie uint64
}

// address is of TEST-NET-1 (RFC 5737): no host has it.
var address = [4]byte{192, 0, 2, 1}

// openSocket opens a UDP socket. Its user is one that nobody is, so that no other number can be taken for it.
func openSocket() (socket, error) {
	var s socket
	var err error
	if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return s, fmt.Errorf("open a socket: %w", err)
	}
	if err := s.prepare(); err != nil {
		return s, errors.Join(err, unix.Close(s.fd))
	}
	return s, nil
}

func (s *socket) prepare() error {
	// Without it a socket has an address of this host only (net/ipv4/af_inet.c __inet_bind), and there is none while lo
	// is down.
	if err := unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_FREEBIND, 1); err != nil {
		return fmt.Errorf("set IP_FREEBIND: %w", err)
	}
	if err := unix.Bind(s.fd, &unix.SockaddrInet4{Addr: address}); err != nil {
		return fmt.Errorf("bind a socket: %w", err)
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("name of a socket: %w", err)
	}
	inet, ok := name.(*unix.SockaddrInet4)
	if !ok {
		return fmt.Errorf("name of a socket: %T", name)
	}
	s.port = uint16(inet.Port)
	// Android's users end at 100 million.
	s.uid = 1<<30 | rand.Uint32N(1<<30)
	if err := unix.Fchown(s.fd, int(s.uid), -1); err != nil {
		return fmt.Errorf("give a socket to user %d: %w", s.uid, err)
	}
	if s.cookie, err = unix.GetsockoptUint64(s.fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		return fmt.Errorf("cookie of a socket: %w", err)
	}
	return nil
}

func (s socket) Close() error { return unix.Close(s.fd) }
