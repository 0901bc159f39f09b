// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"encoding/binary"
	"io/fs"

	"droidtap/agent/rtnl"
)

// label says which process of ours created a clsact, from the moment when it is there: a process that is killed before it
// has put a filter into it would leave it to nobody. The kernel keeps it as the qdisc's size table (tc-stab(8)), which tells
// how to reckon the length of packets that wait in a queue. A clsact has none, so it is never looked at.
type label struct{ ns, pid, start uint32 } // as in owner, the low halves of numbers

// Of include/uapi/linux/rtnetlink.h and pkt_sched.h: struct tc_sizespec in an attribute of its own, without a table.
const (
	tcaStab        = 8
	tcaStabBase    = 1
	sizeofSizespec = 24
	labelled       = 0x64740001 // "dt", where a size table has its kind of link layer
)

func labelOf(o owner) label { return label{uint32(o.ns), uint32(o.pid), uint32(o.start)} }

// attribute returns the value of TCA_STAB.
func (l label) attribute() []byte {
	spec := make([]byte, 4, sizeofSizespec)
	for _, v := range []uint32{l.ns, labelled, l.pid, l.start, 0} { // overhead, linklayer, mpu, mtu, tsize
		spec = binary.NativeEndian.AppendUint32(spec, v)
	}
	return rtnl.AppendAttribute(nil, tcaStabBase, spec)
}

// parseLabel reads a TCA_STAB; false says that it is none of ours.
func parseLabel(stab []byte) (label, bool) {
	attrs, err := rtnl.Attributes(stab)
	spec := attrs[tcaStabBase]
	if err != nil || len(spec) != sizeofSizespec {
		return label{}, false
	}
	word := func(at int) uint32 { return binary.NativeEndian.Uint32(spec[at:]) }
	return label{ns: word(4), pid: word(12), start: word(16)}, word(8) == labelled
}

// dead is owner's.
func (l label) dead(proc fs.FS, ours uint64) bool {
	return l.ns == uint32(ours) && dead(proc, int(l.pid), func(start uint64) bool { return uint32(start) == l.start })
}
