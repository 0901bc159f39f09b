// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

func TestStartClearsClsact(t *testing.T) {
	nettest.Require(t, "tc")
	s, _ := nettest.Pair(t)
	s.Run(t, "tc", "qdisc", "add", "dev", "veth0", "clsact")
	s.Run(t, "tc", "filter", "add", "dev", "veth0", "ingress", "pref", "7", "protocol", "all", "u32", "match", "u32", "0", "0")
	s.Run(t, "tc", "qdisc", "add", "dev", "lo", "clsact")
	n := start(t, s, Options{})
	for _, ifname := range []string{"lo", "veth0"} {
		if q := qdiscAt(t, n, ifname); q != "" {
			t.Errorf("%s has a %s", ifname, q)
		}
	}
}

func TestJoinAndLeave(t *testing.T) {
	nettest.Require(t, "tc")
	s, _ := nettest.Pair(t)
	nettest.QuietTun(t, s, "v4-wlan0")
	var log strings.Builder
	n := start(t, s, Options{Log: logTo(&log)})

	must(t, n.Join("veth0"))
	if q := qdiscAt(t, n, "veth0"); q != "clsact" || log.Len() > 0 {
		t.Errorf("qdisc %q, log %q", q, log.String())
	}
	must(t, n.DSCP("veth0"))
	must(t, n.Join("veth0"))
	if want := "level=WARN msg=\"tcQdiscAddDevClsact failure: File exists\" interface=veth0\n"; log.String() != want {
		t.Errorf("log is %q, want %q", log.String(), want)
	}
	must(t, n.Leave("veth0"))
	if q := qdiscAt(t, n, "veth0"); q != "" {
		t.Errorf("a %s is left", q)
	}
	must(t, n.Check()) // it knows that what it had there went
	if err := n.Leave("veth0"); err == nil {
		t.Error("it deleted a qdisc that is not there")
	}
	must(t, n.Join("v4-wlan0"))
	if q := qdiscAt(t, n, "v4-wlan0"); q != "" {
		t.Errorf("v4-wlan0 got a %s", q)
	}
	if err := n.Join("absent0"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("the error is %v, want ENODEV", err)
	}
	log.Reset()
	must(t, n.Leave("absent0"))
	if !strings.Contains(log.String(), "interface is gone") {
		t.Errorf("log is %q", log.String())
	}
}

// TestFiltersPassOn sends packets that no filter takes: all see them, and so does one behind.
func TestFiltersPassOn(t *testing.T) {
	nettest.Require(t)
	s, far := nettest.Pair(t)
	n := start(t, s, Options{})
	must(t, n.Join("veth0"))
	must(t, n.Join("lo"))
	must(t, n.Vendor("veth0"))
	must(t, n.DSCP("veth0"))
	must(t, n.Tether("veth0", "lo"))
	for _, parent := range []uint32{ingress, egress} {
		must(t, n.simple("veth0", filter{parent: parent, pref: 100, proto: unix.ETH_P_ALL, kind: "bpf", role: "dscp"}))
	}
	must(t, n.Check())
	for addr, tether := range map[string]string{nettest.Near4: "veth0 ingress tether4", nettest.Near6: "veth0 ingress tether6"} {
		server := nettest.Answer(t, s, addr)
		must(t, n.CheckTraffic(func() error { return exchange(far, "udp", server) },
			tether, "veth0 ingress vendor", "veth0 egress vendor", "veth0 ingress dscp", "veth0 egress dscp"))
	}
}

func TestTether(t *testing.T) {
	nettest.Require(t)
	client, phone := nettest.Pair(t)
	network := nettest.NewSpace(t)
	pipe(t, "rmnet0", phone, network)
	network.Run(t, "ip", "addr", "add", "198.51.100.7/32", "dev", "lo")
	network.Run(t, "ip", "addr", "add", "2001:db8::7/128", "dev", "lo", "nodad")
	network.Run(t, "ip", "route", "add", nettest.Near4+"/32", "dev", "rmnet0")
	network.Run(t, "ip", "route", "add", nettest.Near6+"/128", "dev", "rmnet0")
	client.Run(t, "ip", "route", "add", "default", "via", nettest.Far4)
	client.Run(t, "ip", "-6", "route", "add", "default", "via", nettest.Far6)

	n := start(t, phone, Options{})
	must(t, n.Join("veth0"))
	must(t, n.Join("rmnet0"))
	must(t, n.Tether("rmnet0", "veth0"))
	later(t, n, "rmnet0", ingress)
	mac, err := net.ParseMAC(nettest.NearMAC)
	must(t, err)
	wantError(t, n.Offload(netip.MustParseAddr(nettest.Near4), "veth0", nil), "no address of it")
	for _, c := range []struct {
		role, client, server string
	}{{"tether4", nettest.Near4, "198.51.100.7"}, {"tether6", nettest.Near6, "2001:db8::7"}} {
		t.Run(c.role, func(t *testing.T) {
			server := nettest.Answer(t, network, c.server)
			must(t, n.Offload(netip.MustParseAddr(c.client), "veth0", mac))
			must(t, n.Offload(netip.MustParseAddr(c.server), "rmnet0", nil))
			// Neighbours are found by packets that no offload takes.
			must(t, exchange(client, "udp", server))
			was := taken(t, n, "veth0 ingress "+c.role)
			names := []string{"veth0 ingress " + c.role, "rmnet0 ingress " + c.role}
			must(t, n.CheckTraffic(func() error { return exchange(client, "udp", server) }, names...))
			must(t, n.CheckTraffic(func() error { return exchange(client, "tcp", server) }, names...))
			if got := taken(t, n, "veth0 ingress "+c.role) - was; got < 4 {
				t.Errorf("%d packets of the client are redirected, want a datagram and what TCP needs", got)
			}
			if seen, err := n.Seen(); err != nil || seen["rmnet0 ingress vendor"].Packets != 0 {
				t.Errorf("a later filter saw redirected packets: %v (%v)", seen, err)
			}
		})
	}
}

func TestPolice(t *testing.T) {
	nettest.Require(t)
	s, far := nettest.Pair(t)
	n := start(t, s, Options{})
	wantError(t, n.Police("veth0"), "no clsact on veth0")
	must(t, n.Join("veth0"))
	must(t, n.Vendor("veth0"))
	err := n.Police("veth0")
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("the error is %v, want EINVAL", err)
	}
	wantError(t, err, "add veth0 ingress account", "preference 1 is taken by bpf pref 1 protocol all handle 0x1 netd_vendor direct-action vendor")

	must(t, n.Remove("vendor"))
	err = n.Police("veth0")
	if errors.Is(err, ErrNoMatchall) {
		must(t, n.Check())
		t.Log(err) // as on the kernel of the machine; the lab's have it
		return
	}
	must(t, err)
	later(t, n, "veth0", ingress)
	must(t, n.CheckTraffic(func() error { return exchange(far, "udp", nettest.Answer(t, s, nettest.Near4)) }, "account", "vendor"))
	must(t, n.Check())
}

// TestExclusive adds what is there.
func TestExclusive(t *testing.T) {
	nettest.Require(t)
	s, _ := nettest.Pair(t)
	n := start(t, s, Options{})
	must(t, n.Join("veth0"))
	must(t, n.Vendor("veth0"))
	err := n.Vendor("veth0")
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("the error is %v, want EEXIST", err)
	}
	wantError(t, err, "preference 1 is taken by bpf")
	must(t, n.Check())

	// Only one of the two places is taken: the other is given back.
	must(t, n.Remove("veth0 ingress vendor"))
	if err := n.Vendor("veth0"); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the error is %v, want EEXIST", err)
	}
	if fs, err := n.conn.filters(n.qdiscs[0].ifindex, ingress); err != nil || len(fs) > 0 {
		t.Errorf("filters %v are left (%v)", fs, err)
	}
	must(t, n.Check())
}

func TestRestart(t *testing.T) {
	nettest.Require(t)
	s, _ := nettest.Pair(t)
	dir := newCgroup(t)
	n := start(t, s, Options{Cgroup: dir})
	must(t, n.Join("veth0"))
	must(t, n.DSCP("veth0"))
	old := n.programs[0].id
	must(t, n.Restart())
	if q := qdiscAt(t, n, "veth0"); q != "" {
		t.Errorf("veth0 has a %s", q)
	}
	if n.programs[0].id == old {
		t.Error("the program at the cgroup is the old one")
	}
	must(t, n.Check())
	must(t, n.Join("veth0"))
	must(t, n.DSCP("veth0"))
	must(t, n.Check())
}

// TestClose removes what is ours and leaves a stranger's.
func TestClose(t *testing.T) {
	nettest.Require(t, "tc")
	s, _ := nettest.Pair(t)
	dir := newCgroup(t)
	dump := func() (text string) {
		s.Must(t, func() (err error) {
			text, err = Dump(dir)
			return err
		})
		return text
	}
	all := func(n *Netd) {
		must(t, n.Join("veth0"))
		must(t, n.Vendor("veth0"))
		must(t, n.DSCP("veth0"))
		must(t, n.Tether("veth0", "lo"))
	}
	begin := func() (n *Netd) {
		s.Must(t, func() (err error) {
			n, err = Start(Options{Cgroup: dir})
			return err
		})
		must(t, n.Join("lo"))
		return n
	}
	before := dump()
	n := begin()
	all(n)
	if during := dump(); during == before {
		t.Error("the dump does not show netd")
	}
	must(t, n.Close())
	if diff := cmp.Diff(before, dump()); diff != "" {
		t.Errorf("after Close: %s", diff)
	}

	n = begin()
	s.Run(t, "tc", "qdisc", "add", "dev", "veth0", "clsact")
	s.Run(t, "tc", "filter", "add", "dev", "veth0", "ingress", "pref", "7", "protocol", "all", "u32", "match", "u32", "0", "0")
	stranger := dump()
	all(n)
	must(t, n.Close())
	var cut []string
	for line := range strings.Lines(stranger) {
		if !strings.HasPrefix(line, "cgroup ") && !strings.HasPrefix(line, "qdisc lo clsact") {
			cut = append(cut, line)
		}
	}
	if diff := cmp.Diff(strings.Join(cut, ""), dump()); diff != "" {
		t.Errorf("beside a stranger, after Close: %s", diff)
	}
}

func TestCheckNoticesFilters(t *testing.T) {
	nettest.Require(t, "tc")
	for _, c := range []struct {
		rule string
		harm func(t *testing.T, s nettest.Space, n *Netd)
		says []string
	}{
		{"the qdisc is deleted", func(t *testing.T, s nettest.Space, n *Netd) {
			s.Run(t, "tc", "qdisc", "del", "dev", "veth0", "clsact")
		}, []string{"clsact of veth0: it is gone", "veth0 egress dscp: the filter", "veth0 ingress vendor: the filter"}},
		{"the qdisc is made anew", func(t *testing.T, s nettest.Space, n *Netd) {
			s.Run(t, "tc", "qdisc", "del", "dev", "veth0", "clsact")
			s.Run(t, "tc", "qdisc", "add", "dev", "veth0", "clsact")
		}, []string{"veth0 egress dscp: the filter"}},
		{"another kind of qdisc is there", func(t *testing.T, s nettest.Space, n *Netd) {
			s.Run(t, "tc", "qdisc", "del", "dev", "veth0", "clsact")
			s.Run(t, "tc", "qdisc", "add", "dev", "veth0", "ingress")
		}, []string{"clsact of veth0: it is gone"}},
		{"a filter is deleted", func(t *testing.T, s nettest.Space, n *Netd) {
			s.Run(t, "tc", "filter", "del", "dev", "veth0", "egress", "pref", "5")
		}, []string{"veth0 egress dscp: the filter at preference 5 with program"}},
		{"a filter's program is replaced", func(t *testing.T, s nettest.Space, n *Netd) {
			p, err := load("vendor", nil, nil)
			must(t, err)
			f := *n.filters[0]
			f.program = p
			must(t, n.conn.FilterReplace(f.netlink()))
			must(t, p.close())
		}, []string{"the filter at preference 5 with program", "there: bpf pref 5 protocol all handle 0x1 netd_dscp direct-action vendor tag"}},
		{"a filter is not direct action any more", func(t *testing.T, s nettest.Space, n *Netd) {
			f := n.filters[0].netlink().(*netlink.BpfFilter)
			f.DirectAction = false
			must(t, n.conn.FilterReplace(f))
		}, []string{"veth0 egress dscp: it is not direct action any more"}},
		{"the interface goes", func(t *testing.T, s nettest.Space, n *Netd) {
			s.Run(t, "ip", "link", "del", "veth0")
		}, []string{"clsact of veth0: it is gone", "veth0 egress dscp: the filter"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s, _ := nettest.Pair(t)
			n := start(t, s, Options{})
			must(t, n.Join("veth0"))
			must(t, n.DSCP("veth0"))
			must(t, n.Vendor("veth0"))
			must(t, n.Check())
			c.harm(t, s, n)
			wantError(t, n.Check(), c.says...)
		})
	}
}

// TestInterfaceReturns deletes an interface and makes one of the same name.
func TestInterfaceReturns(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	n := start(t, s, Options{})
	for _, leave := range []bool{true, false} {
		s.Run(t, "ip", "link", "add", "wlan0", "type", "veth", "peer", "name", "peer0")
		must(t, n.Join("wlan0"))
		must(t, n.DSCP("wlan0"))
		must(t, n.Check())
		s.Run(t, "ip", "link", "del", "wlan0")
		if leave {
			must(t, n.Leave("wlan0"))
			must(t, n.Check())
		}
	}
	s.Run(t, "ip", "link", "add", "wlan0", "type", "veth", "peer", "name", "peer0")
	must(t, n.Join("wlan0"))
	must(t, n.DSCP("wlan0"))
	must(t, n.Check())
}

func TestCheckTraffic(t *testing.T) {
	nettest.Require(t, "tc")
	s, far := nettest.Pair(t)
	n := start(t, s, Options{})
	must(t, n.Join("veth0"))
	must(t, n.Vendor("veth0"))
	must(t, n.DSCP("veth0"))
	server := nettest.Answer(t, s, nettest.Near4)
	send := func() error { return exchange(far, "udp", server) }
	must(t, n.CheckTraffic(send))
	wantError(t, n.CheckTraffic(send, "clat"), `no program of ours is called "clat"`)
	if err := n.CheckTraffic(func() error { return errWanted }); !errors.Is(err, errWanted) {
		t.Errorf("the error is %v", err)
	}
	// Somebody ahead hides packets from the filter at 5, which stays in its place.
	s.Run(t, "tc", "filter", "add", "dev", "veth0", "egress", "pref", "2", "protocol", "ip", "u32", "match", "u32", "0", "0", "classid", "1:1")
	must(t, n.Check())
	wantError(t, n.CheckTraffic(send), "veth0 egress dscp: it sees no traffic")
	must(t, n.CheckTraffic(send, "vendor"))
}
