// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
	"droidtap/bpf"
	"droidtap/scripts/nettest"
)

// layout puts values by the names of their members where an object's struct has them.
type layout struct {
	t *testing.T
	c *btf.Struct
}

func layoutOf(t *testing.T, spec *ebpf.CollectionSpec, name string) layout {
	t.Helper()
	l := layout{t: t}
	if err := spec.Types.TypeByName(name, &l.c); err != nil {
		t.Fatalf("the object's BTF: %v", err)
	}
	return l
}

func (l layout) bytes(members map[string][]byte) []byte {
	l.t.Helper()
	b := make([]byte, l.c.Size)
	for _, m := range l.c.Members {
		n, err := btf.Sizeof(m.Type)
		value, told := members[m.Name]
		if err != nil || !told && m.Name != "pad" || told && n != len(value) {
			l.t.Fatalf("struct %s: member %s of %d bytes, %v", l.c.Name, m.Name, n, err)
		}
		copy(b[m.Offset.Bytes():], value)
	}
	return b
}

// TestABI holds what is written into the programs' maps, and read from them, against the BTF of every object.
func TestABI(t *testing.T) {
	nettest.Require(t)
	u16 := func(n uint16) []byte { return be.AppendUint16(nil, n) }
	u64 := func(n uint64) []byte { return ne.AppendUint64(nil, n) }
	for _, name := range bpf.Names() {
		part := strings.Split(name, ".")
		if part[0] != "packet" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			spec, err := bpf.Open(part[0], part[1])
			if err != nil {
				t.Fatal(err)
			}
			made := func(name string) *ebpf.Map {
				m, err := ebpf.NewMap(spec.Maps[name])
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = m.Close() })
				return m
			}
			maps := shared{flows: made("shared_flows"), fragments: made("shared_fragments"), closed: made("shared_closed")}
			for _, ends := range [][2]string{{a4, b4}, {a6, b6}} {
				local, remote := netip.MustParseAddr(ends[0]), netip.MustParseAddr(ends[1])
				local16, remote16 := local.As16(), remote.As16()
				f := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: netip.AddrPortFrom(local, 5353), Remote: netip.AddrPortFrom(remote, 443)}
				key := layoutOf(t, spec, "flow").bytes(map[string][]byte{"local": local16[:], "remote": remote16[:],
					"local_port": u16(5353), "remote_port": u16(443), "protocol": {unix.IPPROTO_UDP}})
				value := layoutOf(t, spec, "owner").bytes(map[string][]byte{"uid": ne.AppendUint32(nil, 10123), "cgroup": u64(1<<32 | 45), "seen": u64(1 << 40), "born": u64(1<<40 - 1), "jiffies": make([]byte, 4)})
				want := learnt{uid: 10123, cgroup: 1<<32 | 45, seen: 1 << 40, born: 1<<40 - 1}
				if err := maps.learn(f, want, false); err != nil {
					t.Fatal(err)
				}
				if got, err := maps.flows.LookupBytes(key); err != nil || !bytes.Equal(got, value) {
					t.Errorf("flow %x is %x, %v, want %x", key, got, err, value)
				}
				if got, found, err := maps.learnt(f); got != want || !found || err != nil {
					t.Errorf("learnt %+v, %v, %v", got, found, err)
				}

				whole := fragment{local, remote, 0x1234, unix.IPPROTO_UDP}
				version := byte(4)
				if local.Is6() {
					whole.id, whole.protocol, version = 0x12345678, 0, 6
				}
				key = layoutOf(t, spec, "fragment").bytes(map[string][]byte{"src": local16[:], "dst": remote16[:],
					"id": be.AppendUint32(nil, whole.id), "protocol": {whole.protocol}, "version": {version}})
				value = layoutOf(t, spec, "ports").bytes(map[string][]byte{"src": u16(1), "dst": u16(2), "protocol": {3}, "kind": {4}, "seen": u64(5)})
				if err := maps.fragments.Put(key, value); err != nil {
					t.Fatal(err)
				}
				if got, found, err := maps.first(whole); got != (ports{1, 2, 3, 4, 5}) || !found || err != nil {
					t.Errorf("the first fragment of %+v: %+v, %v, %v", whole, got, found, err)
				}

				if err := maps.close(sockdiag.Socket{Local: f.Local, Remote: f.Remote}, 77); err != nil {
					t.Fatal(err)
				}
				key = ne.AppendUint32(nil, 5353)
				if got, err := maps.closed.LookupBytes(key); err != nil || !bytes.Equal(got, u64(77)) {
					t.Errorf("closed %x is %x, %v", key, got, err)
				}
				if _, found, err := maps.learnt(f); found || err != nil {
					t.Errorf("a closed socket's flow is there, %v", err)
				}
			}
		})
	}
}
