// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"testing"
	"testing/fstest"

	"github.com/vishvananda/netlink"

	"droidtap/agent/rtnl"
)

func TestLabel(t *testing.T) {
	l := labelOf(owner{ns: 1<<32 + 4026531836, pid: 77, start: 1<<32 + 5})
	if got, ok := parseLabel(l.attribute()); !ok || got != l || got != (label{4026531836, 77, 5}) {
		t.Errorf("%+v, %v", got, ok)
	}
	foreign := rtnl.AppendAttribute(nil, tcaStabBase, make([]byte, sizeofSizespec))
	for name, stab := range map[string][]byte{
		"none": nil, "a size table of others": foreign, "one that is cut short": l.attribute()[:20], "a short one": rtnl.AppendAttribute(nil, tcaStabBase, make([]byte, 8)),
	} {
		if _, ok := parseLabel(stab); ok {
			t.Errorf("%s is taken for ours", name)
		}
	}
	stat := "77 (agent) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4294967301 0"
	proc := fstest.MapFS{"77/stat": &fstest.MapFile{Data: []byte(stat)}}
	for _, c := range []struct {
		rule string
		l    label
		dead bool
	}{
		{"it lives", l, false},
		{"another process has its number", label{l.ns, 77, 6}, true},
		{"it is gone", label{l.ns, 78, 5}, true},
		{"it is of another pid namespace", label{1, 78, 5}, false},
	} {
		if got := c.l.dead(proc, 4026531836); got != c.dead {
			t.Errorf("%s: dead %v", c.rule, got)
		}
	}
}

// TestDeleteEmpty has others put a qdisc in the place of a clsact of ours.
func TestDeleteEmpty(t *testing.T) {
	n := newNetwork(t, "hook6")
	me, err := self()
	must(t, err)
	for _, c := range []struct {
		rule    string
		made    func() error
		deleted bool
	}{
		{"ours", func() error { return addClsact(n.ifc.Index, me) }, true},
		{"a clsact of others", func() error { return netlink.QdiscAdd(foreignQdisc(n.ifc.Index, "clsact")) }, false},
		{"an ingress qdisc", func() error { return netlink.QdiscAdd(foreignQdisc(n.ifc.Index, "ingress")) }, false},
	} {
		must(t, c.made())
		deleted, err := deleteEmpty(n.ifc)
		if there := qdisc(t, n.ifc) != ""; err != nil || deleted != c.deleted || there == c.deleted {
			t.Errorf("%s: deleted %v, there %v (%v)", c.rule, deleted, there, err)
		}
		if !c.deleted {
			must(t, netlink.QdiscDel(foreignQdisc(n.ifc.Index, "clsact")))
		}
	}
}

// foreignQdisc is one at ffff: without a label.
func foreignQdisc(ifindex int, kind string) netlink.Qdisc {
	at := netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	if kind == "ingress" {
		return &netlink.Ingress{QdiscAttrs: at}
	}
	return &netlink.GenericQdisc{QdiscAttrs: at, QdiscType: kind}
}

// TestSweepEmpty has processes of ours leave a clsact in which there is no filter yet.
func TestSweepEmpty(t *testing.T) {
	n := newNetwork(t, "hook5")
	me, err := self()
	must(t, err)
	dead := me
	dead.start--
	for _, c := range []struct {
		rule  string
		made  func() error
		stays bool
	}{
		{"of a process that is gone", func() error { return addClsact(n.ifc.Index, dead) }, false},
		{"of one that lives", func() error { return addClsact(n.ifc.Index, me) }, true},
		{"of others", func() error { return netlink.QdiscAdd(foreignQdisc(n.ifc.Index, "clsact")) }, true},
	} {
		must(t, c.made())
		lines, err := Sweep()
		must(t, err)
		if there := qdisc(t, n.ifc) != ""; there != c.stays || (len(lines) == 0) != c.stays {
			t.Errorf("%s: there %v, said %q", c.rule, there, lines)
		}
		if c.stays {
			must(t, netlink.QdiscDel(foreignQdisc(n.ifc.Index, "clsact")))
		}
	}
}
