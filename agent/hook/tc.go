// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/rtnl"
	"droidtap/android"
)

// handleIngress is the handle ffff: of a clsact and of an ingress qdisc, and parentClsact their parent (TC_H_CLSACT, the
// same number as TC_H_INGRESS, of include/uapi/linux/pkt_sched.h).
const (
	handleIngress = 0xffff0000
	parentClsact  = 0xfffffff1
)

// kindBPF is what tc calls a cls_bpf filter. The others are its options (TCA_BPF_FD, _NAME and _FLAGS, and
// TCA_BPF_FLAG_ACT_DIRECT of the latter, of include/uapi/linux/pkt_cls.h).
const (
	kindBPF     = "bpf"
	tcaBPFFD    = 6
	tcaBPFName  = 7
	tcaBPFFlags = 8
	actDirect   = 1
)

// filter is what the choice of a place and the knowledge of our own need of an entry of RTM_GETTFILTER. The entry with
// handle 0 that stands for the preference itself is one as well.
type filter struct {
	pref   uint16
	proto  uint16 // ETH_P_*
	kind   string
	handle uint32
	name   string // TCA_BPF_NAME
}

// tcmsg is a struct tcmsg of include/uapi/linux/rtnetlink.h, without its family, which is AF_UNSPEC.
type tcmsg struct {
	ifindex              int32
	handle, parent, info uint32
}

// sizeofTcmsg is its size in bytes.
const sizeofTcmsg = 20

// bytes returns it as the kernel reads it.
func (m tcmsg) bytes() []byte {
	b := make([]byte, 4, sizeofTcmsg)
	for _, v := range []uint32{uint32(m.ifindex), m.handle, m.parent, m.info} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// protocol converts an ETH_P_* to the byte order of the network, and back.
func protocol(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

// entry is one object of a list of traffic control.
type entry struct {
	tcmsg
	kind    string
	options []byte
	stab    []byte
}

// parent is where filters of the direction hang: ffff:fff2 or ffff:fff3 (TC_H_MIN_INGRESS and TC_H_MIN_EGRESS).
func (d Direction) parent() uint32 {
	if d == Egress {
		return handleIngress | 0xfff3
	}
	return handleIngress | 0xfff2
}

// dump lists qdiscs or filters. vishvananda/netlink's FilterList and QdiscList also decode the options of every kind, and
// fail on, or leave out, what they do not know; here only foreign objects' presence matters.
func dump(kind uint16, of tcmsg) ([]entry, error) {
	raw, err := rtnl.List(kind, of.bytes())
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, b := range raw {
		e, err := parseEntry(b)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// parseEntry reads a struct tcmsg and its attributes.
func parseEntry(b []byte) (entry, error) {
	if len(b) < sizeofTcmsg {
		return entry{}, fmt.Errorf("parse tcmsg: %w: %d bytes", unix.EBADMSG, len(b))
	}
	attrs, err := rtnl.Attributes(b[sizeofTcmsg:])
	if err != nil {
		return entry{}, fmt.Errorf("parse tcmsg: %w", err)
	}
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	return entry{
		tcmsg:   tcmsg{ifindex: int32(word(4)), handle: word(8), parent: word(12), info: word(16)},
		kind:    unix.ByteSliceToString(attrs[unix.TCA_KIND]),
		options: attrs[unix.TCA_OPTIONS],
		stab:    attrs[tcaStab],
	}, nil
}

// holder is the qdisc at ffff:, in which filters hang.
type holder struct {
	kind  string // clsact or ingress
	ours  bool   // created by a process of ours
	maker label  // which one
}

// qdiscs returns, by ifindex, the qdisc at ffff:; an interface without has no entry.
func qdiscs() (map[int]holder, error) {
	all, err := dump(unix.RTM_GETQDISC, tcmsg{})
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	of := map[int]holder{}
	for _, e := range all {
		if e.parent == parentClsact {
			h := holder{kind: e.kind}
			h.maker, h.ours = parseLabel(e.stab)
			of[int(e.ifindex)] = h
		}
	}
	return of, nil
}

// filters returns all filters of one direction, none where the qdisc or the interface is missing. An old ingress
// qdisc answers with its filters for either direction (net/sched/sch_ingress.c ingress_find).
func filters(ifindex int, dir Direction) ([]filter, error) {
	all, err := dump(unix.RTM_GETTFILTER, tcmsg{ifindex: int32(ifindex), parent: dir.parent()})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s filters: %w", dir, err)
	}
	var fs []filter
	for _, e := range all {
		// tcm_info is the preference and, in network order, the protocol.
		f := filter{pref: uint16(e.info >> 16), proto: protocol(uint16(e.info)), kind: e.kind, handle: e.handle}
		if e.kind == kindBPF {
			if f.name, err = bpfName(e.options); err != nil {
				return nil, fmt.Errorf("list %s filters: %w", dir, err)
			}
		}
		fs = append(fs, f)
	}
	return fs, nil
}

// bpfName returns the TCA_BPF_NAME among the options of a cls_bpf filter.
func bpfName(options []byte) (string, error) {
	attrs, err := rtnl.Attributes(options)
	if err != nil {
		return "", fmt.Errorf("parse cls_bpf options: %w", err)
	}
	return unix.ByteSliceToString(attrs[tcaBPFName]), nil
}

// clsact names the qdisc that Attach creates and Close deletes.
func clsact(ifindex int) tcmsg {
	return tcmsg{ifindex: int32(ifindex), handle: handleIngress, parent: parentClsact}
}

// addClsact creates the clsact of an interface. The error wraps unix.EEXIST where there is one, and unix.ENOENT on a kernel
// without.
func addClsact(ifindex int, me owner) error {
	request := rtnl.AppendAttribute(clsact(ifindex).bytes(), unix.TCA_KIND, zeroTerminated("clsact"))
	request = rtnl.AppendAttribute(request, tcaStab, labelOf(me).attribute())
	return rtnl.Do(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, request)
}

// request begins a request that names the filter.
func (f *Filter) request() []byte {
	m := tcmsg{
		ifindex: int32(f.ifc.Index),
		handle:  f.Handle,
		parent:  f.dir.parent(),
		info:    uint32(f.Pref)<<16 | uint32(protocol(unix.ETH_P_ALL)),
	}
	return rtnl.AppendAttribute(m.bytes(), unix.TCA_KIND, zeroTerminated(kindBPF))
}

// put adds a filter with a program, or replaces the one that is there, as the flags say. The program's verdict is the
// filter's.
func (f *Filter) put(prog *ebpf.Program, flags uint16) error {
	options := rtnl.AppendAttribute(nil, tcaBPFFD, binary.NativeEndian.AppendUint32(nil, uint32(prog.FD())))
	options = rtnl.AppendAttribute(options, tcaBPFName, zeroTerminated(f.name))
	options = rtnl.AppendAttribute(options, tcaBPFFlags, binary.NativeEndian.AppendUint32(nil, actDirect))
	return rtnl.Do(unix.RTM_NEWTFILTER, flags, rtnl.AppendAttribute(f.request(), unix.TCA_OPTIONS, options))
}

// delete removes the filter.
func (f *Filter) delete() error { return rtnl.Do(unix.RTM_DELTFILTER, 0, f.request()) }

func zeroTerminated(s string) []byte { return append([]byte(s), 0) }

// loopback is the name that the kernel gives that interface.
const loopback = "lo"

// deleteEmpty removes the clsact of an interface if it is one of ours, and no filter of anybody is left in it. The kernel has no way
// to do that at once, so a filter that is added in between goes too. It compares the kind: an ingress qdisc that has taken its place stays.
//
// Beside Android's netd it stays: netd takes a clsact that it finds for its own (RouteController::maybeModifyQdiscClsact
// ignores EEXIST) and counts on it when clat or tethering starts later. An empty one does nothing. The loopback interface is in
// no network that has either.
func deleteEmpty(ifc android.Interface) (bool, error) {
	if ifc.Name != loopback && android.HasNetd(os.DirFS("/")) {
		return false, nil
	}
	for _, dir := range []Direction{Ingress, Egress} {
		if fs, err := filters(ifc.Index, dir); err != nil || len(fs) > 0 {
			return false, err
		}
	}
	// Who created it may have lost it since to somebody who made another.
	there, err := qdiscs()
	if err != nil || !there[ifc.Index].ours {
		return false, err
	}
	err = rtnl.Do(unix.RTM_DELQDISC, 0, rtnl.AppendAttribute(clsact(ifc.Index).bytes(), unix.TCA_KIND, zeroTerminated("clsact")))
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("delete clsact: %w", err)
	}
	return true, nil
}

// gone says whether a deletion found nothing to delete. A missing qdisc is EINVAL to RTM_DELQDISC and older kernels'
// RTM_DELTFILTER (net/sched/sch_api.c tc_get_qdisc), ENOENT to newer ones.
func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL)
}
