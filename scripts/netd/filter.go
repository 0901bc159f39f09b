// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The preferences of Connectivity's TcUtils.h, smaller is earlier. Samsung's own filter is at 1.
const (
	prefPolice  = 1
	prefVendor  = 1
	prefTether6 = 2
	prefTether4 = 3
	prefClat    = 4
	prefDSCP    = 5
)

// ErrNoMatchall says that the kernel has no matchall classifier, or no police or bpf action: then netd limits no rate.
var ErrNoMatchall = errors.New("no matchall classifier or no police and bpf actions in this kernel")

// filter is one of ours.
type filter struct {
	*program
	ifindex     int
	ifname      string
	parent      uint32
	pref, proto uint16
	handle      uint32
	kind        string
	role        string
	pair        string // of clat_ingress6: v4-NAME
}

// String is the name of the filter in errors and in what Seen returns: "wlan0 ingress tether6".
func (f *filter) String() string { return f.ifname + " " + way(f.parent) + " " + f.role }

func (f *filter) attrs() netlink.FilterAttrs {
	return netlink.FilterAttrs{LinkIndex: f.ifindex, Parent: f.parent, Priority: f.pref, Protocol: f.proto, Handle: f.handle}
}

// add loads the program of a role and adds its filter with NLM_F_EXCL.
func (n *Netd) add(f *filter, variables map[string]any, shared map[string]*ebpf.Map) error {
	err := n.tryAdd(f, variables, shared)
	if err != nil {
		return fmt.Errorf("add %s: %w", f, err)
	}
	n.filters = append(n.filters, f)
	return nil
}

func (n *Netd) tryAdd(f *filter, variables map[string]any, shared map[string]*ebpf.Map) (err error) {
	there, err := n.conn.hasClsact(f.ifindex)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("no clsact on %s: %w", f.ifname, unix.ENOENT)
	}
	if f.program, err = load(f.role, variables, shared); err != nil {
		return err
	}
	if err = n.conn.FilterAdd(f.netlink()); err != nil {
		return errors.Join(n.explain(f, err), f.program.close())
	}
	// netd leaves the handle to the kernel, too.
	fs, err := n.conn.filters(f.ifindex, f.parent)
	i := slices.IndexFunc(fs, func(e entry) bool { return slices.Contains(e.programs, f.id) })
	if err == nil && i < 0 {
		err = errors.New("the kernel does not list it")
	}
	if err != nil {
		return errors.Join(err, f.program.close())
	}
	f.handle = fs[i].handle
	return nil
}

// netlink is the filter as it is added.
func (f *filter) netlink() netlink.Filter {
	if f.kind == "matchall" {
		account := &netlink.BpfAction{Fd: f.FD(), Name: "netd_" + f.role}
		account.ActionAttrs.Action = netlink.TC_ACT_PIPE
		// As fast as can be written: what is policed is never dropped here.
		police := netlink.NewPoliceAction()
		police.Rate, police.Burst, police.Mtu = 1<<30, 1<<24, 1<<16
		police.ExceedAction, police.NotExceedAction = netlink.TC_POLICE_SHOT, netlink.TC_POLICE_UNSPEC
		return &netlink.MatchAll{FilterAttrs: f.attrs(), Actions: []netlink.Action{account, police}}
	}
	return &netlink.BpfFilter{FilterAttrs: f.attrs(), Fd: f.FD(), Name: "netd_" + f.role, DirectAction: true}
}

// explain says who is in the way of a filter that could not be added.
func (n *Netd) explain(f *filter, err error) error {
	if f.kind == "matchall" && errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", ErrNoMatchall, err)
	}
	fs, list := n.conn.filters(f.ifindex, f.parent)
	if list != nil {
		return errors.Join(err, list)
	}
	var who []string
	for _, e := range fs {
		if e.pref == f.pref {
			who = append(who, e.String())
		}
	}
	if len(who) > 0 {
		err = fmt.Errorf("%w: preference %d is taken by %s", err, f.pref, strings.Join(who, ", "))
	}
	return err
}

// remove deletes the filter if it is still there, and forgets it.
func (n *Netd) remove(f *filter) error {
	n.filters = slices.DeleteFunc(n.filters, func(g *filter) bool { return g == f })
	there, err := n.find(f)
	if err == nil && there != nil {
		err = n.conn.FilterDel(f.netlink())
	}
	if err = errors.Join(err, f.program.close()); err != nil {
		return fmt.Errorf("remove %s: %w", f, err)
	}
	return nil
}

// Remove removes the filters whose names, as Seen has them, contain these words: "wlan0 ingress account" ends a Police,
// "tether4" a part of every Tether.
func (n *Netd) Remove(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, f := range slices.Clone(n.filters) {
		if contains(f.String(), name) {
			errs = append(errs, n.remove(f))
		}
	}
	return errors.Join(errs...)
}

// simple adds one filter.
func (n *Netd) simple(ifname string, f filter) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.link(ifname)
	if err != nil {
		return fmt.Errorf("add %s: %w", f.role, err)
	}
	f.ifindex, f.ifname = l.Index, ifname
	return n.add(&f, nil, nil)
}

// Police limits the rate of what comes in, as ConnectivityService does when the user has set a limit: matchall with the
// accounting program and the policer, which gives way to later filters (UNSPEC) and here never drops. The error wraps ErrNoMatchall
// where the kernel cannot, and says who has the preference if that is the reason.
func (n *Netd) Police(ifname string) error {
	return n.simple(ifname, filter{parent: ingress, pref: prefPolice, proto: unix.ETH_P_ALL, kind: "matchall", role: "account"})
}

// DSCP adds the filter of the DSCP policies at egress; it returns PIPE.
func (n *Netd) DSCP(ifname string) error {
	return n.simple(ifname, filter{parent: egress, pref: prefDSCP, proto: unix.ETH_P_ALL, kind: "bpf", role: "dscp"})
}

// Vendor adds Samsung's semUidBPF at ingress and egress: preference 1, handle 1, all protocols, PIPE.
func (n *Netd) Vendor(ifname string) error {
	f := filter{parent: ingress, pref: prefVendor, proto: unix.ETH_P_ALL, handle: 1, kind: "bpf", role: "vendor"}
	if err := n.simple(ifname, f); err != nil {
		return err
	}
	f.parent = egress
	err := n.simple(ifname, f)
	if err != nil {
		err = errors.Join(err, n.Remove(ifname+" ingress vendor"))
	}
	return err
}

// Tether adds the offload's filters at ingress of both interfaces: IPv6 at 2 and IPv4 at 3. What Offload does not know
// is passed on with PIPE.
func (n *Netd) Tether(upstream, downstream string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var added []*filter
	for _, ifname := range []string{upstream, downstream} {
		l, err := n.link(ifname)
		for _, f := range []*filter{
			{pref: prefTether6, proto: unix.ETH_P_IPV6, role: "tether6"},
			{pref: prefTether4, proto: unix.ETH_P_IP, role: "tether4"},
		} {
			f.ifindex, f.ifname, f.parent, f.kind = l.Index, ifname, ingress, "bpf"
			if err == nil {
				err = n.add(f, map[string]any{"ethernet": flag(l.Ethernet)}, map[string]*ebpf.Map{"offloads": n.offloads})
			}
			if err == nil {
				added = append(added, f)
			}
		}
		if err != nil {
			for _, f := range added {
				err = errors.Join(err, n.remove(f))
			}
			return fmt.Errorf("tether %s to %s: %w", downstream, upstream, err)
		}
	}
	return nil
}

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// offload is a destination. C: struct offload.
type offload struct {
	Ifindex  uint32
	Ethernet uint32
	Dst, Src [6]byte
}

// Offload has the tether filters redirect what is for an address to an interface, there with mac as its destination
// where the interface is Ethernet's. The hop limit stays as it is.
func (n *Netd) Offload(dst netip.Addr, ifname string, mac net.HardwareAddr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.link(ifname)
	if err != nil {
		return fmt.Errorf("offload %s: %w", dst, err)
	}
	o := offload{Ifindex: uint32(l.Index), Ethernet: flag(l.Ethernet)}
	if l.Ethernet && len(mac) != len(o.Dst) {
		return fmt.Errorf("offload %s: %s is Ethernet and %q no address of it", dst, ifname, mac)
	}
	copy(o.Dst[:], mac)
	copy(o.Src[:], l.MAC)
	if err := n.offloads.Put(dst.As16(), o); err != nil {
		return fmt.Errorf("offload %s: %w", dst, err)
	}
	return nil
}
