// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"droidtap/android"
)

// handleIngress is the handle ffff: of a clsact and of an ingress qdisc, and parentClsact their parent (TC_H_CLSACT, the
// same number as TC_H_INGRESS, of include/uapi/linux/pkt_sched.h).
const (
	handleIngress = 0xffff0000
	parentClsact  = 0xfffffff1
)

// kindBPF is what tc calls a cls_bpf filter.
const kindBPF = "bpf"

// filter is what the choice of a place and the knowledge of our own need of an entry of RTM_GETTFILTER. The entry with
// handle 0 that stands for the preference itself is one as well.
type filter struct {
	pref   uint16
	proto  uint16 // ETH_P_*
	kind   string
	handle uint32
	name   string // TCA_BPF_NAME
}

// tcEntry is one object of a traffic control dump.
type tcEntry struct {
	nl.TcMsg
	kind    string
	options []byte
}

// parent is where filters of the direction hang: ffff:fff2 or ffff:fff3 (TC_H_MIN_INGRESS and TC_H_MIN_EGRESS).
func (d Direction) parent() uint32 {
	if d == Egress {
		return handleIngress | 0xfff3
	}
	return handleIngress | 0xfff2
}

// dump lists qdiscs or filters. vishvananda/netlink's FilterList and QdiscList also decode the options of every kind, and fail on, or
// leave out, what they do not know; here only foreign objects' presence matters.
func dump(ask, answer uint16, msg nl.TcMsg) ([]tcEntry, error) {
	var raw [][]byte
	var err error
	for range 5 {
		req := nl.NewNetlinkRequest(int(ask), unix.NLM_F_DUMP)
		req.AddData(&msg)
		// A change during the dump marks it as interrupted; ask again.
		if raw, err = req.Execute(unix.NETLINK_ROUTE, answer); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	var all []tcEntry
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
func parseEntry(b []byte) (tcEntry, error) {
	if len(b) < nl.SizeofTcMsg {
		return tcEntry{}, fmt.Errorf("parse tcmsg: %d bytes", len(b))
	}
	e := tcEntry{TcMsg: *nl.DeserializeTcMsg(b)}
	attrs, err := nl.ParseRouteAttr(b[nl.SizeofTcMsg:])
	if err != nil {
		return tcEntry{}, fmt.Errorf("parse tcmsg: %w", err)
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.TCA_KIND:
			e.kind = unix.ByteSliceToString(a.Value)
		case nl.TCA_OPTIONS:
			e.options = a.Value
		}
	}
	return e, nil
}

// qdiscs returns, by ifindex, the kind of the qdisc at ffff: (clsact or ingress); an interface without has no entry.
func qdiscs() (map[int]string, error) {
	all, err := dump(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, nl.TcMsg{})
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	kinds := map[int]string{}
	for _, e := range all {
		if e.Parent == parentClsact {
			kinds[int(e.Ifindex)] = e.kind
		}
	}
	return kinds, nil
}

// filters returns all filters of one direction, none where the qdisc or the interface is missing. An old ingress
// qdisc answers with its filters for either direction (net/sched/sch_ingress.c ingress_find).
func filters(ifindex int, dir Direction) ([]filter, error) {
	all, err := dump(unix.RTM_GETTFILTER, unix.RTM_NEWTFILTER, nl.TcMsg{Ifindex: int32(ifindex), Parent: dir.parent()})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list %s filters: %w", dir, err)
	}
	var fs []filter
	for _, e := range all {
		// tcm_info is the preference and, in network order, the protocol.
		f := filter{pref: uint16(e.Info >> 16), proto: nl.Swap16(uint16(e.Info)), kind: e.kind, handle: e.Handle}
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
	attrs, err := nl.ParseRouteAttr(options)
	if err != nil {
		return "", fmt.Errorf("parse cls_bpf options: %w", err)
	}
	for _, a := range attrs {
		if a.Attr.Type == nl.TCA_BPF_NAME {
			return unix.ByteSliceToString(a.Value), nil
		}
	}
	return "", nil
}

// change asks for something to be made, replaced or deleted: what the struct tcmsg names, with such attributes.
func change(kind, flags int, msg nl.TcMsg, attrs ...*nl.RtAttr) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	req.AddData(&msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// clsact names the qdisc that Attach creates and Close deletes.
func clsact(ifindex int) nl.TcMsg {
	return nl.TcMsg{Ifindex: int32(ifindex), Handle: handleIngress, Parent: parentClsact}
}

// addClsact creates the clsact of an interface. The error wraps unix.EEXIST where there is one, and unix.ENOENT on a kernel
// without.
func addClsact(ifindex int) error {
	kind := nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("clsact"))
	return change(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, clsact(ifindex), kind)
}

// msg names the filter.
func (f *Filter) msg() nl.TcMsg {
	return nl.TcMsg{
		Ifindex: int32(f.ifc.Index),
		Handle:  f.Handle,
		Parent:  f.dir.parent(),
		Info:    uint32(f.Pref)<<16 | uint32(nl.Swap16(unix.ETH_P_ALL)),
	}
}

// put adds a filter with a program, or replaces the one that is there, as the flags say. The program's verdict is the
// filter's.
func (f *Filter) put(prog *ebpf.Program, flags int) error {
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_FD, nl.Uint32Attr(uint32(prog.FD())))
	options.AddRtAttr(nl.TCA_BPF_NAME, nl.ZeroTerminated(f.name))
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	return change(unix.RTM_NEWTFILTER, flags, f.msg(), nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kindBPF)), options)
}

// delete removes the filter.
func (f *Filter) delete() error {
	return change(unix.RTM_DELTFILTER, 0, f.msg(), nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kindBPF)))
}

// deleteEmpty removes the clsact of an interface if no filter of anybody is left in it. The kernel has no way to do
// both at once, so a filter that is added in between goes too.
//
// Beside Android's netd it stays: netd takes a clsact that it finds for its own (RouteController::maybeModifyQdiscClsact
// ignores EEXIST) and counts on it when clat or tethering starts later. An empty one does nothing.
func deleteEmpty(ifindex int) (bool, error) {
	if android.HasNetd(os.DirFS("/")) {
		return false, nil
	}
	for _, dir := range []Direction{Ingress, Egress} {
		if fs, err := filters(ifindex, dir); err != nil || len(fs) > 0 {
			return false, err
		}
	}
	err := change(unix.RTM_DELQDISC, 0, clsact(ifindex))
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
