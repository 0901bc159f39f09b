// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
	"droidtap/android"
)

var directions = []Direction{Ingress, Egress}

// eachHook runs a test for every hook the kernel has.
func eachHook(t *testing.T, f func(t *testing.T, kind plan.Hook)) {
	for _, kind := range []plan.Hook{plan.TCX, plan.TC} {
		t.Run(string(kind), func(t *testing.T) {
			if kind == plan.TCX {
				if err := HaveTCX(); errors.Is(err, ebpf.ErrNotSupported) {
					t.Skip(err)
				}
			}
			f(t, kind)
		})
	}
}

func TestSeesPacketsUntilClose(t *testing.T) {
	eachHook(t, func(t *testing.T, kind plan.Hook) {
		n := newNetwork(t, "veth0")
		for _, dir := range directions {
			c := count(t)
			closer := attach(t, kind, n.ifc, dir, c)
			if w := closer.(interface{ Warning() string }).Warning(); w != "" {
				t.Errorf("warning of %s: %s", dir, w)
			}
			n.send(t, Ingress, 3)
			n.send(t, Egress, 5)
			if want, got := map[Direction]uint64{Ingress: 3, Egress: 5}[dir], c.took(t); got != want {
				t.Errorf("%s: counted %d packets, want %d", dir, got, want)
			}
			must(t, closer.Close())
			n.send(t, dir, 2)
			if got := c.took(t); got != 0 {
				t.Errorf("%s: counted %d packets after Close", dir, got)
			}
			must(t, closer.Close())
		}
		if got := qdisc(t, n.ifc); got != "" {
			t.Errorf("%s is left", got)
		}
	})
}

func TestClsactGoesWithTheLastOfOurs(t *testing.T) {
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			n := newNetwork(t, "veth0")
			closers := []io.Closer{attach(t, plan.TC, n.ifc, Ingress, count(t)), attach(t, plan.TC, n.ifc, Egress, count(t))}
			must(t, closers[order[0]].Close())
			if got := qdisc(t, n.ifc); got != "clsact" {
				t.Fatalf("qdisc %q while one of ours is attached", got)
			}
			must(t, closers[order[1]].Close())
			if got := qdisc(t, n.ifc); got != "" {
				t.Errorf("%s is left", got)
			}
		})
	}
}

func TestForeignFilters(t *testing.T) {
	for _, c := range []struct {
		rule        string
		pref, proto uint16
		want        uint16
	}{
		{"bpf and all at 1 is shared", 1, unix.ETH_P_ALL, 1},
		{"bpf and ip at 1 is passed over", 1, unix.ETH_P_IP, 6},
		{"clat at 4 comes behind", 4, unix.ETH_P_IP, 1},
	} {
		t.Run(c.rule, func(t *testing.T) {
			n := newNetwork(t, "veth0")
			must(t, netlink.QdiscAdd(theirQdisc(n.ifc)))
			var theirs, ours []*counter
			var closers []io.Closer
			for _, dir := range directions {
				theirs = append(theirs, n.foreign(t, n.ifc, dir, c.pref, c.proto))
				ours = append(ours, count(t))
				closers = append(closers, attach(t, plan.TC, n.ifc, dir, ours[dir]))
				f := closers[dir].(*Filter)
				if f.Pref != c.want || (f.Warning() == "") != (c.want == 1) {
					t.Errorf("%s: preference %d, warning %q, want %d", dir, f.Pref, f.Warning(), c.want)
				}
			}
			for _, dir := range directions {
				n.send(t, dir, 3)
				if o, f := ours[dir].took(t), theirs[dir].took(t); o != 3 || f != 3 {
					t.Errorf("%s: counted %d, the foreign filter %d, want 3", dir, o, f)
				}
				must(t, closers[dir].Close())
				n.send(t, dir, 3)
				if o, f := ours[dir].took(t), theirs[dir].took(t); o != 0 || f != 3 {
					t.Errorf("%s after Close: counted %d, the foreign filter %d, want 0 and 3", dir, o, f)
				}
			}
			if got := qdisc(t, n.ifc); got != "clsact" {
				t.Errorf("qdisc is %q, want the foreign clsact", got)
			}
		})
	}
}

func TestSharedPreferenceIsFirst(t *testing.T) {
	n := newNetwork(t, "veth0")
	must(t, netlink.QdiscAdd(theirQdisc(n.ifc)))
	there := n.foreign(t, n.ifc, Ingress, 1, unix.ETH_P_ALL)
	hidden, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "Apache-2.0", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	must(t, err)
	defer hidden.Close()
	must(t, netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: n.ifc.Index, Parent: Ingress.parent(), Handle: 2, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:           hidden.FD(),
		DirectAction: true,
	}))
	n.send(t, Ingress, 2)
	if got := there.took(t); got != 0 {
		t.Fatalf("a filter behind TC_ACT_OK counted %d packets", got)
	}
	c := count(t)
	closer := attach(t, plan.TC, n.ifc, Ingress, c)
	n.send(t, Ingress, 2)
	if got := c.took(t); got != 2 {
		t.Errorf("counted %d packets beside a filter that returns TC_ACT_OK, want 2", got)
	}
	must(t, closer.Close())
}

func TestOtherKindAtPreference1(t *testing.T) {
	n := newNetwork(t, "veth0")
	must(t, netlink.QdiscAdd(theirQdisc(n.ifc)))
	u32 := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: n.ifc.Index, Parent: Egress.parent(), Priority: 1, Protocol: unix.ETH_P_ALL},
		Sel:         &netlink.TcU32Sel{Nkeys: 1, Keys: []netlink.TcU32Key{{Mask: 0xffffffff, Val: 0x12345678}}},
	}
	if err := netlink.FilterAdd(u32); errors.Is(err, unix.ENOENT) {
		t.Skip("this kernel has no cls_u32")
	} else {
		must(t, err)
	}
	before, err := filters(n.ifc.Index, Egress)
	must(t, err)
	c := count(t)
	closer := attach(t, plan.TC, n.ifc, Egress, c)
	if f := closer.(*Filter); f.Pref != 6 || f.Warning() == "" {
		t.Errorf("preference %d, warning %q, want 6 and a warning", f.Pref, f.Warning())
	}
	n.send(t, Egress, 2)
	if got := c.took(t); got != 2 {
		t.Errorf("counted %d packets, want 2", got)
	}
	must(t, closer.Close())
	after, err := filters(n.ifc.Index, Egress)
	must(t, err)
	if diff := cmp.Diff(before, after, cmp.AllowUnexported(filter{})); diff != "" {
		t.Errorf("foreign filters (-before +after):\n%s", diff)
	}
}

func TestForeignTCX(t *testing.T) {
	if err := HaveTCX(); errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip(err)
	}
	n := newNetwork(t, "veth0")
	for _, dir := range directions {
		theirs, ours := n.foreignTCX(t, dir), count(t)
		closer := attach(t, plan.TCX, n.ifc, dir, ours)
		if at, err := link.QueryPrograms(link.QueryOptions{Target: n.ifc.Index, Attach: dir.attachType()}); err != nil || len(at.Programs) != 2 || at.Programs[0].ID != id(t, ours) {
			t.Errorf("%s: programs are %+v, %v, want ours first of two", dir, at, err)
		}
		n.send(t, dir, 3)
		if o, f := ours.took(t), theirs.took(t); o != 3 || f != 3 {
			t.Errorf("%s: counted %d, the foreign program %d, want 3 and 3", dir, o, f)
		}
		must(t, closer.Close())
		n.send(t, dir, 3)
		if o, f := ours.took(t), theirs.took(t); o != 0 || f != 3 {
			t.Errorf("%s after Close: counted %d, the foreign program %d, want 0 and 3", dir, o, f)
		}
	}
}

func id(t *testing.T, c *counter) ebpf.ProgramID {
	t.Helper()
	info, err := c.prog.Info()
	must(t, err)
	id, _ := info.ID()
	return id
}

func TestClsactStaysForAForeignFilter(t *testing.T) {
	n := newNetwork(t, "veth0")
	closer := attach(t, plan.TC, n.ifc, Egress, count(t))
	theirs := n.foreign(t, n.ifc, Ingress, 4, unix.ETH_P_IP)
	must(t, closer.Close())
	n.send(t, Ingress, 2)
	if got := theirs.took(t); qdisc(t, n.ifc) != "clsact" || got != 2 {
		t.Errorf("qdisc %q, the foreign filter counted %d, want clsact and 2", qdisc(t, n.ifc), got)
	}
}

// netd deletes the clsact with all filters when an interface leaves a network, and makes its own when it joins one.
func TestClsactMadeAnewIsNotOurs(t *testing.T) {
	n := newNetwork(t, "veth0")
	old := attach(t, plan.TC, n.ifc, Ingress, count(t))
	must(t, netlink.QdiscDel(theirQdisc(n.ifc)))
	must(t, netlink.QdiscAdd(theirQdisc(n.ifc)))
	// Somebody else's filter that happens to be where ours was.
	f := old.(*Filter)
	b := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: n.ifc.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: f.Handle, Priority: f.Pref, Protocol: unix.ETH_P_ALL,
		},
		Fd: count(t).prog.FD(), Name: "foreign", DirectAction: true,
	}
	must(t, netlink.FilterAdd(b))
	if err := old.Close(); !errors.Is(err, ErrLost) {
		t.Errorf("close without our filter: %v, want ErrLost", err)
	}
	if left, err := filters(n.ifc.Index, Ingress); err != nil || len(left) != 2 || left[1].name != "foreign" {
		t.Errorf("left %+v, %v, want the foreign filter", left, err)
	}
	must(t, netlink.FilterDel(b))
	c := count(t)
	closer := attach(t, plan.TC, n.ifc, Ingress, c)
	n.send(t, Ingress, 1)
	if got := c.took(t); got != 1 {
		t.Errorf("counted %d packets after attaching again, want 1", got)
	}
	must(t, closer.Close())
	if got := qdisc(t, n.ifc); got != "clsact" {
		t.Errorf("qdisc is %q, want the one made by somebody else", got)
	}
}

func TestOldIngressQdisc(t *testing.T) {
	n := newNetwork(t, "veth0")
	must(t, netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: n.ifc.Index, Parent: netlink.HANDLE_INGRESS}}))
	c := count(t)
	closer := attach(t, plan.TC, n.ifc, Ingress, c)
	if _, err := Attach(plan.TC, n.ifc, Egress, c.prog); !errors.Is(err, ErrNoClsact) {
		t.Errorf("egress beside an ingress qdisc: %v, want ErrNoClsact", err)
	}
	n.send(t, Ingress, 2)
	n.send(t, Egress, 2)
	if got := c.took(t); got != 2 {
		t.Errorf("counted %d packets, want the 2 received", got)
	}
	must(t, closer.Close())
	if left, err := filters(n.ifc.Index, Ingress); err != nil || len(left) > 0 || qdisc(t, n.ifc) != "ingress" {
		t.Errorf("left %v, %v, qdisc %q, want no filters and the ingress qdisc", left, err, qdisc(t, n.ifc))
	}
}

func TestTwoAgents(t *testing.T) {
	eachHook(t, func(t *testing.T, kind plan.Hook) {
		n := newNetwork(t, "veth0")
		a, b := count(t), count(t)
		var first, second []io.Closer
		for _, dir := range directions {
			first = append(first, attach(t, kind, n.ifc, dir, a))
			second = append(second, attach(t, kind, n.ifc, dir, b))
		}
		for _, dir := range directions {
			n.send(t, dir, 2)
			must(t, first[dir].Close())
			n.send(t, dir, 2)
		}
		if x, y := a.took(t), b.took(t); x != 4 || y != 8 {
			t.Errorf("the first counted %d, the second %d, want 4 and 8", x, y)
		}
		must(t, errors.Join(second[0].Close(), second[1].Close()))
		if got := qdisc(t, n.ifc); got != "" {
			t.Errorf("%s is left", got)
		}
	})
}

// Agents that attach at the same moment choose the same handle; all but one must choose again.
func TestAgentsAtTheSameMoment(t *testing.T) {
	n := newNetwork(t, "veth0")
	must(t, netlink.QdiscAdd(theirQdisc(n.ifc)))
	const agents, rounds = 4, 25
	c := count(t)
	errs := make(chan error)
	for range agents {
		go func() {
			runtime.LockOSThread()
			err := netns.Set(n.here)
			for range rounds {
				if err == nil {
					var closer io.Closer
					if closer, err = Attach(plan.TC, n.ifc, Egress, c.prog); err == nil {
						if f := closer.(*Filter); f.Pref != 1 {
							err = fmt.Errorf("attached at preference %d", f.Pref)
						}
						err = errors.Join(err, closer.Close())
					}
				}
			}
			errs <- err
		}()
	}
	for range agents {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if left, err := filters(n.ifc.Index, Egress); err != nil || len(left) > 0 {
		t.Errorf("left %+v, %v", left, err)
	}
}

func TestClatInterface(t *testing.T) {
	n := newNetwork(t, "v4-wlan0")
	c := count(t)
	if _, err := Attach(plan.TC, n.ifc, Egress, c.prog); !errors.Is(err, ErrNoClsact) || !strings.Contains(err.Error(), "clat") {
		t.Errorf("Attach where netd has no clsact yet: %v, want ErrNoClsact", err)
	}
	if got := qdisc(t, n.ifc); got != "" {
		t.Fatalf("%s was created", got)
	}
	must(t, netlink.QdiscAdd(theirQdisc(n.ifc)))
	closer := attach(t, plan.TC, n.ifc, Egress, c)
	n.send(t, Egress, 1)
	if got := c.took(t); got != 1 {
		t.Errorf("counted %d packets beside netd, want 1", got)
	}
	must(t, closer.Close())
	if got := qdisc(t, n.ifc); got != "clsact" {
		t.Errorf("qdisc is %q, want netd's clsact", got)
	}
}

func TestInterfaceGone(t *testing.T) {
	eachHook(t, func(t *testing.T, kind plan.Hook) {
		n := newNetwork(t, "veth0")
		c := count(t)
		closers := []io.Closer{attach(t, kind, n.ifc, Ingress, c), attach(t, kind, n.ifc, Egress, c)}
		l, err := netlink.LinkByIndex(n.ifc.Index)
		must(t, err)
		must(t, netlink.LinkDel(l))
		for _, closer := range closers {
			must(t, closer.Close())
		}
		if _, err := Attach(kind, n.ifc, Ingress, c.prog); !errors.Is(err, unix.ENODEV) {
			t.Errorf("Attach to it: %v, want ENODEV", err)
		}
	})
}

func TestNoSuchHook(t *testing.T) {
	if c, err := Attach("xdp", android.Interface{Index: 1, Name: "lo"}, Ingress, nil); c != nil || err == nil {
		t.Errorf("Attach of another kind = %v, %v", c, err)
	}
}
