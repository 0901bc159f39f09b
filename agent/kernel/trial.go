// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/afpacket"
	"droidtap/agent/hook"
	"droidtap/agent/plan"
	"droidtap/android"
)

// HaveClsact returns nil where a filter can be put in a clsact qdisc: it puts one on the loopback interface of a network
// namespace of its own, which ends with the thread that is in it.
//
// The error wraps ebpf.ErrNotSupported where the kernel has no clsact or no cls_bpf, os.ErrPermission where it refuses, and
// neither where it cannot be tried (such as unix.EINVAL without CONFIG_NET_NS).
func HaveClsact() error {
	err := onThread(func() error {
		prog, err := trivial(ebpf.SchedCLS, -1) // TC_ACT_UNSPEC
		if err != nil {
			return err
		}
		defer prog.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		const loopback = 1 // LOOPBACK_IFINDEX of include/net/flow.h
		filter, err := hook.Attach(plan.TC, android.Interface{Index: loopback, Name: "lo"}, hook.Ingress, prog)
		if err != nil {
			return unknownKind(err)
		}
		return filter.Close()
	})
	if err != nil {
		return fmt.Errorf("try clsact: %w", err)
	}
	return nil
}

// unknownKind marks the answers of a kernel that knows no such qdisc or filter: ENOENT to a kind (net/sched/sch_api.c
// qdisc_create, cls_api.c tcf_proto_lookup_ops), EOPNOTSUPP to the request without CONFIG_NET_SCHED or CONFIG_NET_CLS.
func unknownKind(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w (%w)", ebpf.ErrNotSupported, err)
	}
	return err
}

// HavePacketSocket returns nil where a packet socket takes an eBPF filter and a TPACKET_V3 ring. The socket is bound to
// nothing, so nothing comes to it.
//
// The error wraps ebpf.ErrNotSupported on a kernel without packet sockets (CONFIG_PACKET) and os.ErrPermission where the
// kernel refuses.
func HavePacketSocket() error {
	if err := tryPacketSocket(); err != nil {
		return fmt.Errorf("try a packet socket: %w", err)
	}
	return nil
}

func tryPacketSocket() error {
	prog, err := trivial(ebpf.SocketFilter, 0)
	if err != nil {
		return err
	}
	defer prog.Close()
	err = afpacket.Try(prog)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("%w (%w)", ebpf.ErrNotSupported, err)
	}
	return err
}
