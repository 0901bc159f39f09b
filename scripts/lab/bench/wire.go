// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const (
	device          = "bench0" // in both namespaces
	app             = 10123
	matching, other = 443, 8443 // ports
)

const (
	egress = iota
	ingress
	directions
)

// wire is two namespaces that are joined. An app lives in the near one, where captures are made.
type wire struct {
	near, far nettest.Space
	handle    *netlink.Handle // of the near namespace
	index     int             // of its device
	empty     programs        // at the device
}

func newWire() (*wire, error) {
	w := &wire{near: nettest.Space{Name: "bench-near"}, far: nettest.Space{Name: "bench-far"}}
	for _, line := range []string{
		"netns add bench-near",
		"netns add bench-far",
		"-n bench-near link add bench0 address " + nettest.NearMAC + " type veth peer name bench0 address " + nettest.FarMAC + " netns bench-far",
		// No packets of the kernel's own: neither IPv6 nor ARP.
		"-n bench-near link set bench0 addrgenmode none",
		"-n bench-far link set bench0 addrgenmode none",
		"-n bench-near link set bench0 up",
		"-n bench-far link set bench0 up",
		"-n bench-near address add " + nettest.Near4 + "/24 dev bench0",
		"-n bench-far address add " + nettest.Far4 + "/24 dev bench0",
		"-n bench-near neighbour add " + nettest.Far4 + " lladdr " + nettest.FarMAC + " dev bench0",
		"-n bench-far neighbour add " + nettest.Near4 + " lladdr " + nettest.NearMAC + " dev bench0",
	} {
		if err := ip(line); err != nil {
			return w, err
		}
	}
	ns, err := netns.GetFromName(w.near.Name)
	if err != nil {
		return w, fmt.Errorf("open namespace %s: %w", w.near.Name, err)
	}
	defer ns.Close()
	if w.handle, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE); err != nil {
		return w, fmt.Errorf("open rtnetlink: %w", err)
	}
	l, err := w.handle.LinkByName(device)
	if err != nil {
		return w, fmt.Errorf("look up %s: %w", device, err)
	}
	w.index = l.Attrs().Index
	return w, w.attach()
}

// attach attaches an empty program in each direction, behind whatever else is there.
func (w *wire) attach() error {
	clsact := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: w.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
	if err := w.handle.QdiscAdd(clsact); err != nil {
		return fmt.Errorf("make clsact: %w", err)
	}
	for d, parent := range [directions]uint32{netlink.HANDLE_MIN_EGRESS, netlink.HANDLE_MIN_INGRESS} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "empty", Type: ebpf.SchedCLS, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, int32(netlink.TC_ACT_UNSPEC)), asm.Return()},
		})
		if err != nil {
			return fmt.Errorf("load an empty program: %w", err)
		}
		w.empty[d] = p
		err = w.handle.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: w.index, Parent: parent, Handle: 1, Priority: 0xffff, Protocol: unix.ETH_P_ALL},
			Fd:          p.FD(), Name: "empty", DirectAction: true,
		})
		if err != nil {
			return fmt.Errorf("attach an empty program: %w", err)
		}
	}
	return nil
}

func (w *wire) close() error {
	w.empty.close()
	if w.handle != nil {
		w.handle.Close()
	}
	return errors.Join(ip("netns del "+w.near.Name), ip("netns del "+w.far.Name))
}

func ip(line string) error {
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// conversation is a datagram socket of the app and the one that it talks to.
type conversation struct{ near, far *net.UDPConn }

// open opens a conversation with a port.
func (w *wire) open(port uint16) (c conversation, err error) {
	near := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(nettest.Near4), 40000+port))
	far := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(nettest.Far4), port))
	for _, end := range []struct {
		space    nettest.Space
		uid      int
		conn     **net.UDPConn
		from, to *net.UDPAddr
	}{{w.near, app, &c.near, near, far}, {w.far, 0, &c.far, far, near}} {
		err := end.space.Do(end.uid, func() (err error) {
			*end.conn, err = net.DialUDP("udp4", end.from, end.to)
			return err
		})
		if err != nil {
			c.close()
			return c, fmt.Errorf("talk to port %d: %w", port, err)
		}
	}
	return c, nil
}

func (c conversation) close() {
	for _, conn := range []*net.UDPConn{c.near, c.far} {
		if conn != nil {
			conn.Close()
		}
	}
}

// say has a message go there and back.
func (c conversation) say(message []byte) error {
	limit := time.Now().Add(10 * time.Second)
	for _, way := range [directions]struct{ from, to *net.UDPConn }{{c.near, c.far}, {c.far, c.near}} {
		if _, err := way.from.Write(message); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if err := way.to.SetReadDeadline(limit); err != nil {
			return err
		}
		if _, err := way.to.Read(message); err != nil {
			return fmt.Errorf("receive: %w", err)
		}
	}
	return nil
}

// talk has messages go there and back, in frames of size bytes, every hundredth with the matching port.
func (w *wire) talk(messages, size int) error {
	rare, usual := conversation{}, conversation{}
	for port, c := range map[uint16]*conversation{matching: &rare, other: &usual} {
		var err error
		if *c, err = w.open(port); err != nil {
			return err
		}
		defer c.close()
	}
	const headers = 14 + 20 + 8
	message := make([]byte, size-headers)
	for n := range messages {
		c := usual
		if n%100 == 0 {
			c = rare
		}
		if err := c.say(message); err != nil {
			return err
		}
	}
	return nil
}
