// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// places are where Android 15's netd attaches programs to the root of cgroup2 (netd/BpfHandler.cpp initPrograms), with
// the names of ours.
var places = []struct {
	at       ebpf.AttachType
	program  string
	optional bool // 5.10 has them all; a build without CONFIG_INET or IPv6 may not
}{
	{ebpf.AttachCGroupInetEgress, "inet_egress", false},
	{ebpf.AttachCGroupInetIngress, "inet_ingress", false},
	{ebpf.AttachCGroupInetSockCreate, "sock_create", false},
	{ebpf.AttachCGroupInet4Bind, "inet4_bind", false},
	{ebpf.AttachCGroupInet6Bind, "inet6_bind", false},
	{ebpf.AttachCGroupInet4Connect, "inet4_connect", true},
	{ebpf.AttachCGroupInet6Connect, "inet6_connect", true},
	{ebpf.AttachCGroupUDP4Sendmsg, "udp4_sendmsg", true},
	{ebpf.AttachCGroupUDP6Sendmsg, "udp6_sendmsg", true},
	{ebpf.AttachCGroupUDP4Recvmsg, "udp4_recvmsg", true},
	{ebpf.AttachCGroupUDP6Recvmsg, "udp6_recvmsg", true},
	{ebpf.AttachCGroupGetsockopt, "getsockopt", true},
	{ebpf.AttachCGroupSetsockopt, "setsockopt", true},
	{ebpf.AttachCgroupInetSockRelease, "sock_release", true},
}

// attached is a program at the cgroup.
type attached struct {
	*program
	at   ebpf.AttachType
	name string
}

// attachAll attaches every program with flags 0, as netd's attachProgram(type, prog, cg_fd): neither
// BPF_F_ALLOW_MULTI nor BPF_F_ALLOW_OVERRIDE. One that is there with flags 0 is replaced.
func (n *Netd) attachAll() error {
	for _, p := range places {
		prog, err := load(p.program, nil, nil)
		if p.optional && errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return err
		}
		err = link.RawAttachProgram(link.RawAttachProgramOptions{Target: int(n.cgroup.Fd()), Program: prog.Program, Attach: p.at})
		if err != nil {
			err = fmt.Errorf("attach %s to %s with flags 0: %w", p.program, n.cgroup.Name(), err)
			if there, _, query := query(n.cgroup, p.at); query == nil {
				err = fmt.Errorf("%w (there: %s)", err, describeAll(there))
			}
			return errors.Join(err, prog.close())
		}
		n.programs = append(n.programs, &attached{prog, p.at, "cgroup " + p.program})
	}
	return nil
}

// detachAll removes those of our programs that are still there: to a cgroup of flags 0 the kernel does not care
// which program it is told to detach (kernel/bpf/cgroup.c find_detach_entry).
func (n *Netd) detachAll() error {
	var errs []error
	for _, p := range n.programs {
		there, _, err := query(n.cgroup, p.at)
		if err == nil && len(there) == 1 && there[0] == p.id {
			err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: int(n.cgroup.Fd()), Program: p.Program, Attach: p.at})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", p.name, err))
		}
		errs = append(errs, p.close())
	}
	n.programs = nil
	return errors.Join(errs...)
}

// check wants the program alone at its place, with flags 0.
func (p *attached) check(cgroup *os.File) error {
	there, flags, err := query(cgroup, p.at)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", p.name, err)
	case len(there) == 0:
		return fmt.Errorf("%s: the program is gone", p.name)
	case len(there) != 1 || there[0] != p.id:
		return fmt.Errorf("%s: program %d was replaced or joined; there: %s", p.name, p.id, describeAll(there))
	case flags != 0:
		return fmt.Errorf("%s: attach flags are %#x, want 0", p.name, flags)
	}
	return nil
}

func describeAll(ids []ebpf.ProgramID) string {
	var all []string
	for _, id := range ids {
		all = append(all, fmt.Sprintf("%d %s", id, describe(id)))
	}
	if len(all) == 0 {
		return "none"
	}
	return strings.Join(all, ", ")
}

// query returns the programs at a place of a cgroup, in the order in which they run, and the attach flags.
func query(cgroup *os.File, at ebpf.AttachType) ([]ebpf.ProgramID, uint32, error) {
	ids := make([]ebpf.ProgramID, 64)
	var pin runtime.Pinner
	pin.Pin(&ids[0])
	defer pin.Unpin()
	attr := struct { // union bpf_attr, query
		target, attachType, queryFlags, attachFlags uint32
		ids                                         uint64
		count, _                                    uint32
	}{target: uint32(cgroup.Fd()), attachType: uint32(at), ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), count: uint32(len(ids))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	if errno != 0 {
		return nil, 0, fmt.Errorf("query programs of %s: %w", cgroup.Name(), errno)
	}
	return ids[:attr.count], attr.attachFlags, nil
}
