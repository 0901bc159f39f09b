// SPDX-License-Identifier: Apache-2.0

package android

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// The ARPHRD_* numbers of include/uapi/linux/if_arp.h that have a Framing.
const (
	arphrdEther    = 1
	arphrdPPP      = 512
	arphrdRawIP    = 519
	arphrdTunnel   = 768
	arphrdLoopback = 772
	arphrdNone     = 65534
)

// The wireless ARPHRD_* numbers, as libpcap's pcap-linux.c get_if_flags has them.
var arphrdWireless = []uint16{783, 801, 802, 803, 804, 805, 825}

// IFF_UP and IFF_LOOPBACK of include/uapi/linux/if.h.
const (
	iffUp       = 0x1
	iffLoopback = 0x8
)

// Carrier says whether an interface has a link, as far as sysfs tells.
type Carrier uint8

// The states of a Carrier. NoCarrier is Disconnected or, on a wireless interface, not associated.
const (
	CarrierNotApplicable Carrier = iota
	HasCarrier
	NoCarrier
)

// Interface is a network interface at the moment it was read.
type Interface struct {
	Index    int
	Name     string
	Type     uint16 // ARPHRD_* of /sys/class/net/X/type
	Up       bool   // IFF_UP
	Running  bool   // IFF_RUNNING: up, and its RFC 2863 state is up or unknown
	Loopback bool   // IFF_LOOPBACK
	Wireless bool
	Carrier  Carrier
}

// Framing is what a packet of an interface begins with where tc sees it.
type Framing uint8

// The framings: an Ethernet header, an IP header, or something no filter of ours is compiled for.
const (
	Unsupported Framing = iota
	L2
	L3
)

// String returns "L2", "L3" or "unsupported".
func (f Framing) String() string {
	switch f {
	case L2:
		return "L2"
	case L3:
		return "L3"
	}
	return "unsupported"
}

// Framing returns L2 for ARPHRD_ETHER (1) and ARPHRD_LOOPBACK (772), whose packets begin with an Ethernet header, and
// L3 for ARPHRD_PPP (512), ARPHRD_RAWIP (519: rmnet), ARPHRD_TUNNEL (768) and ARPHRD_NONE (65534: tun, v4-*), whose
// packets begin with an IP header. The numbers are those of linux/if_arp.h and their meaning is that of libpcap's
// map_arphrd_to_dlt (pcap-linux.c), which gives DLT_EN10MB to the former and DLT_RAW to the latter. It never looks at the name.
func (i Interface) Framing() Framing {
	switch i.Type {
	case arphrdEther, arphrdLoopback:
		return L2
	case arphrdPPP, arphrdRawIP, arphrdTunnel, arphrdNone:
		return L3
	}
	return Unsupported
}

// LinkLayer names the interface's type, such as "Ethernet" or "raw IP (519)".
func (i Interface) LinkLayer() string {
	names := map[uint16]string{
		arphrdEther:    "Ethernet",
		arphrdPPP:      "PPP (512)",
		arphrdRawIP:    "raw IP (519)",
		arphrdTunnel:   "tunnel (768)",
		arphrdLoopback: "loopback",
		arphrdNone:     "none (65534)",
	}
	if name, known := names[i.Type]; known {
		return name
	}
	return fmt.Sprintf("unsupported (%d)", i.Type)
}

// Describe returns the bracketed flags that tcpdump -D prints behind the name, such as "[Up, Running, Connected]"
// (tcpdump.c show_devices_and_exit). libpcap asks the driver by ETHTOOL_GLINK whether there is a link; sysfs does not
// tell which drivers would answer, so ifb, dummy and the like read "Connected" here while they are up.
func (i Interface) Describe() string {
	var words []string
	add := func(on bool, word string) {
		if on {
			words = append(words, word)
		}
	}
	add(i.Up, "Up")
	add(i.Running, "Running")
	add(i.Loopback, "Loopback")
	add(i.Wireless, "Wireless")
	add(len(words) == 0, "none")
	add(i.Wireless && i.Carrier == HasCarrier, "Associated")
	add(i.Wireless && i.Carrier == NoCarrier, "Not associated")
	add(!i.Wireless && i.Carrier == HasCarrier, "Connected")
	add(!i.Wireless && i.Carrier == NoCarrier, "Disconnected")
	return "[" + strings.Join(words, ", ") + "]"
}

// Compare orders interfaces for slices.SortFunc as tcpdump -D lists them: running, then up, then connected (wireless
// or not), loopback last among equals (libpcap pcap.c get_figure_of_merit), and by index where these agree.
func Compare(a, b Interface) int {
	return cmp.Or(cmp.Compare(merit(a), merit(b)), cmp.Compare(a.Index, b.Index), cmp.Compare(a.Name, b.Name))
}

// merit is lower for an interface that is likelier to be captured on.
func merit(i Interface) (n uint8) {
	if !i.Running {
		n |= 8
	}
	if !i.Up {
		n |= 4
	}
	if !i.Wireless && i.Carrier == NoCarrier {
		n |= 2
	}
	if i.Loopback {
		n |= 1
	}
	return n
}

// HasNetd tells whether Android's network daemon lives here; root is os.DirFS("/").
func HasNetd(root fs.FS) bool { return exists(root, "system/bin/netd") }

// Interfaces returns the interfaces under class/net of sys, which is os.DirFS("/sys"), in the order of Compare. sysfs
// shows those of the network namespace it was mounted in. An interface that vanishes meanwhile is left out.
func Interfaces(sys fs.FS) ([]Interface, error) {
	const dir = "class/net"
	entries, err := fs.ReadDir(sys, dir)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var all []Interface
	for _, e := range entries {
		i, err := read(sys, path.Join(dir, e.Name()))
		// ENODEV is what an open sysfs file answers once its device is gone; ENOTDIR is class/net/bonding_masters.
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read interface %s: %w", e.Name(), err)
		}
		all = append(all, i)
	}
	slices.SortFunc(all, Compare)
	return all, nil
}

// read makes the Interface of one directory of class/net.
func read(sys fs.FS, dir string) (Interface, error) {
	i := Interface{Name: path.Base(dir)}
	index, err := integer(sys, path.Join(dir, "ifindex"), 31)
	if err != nil {
		return i, err
	}
	kind, err := integer(sys, path.Join(dir, "type"), 16)
	if err != nil {
		return i, err
	}
	flags, err := integer(sys, path.Join(dir, "flags"), 32)
	if err != nil {
		return i, err
	}
	i.Index, i.Type = int(index), uint16(kind)
	i.Up, i.Loopback = flags&iffUp != 0, flags&iffLoopback != 0
	// The flags file lacks IFF_RUNNING, which the kernel computes on the way out: dev_get_flags, netif_oper_up.
	state, err := fs.ReadFile(sys, path.Join(dir, "operstate"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return i, err
	}
	switch strings.TrimSpace(string(state)) {
	case "up", "unknown":
		i.Running = i.Up
	}
	i.Wireless = slices.Contains(arphrdWireless, i.Type) || exists(sys, path.Join(dir, "wireless")) || exists(sys, path.Join(dir, "phy80211"))
	i.Carrier = carrier(sys, dir, i)
	return i, nil
}

// carrier follows libpcap's get_if_flags: nothing for a loopback, else what the driver says. Reading the carrier of an
// interface that is down is EINVAL; then hardware counts as disconnected and a virtual interface as having no such thing.
func carrier(sys fs.FS, dir string, i Interface) Carrier {
	if i.Loopback || i.Type == arphrdLoopback {
		return CarrierNotApplicable
	}
	// Of the L3 interfaces only tun answers ETHTOOL_GLINK; rmnet, ip tunnels and WireGuard do not.
	if i.Framing() == L3 && !exists(sys, path.Join(dir, "tun_flags")) {
		return CarrierNotApplicable
	}
	on, err := integer(sys, path.Join(dir, "carrier"), 8)
	switch {
	case err == nil && on != 0:
		return HasCarrier
	case err == nil, exists(sys, path.Join(dir, "device")):
		return NoCarrier
	}
	return CarrierNotApplicable
}

// integer reads a file that holds one number, decimal or with 0x, of at most that many bits.
func integer(sys fs.FS, name string, bits int) (uint64, error) {
	text, err := fs.ReadFile(sys, name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 0, bits)
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", path.Base(name), err)
	}
	return n, nil
}

func exists(sys fs.FS, name string) bool {
	_, err := fs.Stat(sys, name)
	return err == nil
}
