// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"droidtap/agent/rtnl"
)

// TestEntry: a message as vishvananda/netlink writes it is read as what it is, and is what we write.
func TestEntry(t *testing.T) {
	want := tcmsg{ifindex: 300, handle: handleBase, parent: Egress.parent(), info: 6<<16 | uint32(protocol(unix.ETH_P_ALL))}
	theirs := nl.TcMsg{Ifindex: 300, Handle: 0x64740001, Parent: 0xfffffff3, Info: 6<<16 | uint32(nl.Swap16(3))}
	if got := want.bytes(); !slices.Equal(got, theirs.Serialize()) {
		t.Errorf("% x, want % x", got, theirs.Serialize())
	}
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_BPF_NAME, nl.ZeroTerminated("ours"))
	options.AddRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(nl.TCA_BPF_FLAG_ACT_DIRECT))
	b := slices.Concat(theirs.Serialize(), nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("bpf")).Serialize(), options.Serialize())
	e, err := parseEntry(b)
	if err != nil || e.tcmsg != want || e.kind != "bpf" {
		t.Errorf("%+v, %v, want %+v of bpf", e, err, want)
	}
	if name, err := bpfName(e.options); name != "ours" || err != nil {
		t.Errorf("name %q, %v", name, err)
	}
	for _, size := range []int{0, sizeofTcmsg - 1, sizeofTcmsg + 3, sizeofTcmsg + 6} {
		if e, err := parseEntry(b[:size]); !errors.Is(err, unix.EBADMSG) {
			t.Errorf("%d bytes: %+v, %v, want EBADMSG", size, e, err)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add(rtnl.AppendAttribute(clsact(3).bytes(), unix.TCA_KIND, zeroTerminated("clsact")))
	f.Add((&Filter{}).request())
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseEntry(b)
		if err == nil && !slices.Equal(e.tcmsg.bytes()[4:], b[4:sizeofTcmsg]) {
			t.Errorf("%+v", e)
		}
		_, _ = bpfName(e.options)
	})
}
