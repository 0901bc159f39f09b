// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Translation is what a clat translates between.
type Translation struct {
	NAT64  netip.Prefix // /96
	Local6 netip.Addr   // the phone's address for it; see Neutral
	Local4 netip.Addr   // that of v4-NAME
}

// DefaultTranslation has the well-known prefix (RFC 6052) and the first address of the DS-Lite range that clatd takes (RFC 7335).
var DefaultTranslation = Translation{
	NAT64:  netip.MustParsePrefix("64:ff9b::/96"),
	Local6: Neutral(netip.MustParsePrefix("fd00:464::/64"), netip.MustParsePrefix("64:ff9b::/96"), netip.MustParseAddr("192.0.0.4")),
	Local4: netip.MustParseAddr("192.0.0.4"),
}

// Neutral returns an address of the /64 such that a translation changes no checksum of TCP or UDP: that of local6 and of
// the NAT64 prefix add up to that of local4 (clatd's make_checksum_neutral; RFC 6145, 4.1).
func Neutral(local, nat64 netip.Prefix, local4 netip.Addr) netip.Addr {
	a, p, four := local.Addr().As16(), nat64.Addr().As16(), local4.As4()
	a[15] = 1 // an interface identifier of zero would be the routers' anycast address
	// One's complement: what the free word has to add is local4 minus all the rest.
	rest := ^sum(slices.Concat(a[:], p[:12]))
	binary.BigEndian.PutUint16(a[8:], sum(binary.BigEndian.AppendUint16(four[:], rest)))
	return netip.AddrFrom16(a)
}

// sum is the one's complement sum of 16-bit words.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// translation is what the programs are loaded with. C: struct translation.
type translation struct {
	Local6     [16]byte
	Prefix     [12]byte
	Local4     [4]byte
	V4         uint32
	Underlying uint32
}

// Clat starts the offload of a clat, as ClatCoordinator.maybeStartBpf: v4if (v4-NAME, a tun that the caller made) gets a
// clsact, and that one is there already (EEXIST) is a failure, after which there is no offload; the underlying interface, which has
// joined, gets clat_ingress6. Where that is Ethernet's, egress is left to clatd, which reads v4if, as on Android.
func (n *Netd) Clat(v4if, underlying string, t Translation) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.clat(v4if, underlying, t); err != nil {
		return fmt.Errorf("clat %s: no offload: %w", v4if, err)
	}
	return nil
}

func (n *Netd) clat(v4if, underlying string, t Translation) error {
	v4, err := n.link(v4if)
	if err != nil {
		return err
	}
	l, err := n.link(underlying)
	if err != nil {
		return err
	}
	if t.NAT64.Bits() != 96 || !t.Local6.Is6() || !t.Local4.Is4() {
		return fmt.Errorf("bad translation %v", t)
	}
	params := translation{Local6: t.Local6.As16(), Local4: t.Local4.As4(), V4: uint32(v4.Index), Underlying: uint32(l.Index)}
	prefix := t.NAT64.Masked().Addr().As16()
	copy(params.Prefix[:], prefix[:])
	variables := map[string]any{"clat": params, "ethernet": flag(l.Ethernet)}

	if err := n.conn.QdiscAdd(clsact(v4.Index)); err != nil {
		return fmt.Errorf("add clsact to %s: %w", v4if, err)
	}
	n.qdiscs = append(n.qdiscs, qdisc{v4.Index, v4if, true})
	out := &filter{ifindex: v4.Index, ifname: v4if, parent: egress, pref: prefClat, proto: unix.ETH_P_IP, kind: "bpf", role: "clat_egress4"}
	in := &filter{ifindex: l.Index, ifname: underlying, parent: ingress, pref: prefClat, proto: unix.ETH_P_IPV6, kind: "bpf", role: "clat_ingress6"}
	err = n.add(out, variables, nil)
	if err == nil {
		err = n.add(in, variables, nil)
	}
	if err != nil {
		return errors.Join(err, n.dropClsact(v4if, v4.Index))
	}
	in.pair = v4if
	return nil
}

// dropClsact deletes the clsact of an interface with all in it and forgets that.
func (n *Netd) dropClsact(ifname string, ifindex int) error {
	err := n.conn.QdiscDel(clsact(ifindex))
	if err != nil {
		err = fmt.Errorf("delete clsact of %s: %w", ifname, err)
	}
	return errors.Join(err, n.forget(func(_ int, name string) bool { return name == ifname }))
}

// StopClat ends the offload, as ClatCoordinator.maybeStopBpf does before the tun goes: it removes clat_ingress6 and the
// clsact of v4if.
func (n *Netd) StopClat(v4if string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, f := range slices.Clone(n.filters) {
		if f.pair == v4if {
			errs = append(errs, n.remove(f))
		}
	}
	l, err := n.link(v4if)
	if err == nil {
		err = n.dropClsact(v4if, l.Index)
	}
	if err = errors.Join(append(errs, err)...); err != nil {
		return fmt.Errorf("stop clat %s: %w", v4if, err)
	}
	return nil
}
