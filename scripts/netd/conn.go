// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// conn speaks rtnetlink to the network namespace that it was opened in, whatever thread uses it.
type conn struct {
	*netlink.Handle
	raw map[int]*nl.SocketHandle
}

// QdiscDel is the handle's, again while somebody's filter request on the qdisc is under way, for which since 6.5 it cannot be deleted
// (net/sched/sch_api.c).
func (c *conn) QdiscDel(q netlink.Qdisc) error {
	for end := time.Now().Add(time.Second); ; {
		if err := c.Handle.QdiscDel(q); !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// open opens a conn to the network namespace of the calling thread.
func open() (*conn, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &conn{h, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

func (c *conn) close() {
	c.Handle.Close()
	c.raw[unix.NETLINK_ROUTE].Close()
}

// entry is a qdisc or a filter as the kernel lists it.
type entry struct {
	ifindex        int
	parent, handle uint32
	pref, proto    uint16 // of a filter
	kind           string
	name           string           // TCA_BPF_NAME
	direct         bool             // direct action
	programs       []ebpf.ProgramID // cls_bpf's, or those of its bpf actions
	actions        []string         // their kinds
}

// list asks for all qdiscs (RTM_GETQDISC), or for the filters at a parent (RTM_GETTFILTER), none where there is no qdisc.
func (c *conn) list(ask, answer uint16, ifindex int, parent uint32) ([]entry, error) {
	var raw [][]byte
	var err error
	for range 5 {
		req := nl.NewNetlinkRequest(int(ask), unix.NLM_F_DUMP)
		req.Sockets = c.raw
		req.AddData(&nl.TcMsg{Ifindex: int32(ifindex), Parent: parent})
		// A change during the dump marks it as interrupted; ask again.
		if raw, err = req.Execute(unix.NETLINK_ROUTE, answer); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []entry
	for _, b := range raw {
		e, err := parse(b)
		if err != nil {
			return nil, fmt.Errorf("parse tcmsg: %w", err)
		}
		all = append(all, e)
	}
	return all, nil
}

func (c *conn) qdiscs() ([]entry, error) {
	all, err := c.list(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	return all, nil
}

// filters leaves out the entries without a handle, which stand for a preference.
func (c *conn) filters(ifindex int, parent uint32) ([]entry, error) {
	all, err := c.list(unix.RTM_GETTFILTER, unix.RTM_NEWTFILTER, ifindex, parent)
	if err != nil {
		return nil, fmt.Errorf("list %s filters: %w", way(parent), err)
	}
	var fs []entry
	for _, e := range all {
		if e.handle != 0 {
			fs = append(fs, e)
		}
	}
	return fs, nil
}

// way names a parent of filters.
func way(parent uint32) string {
	switch parent {
	case ingress:
		return "ingress"
	case egress:
		return "egress"
	}
	return fmt.Sprintf("%x:%x", parent>>16, parent&0xffff)
}

// attributes calls f with each attribute's type, without the flags in it, and value.
func attributes(b []byte, f func(kind uint16, value []byte) error) error {
	attrs, err := nl.ParseRouteAttr(b)
	if err != nil {
		return err
	}
	for _, a := range attrs {
		if err := f(a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), a.Value); err != nil {
			return err
		}
	}
	return nil
}

// parse reads a struct tcmsg and its attributes.
func parse(b []byte) (entry, error) {
	if len(b) < nl.SizeofTcMsg {
		return entry{}, fmt.Errorf("%d bytes", len(b))
	}
	msg := nl.DeserializeTcMsg(b)
	// tcm_info of a filter is the preference and, in network order, the protocol.
	e := entry{
		ifindex: int(msg.Ifindex), parent: msg.Parent, handle: msg.Handle,
		pref: uint16(msg.Info >> 16), proto: nl.Swap16(uint16(msg.Info)),
	}
	var options []byte
	err := attributes(b[nl.SizeofTcMsg:], func(kind uint16, value []byte) error {
		switch kind {
		case nl.TCA_KIND:
			e.kind = unix.ByteSliceToString(value)
		case nl.TCA_OPTIONS:
			options = value
		}
		return nil
	})
	switch {
	case err != nil:
	case e.kind == "bpf":
		err = e.parseBPF(options)
	case e.kind == "matchall":
		err = e.parseMatchall(options)
	}
	return e, err
}

func (e *entry) parseBPF(options []byte) error {
	return attributes(options, func(kind uint16, value []byte) error {
		switch {
		case kind == nl.TCA_BPF_NAME:
			e.name = unix.ByteSliceToString(value)
		case kind == nl.TCA_BPF_ID && len(value) == 4:
			e.programs = append(e.programs, ebpf.ProgramID(nl.NativeEndian().Uint32(value)))
		case kind == nl.TCA_BPF_FLAGS && len(value) == 4:
			e.direct = nl.NativeEndian().Uint32(value)&nl.TCA_BPF_FLAG_ACT_DIRECT != 0
		}
		return nil
	})
}

const actBPFID = 9 // TCA_ACT_BPF_ID, include/uapi/linux/tc_act/tc_bpf.h

func (e *entry) parseMatchall(options []byte) error {
	return attributes(options, func(kind uint16, value []byte) error {
		if kind != nl.TCA_MATCHALL_ACT {
			return nil
		}
		return attributes(value, func(_ uint16, action []byte) error { return e.parseAction(action) })
	})
}

func (e *entry) parseAction(action []byte) error {
	return attributes(action, func(kind uint16, value []byte) error {
		switch kind {
		case nl.TCA_ACT_KIND:
			e.actions = append(e.actions, unix.ByteSliceToString(value))
		case nl.TCA_ACT_OPTIONS:
			return attributes(value, func(kind uint16, value []byte) error {
				if kind == actBPFID && len(value) == 4 && e.actions[len(e.actions)-1] == "bpf" {
					e.programs = append(e.programs, ebpf.ProgramID(nl.NativeEndian().Uint32(value)))
				}
				return nil
			})
		}
		return nil
	})
}

// clsact addresses the qdisc of that kind at an interface.
func clsact(ifindex int) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

// hasClsact says whether there is one at an interface.
func (c *conn) hasClsact(ifindex int) (bool, error) {
	all, err := c.qdiscs()
	for _, e := range all {
		if e.ifindex == ifindex && e.kind == "clsact" {
			return true, nil
		}
	}
	return false, err
}
