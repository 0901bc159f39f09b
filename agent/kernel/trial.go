// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
		return addFilter(prog)
	})
	if err != nil {
		return fmt.Errorf("try clsact: %w", err)
	}
	return nil
}

// addFilter creates clsact on the loopback interface of the thread's namespace, and a filter in it.
func addFilter(prog *ebpf.Program) error {
	const loopback = 1 // LOOPBACK_IFINDEX of include/net/flow.h
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: loopback, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)}}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return fmt.Errorf("create clsact: %w", unknownKind(err))
	}
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: loopback, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd: prog.FD(), Name: trialName, DirectAction: true}
	if err := netlink.FilterAdd(filter); err != nil {
		return fmt.Errorf("add a cls_bpf filter: %w", unknownKind(err))
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

func tryPacketSocket() (err error) {
	prog, err := trivial(ebpf.SocketFilter, 0)
	if err != nil {
		return err
	}
	defer prog.Close()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("open: %w (%w)", ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, prog.FD()); err != nil {
		return fmt.Errorf("attach a filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("set TPACKET_V3: %w", err)
	}
	page := uint32(os.Getpagesize())
	ring := unix.TpacketReq3{Block_size: page, Block_nr: 1, Frame_size: page, Frame_nr: 1}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &ring); err != nil {
		return fmt.Errorf("set up a ring: %w", err)
	}
	return nil
}
