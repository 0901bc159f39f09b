// SPDX-License-Identifier: Apache-2.0

// Package hook attaches a loaded program to one direction of one interface, and takes it off again without harm to
// whatever else is attached there.
package hook

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
	"droidtap/android"
)

// Direction is seen from the interface: Ingress is what it receives.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// String returns "ingress" or "egress".
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// ErrNoClsact is wrapped by the error of an Attach that would have to create a clsact qdisc where there must or can be
// none. Another hook, or a packet socket, still captures there.
var ErrNoClsact = errors.New("no clsact qdisc may be created")

// Attachment is a program at its place, until it is closed.
type Attachment interface {
	io.Closer
	// Update puts another program in the place of the one that runs. Each packet is
	// seen by the one or by the other.
	Update(*ebpf.Program) error
	// Warning says why the program may not see every packet, or is "".
	Warning() string
	// Check looks whether the program is at its place still, and whether somebody else's has come ahead of it since: then
	// Warning changes. The error wraps ErrLost where it is gone, its interface included.
	Check() error
}

// Attach runs prog, which must return TC_ACT_UNSPEC (the same number as TCX_NEXT), for every packet of ifc in that
// direction, until Close of what it returns: a *Filter for plan.TC, which stays until it is removed (see Sweep), a *Link
// for plan.TCX, which dies with the process.
//
// The error wraps os.ErrPermission where the kernel refuses, ebpf.ErrNotSupported for TCX on a kernel without, ErrNoClsact,
// and unix.ENODEV where there is no such interface. ifc is looked up in the network namespace of the calling thread.
func Attach(at plan.Hook, ifc android.Interface, dir Direction, prog *ebpf.Program) (Attachment, error) {
	var a Attachment
	var err error
	switch at {
	case plan.TCX:
		a, err = attachTCX(ifc, dir, prog)
	case plan.TC:
		a, err = attachClsact(ifc, dir, prog, map[uint16]int{})
	default:
		err = errors.New("no such hook")
	}
	if err != nil {
		return nil, fmt.Errorf("attach %s %s to %s: %w", at, dir, ifc.Name, err)
	}
	return a, nil
}

// AttachBehind is Attach for plan.TC that leaves preference 1 to others, even where it is free.
func AttachBehind(ifc android.Interface, dir Direction, prog *ebpf.Program) (Attachment, error) {
	f, err := attachClsact(ifc, dir, prog, map[uint16]int{prefFirst: attempts})
	if err != nil {
		return nil, fmt.Errorf("attach %s %s to %s: %w", plan.TC, dir, ifc.Name, err)
	}
	return f, nil
}

// Link is a program attached by TCX.
type Link struct {
	link.Link
	warning string
}

// Check asks the kernel whether the link is attached: it is until its interface goes.
func (l *Link) Check() error {
	info, err := l.Info()
	if err != nil {
		return fmt.Errorf("look at a tcx link: %w", err)
	}
	if x := info.TCX(); x != nil && x.Ifindex == 0 {
		return ErrLost
	}
	return nil
}

// Warning says why the program may not see every packet, or is "".
func (l *Link) Warning() string { return l.warning }

// Update replaces the program, if the interface is still there. Close does the rest.
func (l *Link) Update(prog *ebpf.Program) error {
	if err := l.Link.Update(prog); err != nil && !errors.Is(err, unix.ENOLINK) {
		return fmt.Errorf("update tcx program: %w", err)
	}
	return nil
}

// attachType returns what BPF calls the direction.
func (d Direction) attachType() ebpf.AttachType {
	if d == Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

// attachTCX puts prog before all others: one of them may redirect or drop (netd's clat and tethering).
func attachTCX(ifc android.Interface, dir Direction, prog *ebpf.Program) (*Link, error) {
	opts := link.TCXOptions{Interface: ifc.Index, Program: prog, Attach: dir.attachType(), Anchor: link.Head()}
	first, err := link.AttachTCX(opts)
	if err == nil {
		return &Link{Link: first}, nil
	}
	// AttachTCX explains a refusal with a probe that takes EPERM for a lack of TCX.
	if lacks := HaveTCX(); lacks != nil {
		return nil, lacks
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
		return nil, err
	}
	opts.Anchor = nil
	last, again := link.AttachTCX(opts)
	if again != nil {
		return nil, fmt.Errorf("%w (at the head: %w)", again, err)
	}
	return &Link{last, fmt.Sprintf("the kernel refuses the first place at %s of %s (%v): programs ahead may hide packets", dir, ifc.Name, err)}, nil
}

// progQuery is the part of union bpf_attr that BPF_PROG_QUERY uses. Kernels with TCX write the revision whatever size
// they are told (kernel/bpf/mprog.c bpf_mprog_query), so it is there.
type progQuery struct {
	target, attachType, queryFlags, attachFlags uint32
	progIDs                                     uint64
	count, _                                    uint32
	progAttachFlags, linkIDs, linkAttachFlags   uint64
	revision                                    uint64
}

// HaveTCX returns nil where the kernel has TCX, an error that wraps ebpf.ErrNotSupported where it has not, and another
// (such as os.ErrPermission) where it would not tell. It attaches and loads nothing.
//
// BPF_PROG_QUERY of an attach type is EINVAL before the kernel that brought the type (kernel/bpf/syscall.c
// bpf_prog_query; TCX: 6.6, commit e420bed02507) and without CONFIG_NET_XGRESS. link.QueryPrograms would call EPERM
// unsupported as well.
func HaveTCX() error {
	const loopback = 1 // LOOPBACK_IFINDEX of include/net/flow.h
	attr := progQuery{target: loopback, attachType: uint32(ebpf.AttachTCXIngress)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	switch errno {
	case 0, unix.ENODEV:
		return nil
	case unix.EINVAL, unix.ENOSYS:
		return fmt.Errorf("query tcx programs: %w before kernel 6.6 (%w)", ebpf.ErrNotSupported, errno)
	}
	return fmt.Errorf("query tcx programs: %w", errno)
}
