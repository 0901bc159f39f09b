// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"net/netip"
	"testing"

	"droidtap/scripts/nettest"
)

func TestOwn(t *testing.T) {
	nettest.Require(t)
	near, _ := nettest.Pair(t)
	var o *Own
	near.Must(t, func() (err error) {
		o, err = OpenOwn()
		return err
	})
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	check := func(addr string, want bool) {
		t.Helper()
		got, err := o.Has(netip.MustParseAddr(addr))
		if err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", addr, got, err, want)
		}
	}
	for addr, want := range map[string]bool{
		nettest.Near4: true, nettest.Near6: true, "::ffff:" + nettest.Near4: true, nettest.Far4: false, nettest.Far6: false,
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "10.99.0.255": true, "255.255.255.255": true, "10.99.0.0": false,
		"224.0.0.251": true, "ff02::fb": true, "0.0.0.0": false, "::": false, "fe80::1": false, "fe80::1%veth0": false,
	} {
		check(addr, want)
	}
	// The test's own thread is in another namespace.
	for range 3 {
		near.Run(t, "ip", "addr", "add", "192.0.2.1/31", "dev", "veth0")
		near.Run(t, "ip", "addr", "add", "198.51.100.1", "peer", "198.51.100.9/24", "dev", "veth0")
		near.Run(t, "ip", "addr", "add", "fe80::1/64", "dev", "veth0", "nodad")
		for _, addr := range []string{"192.0.2.1", "198.51.100.1", "fe80::1", "fe80::1%veth0", nettest.Near4} {
			check(addr, true)
		}
		for _, addr := range []string{"192.0.2.0", "192.0.2.255", "198.51.100.9"} {
			check(addr, false)
		}
		near.Run(t, "ip", "addr", "del", "192.0.2.1/31", "dev", "veth0")
		near.Run(t, "ip", "addr", "flush", "dev", "veth0", "to", "198.51.100.0/24")
		near.Run(t, "ip", "addr", "del", "fe80::1/64", "dev", "veth0")
		for _, addr := range []string{"192.0.2.1", "198.51.100.1", "fe80::1"} {
			check(addr, false)
		}
	}
	// More changes than the socket has room for.
	for i := range 2 {
		many := "add"
		if i == 1 {
			many = "del"
		}
		lines := make([]string, 0, 500)
		for n := range 500 {
			lines = append(lines, "addr "+many+" "+netip.AddrFrom4([4]byte{203, 0, byte(n / 250), byte(1 + n%250)}).String()+"/32 dev lo")
		}
		batch(t, near, lines...)
		check("203.0.1.250", many == "add")
		check("203.0.0.1", many == "add")
	}
}

func TestOwnTakesNoChangeForAnAnswer(t *testing.T) {
	o := &Own{}
	set := map[netip.Addr]bool{}
	gone := make([]byte, 16+8+8)
	ne.PutUint32(gone, uint32(len(gone)))
	ne.PutUint16(gone[4:], 21) // RTM_DELADDR
	gone[16], gone[17] = 2, 32 // AF_INET
	copy(gone[24:], []byte{8, 0, 2, 0, 192, 0, 2, 1})
	if done, err := o.add(set, gone); done || err != nil || len(set) != 0 || !o.dirty {
		t.Errorf("a change in between: %v, %v, %v, dirty %v", done, err, set, o.dirty)
	}
}
