// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/netd"
	"droidtap/scripts/nettest"
)

// phone is a namespace with a phone's interfaces and netd at home in it: wlan0, and rmnet_data0 without a link-layer header,
// lead to a network, ncm0 to a tethered client, and v4-rmnet_data0 is a clat's.
type phone struct {
	nettest.Space
	*netd.Netd
	network, client nettest.Space
	cgroup          string
	servers         []server
}

// server answers at an address that is reached through an interface.
type server struct {
	ifname, family string
	at             netip.AddrPort
}

// What is reached through v4-rmnet_data0, and the same behind NAT64.
const (
	beyond4 = "198.51.100.7"
	beyond6 = "64:ff9b::c633:6407"
	clat    = "v4-rmnet_data0"
)

func newPhone(t *testing.T) *phone {
	t.Helper()
	p := &phone{Space: nettest.NewSpace(t), network: nettest.NewSpace(t), client: nettest.NewSpace(t), cgroup: enterCgroup(t)}
	for _, s := range []nettest.Space{p.Space, p.network, p.client} {
		s.Run(t, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.router_solicitations=0",
			"net.ipv6.conf.default.autoconf=0", "net.ipv6.conf.all.forwarding=1", "net.ipv4.ip_forward=1")
	}
	p.cable(t, "wlan0", p.network, nettest.NearMAC, nettest.FarMAC, nettest.Near4, nettest.Far4, nettest.Near6, nettest.Far6)
	p.cable(t, "ncm0", p.client, "02:00:00:00:01:01", "02:00:00:00:01:02", "10.96.0.1", "10.96.0.2", "fd00:96::1", "fd00:96::2")
	p.radio(t)
	nettest.QuietTun(t, p.Space, clat)
	p.Run(t, "ip", "addr", "add", "192.0.0.4/32", "dev", clat)
	p.Run(t, "ip", "route", "add", beyond4+"/32", "dev", clat, "src", "192.0.0.4")
	p.network.Run(t, "ip", "addr", "add", beyond6+"/128", "dev", "lo", "nodad")
	p.network.Run(t, "ip", "route", "add", netd.DefaultTranslation.Local6.String()+"/128", "dev", "rmnet_data0")
	for _, a := range []struct{ ifname, family, addr string }{
		{"wlan0", "4", nettest.Far4}, {"wlan0", "6", nettest.Far6}, {"rmnet_data0", "4", tunThere4}, {"rmnet_data0", "6", tunThere6},
		{"ncm0", "4", "10.96.0.2"}, {"ncm0", "6", "fd00:96::2"},
	} {
		in := p.network
		if a.ifname == "ncm0" {
			in = p.client
		}
		p.servers = append(p.servers, server{a.ifname, a.family, nettest.Answer(t, in, a.addr)})
	}
	behind := nettest.Answer(t, p.network, beyond6)
	p.servers = append(p.servers, server{clat, "4", netip.AddrPortFrom(netip.MustParseAddr(beyond4), behind.Port())})
	p.Must(t, func() (err error) {
		p.Netd, err = netd.Start(netd.Options{Cgroup: p.cgroup})
		return err
	})
	t.Cleanup(func() { must(t, p.Netd.Close()) })
	return p
}

// cable joins two spaces by an interface of that name in each.
func (p *phone) cable(t *testing.T, ifname string, far nettest.Space, nearMAC, farMAC, near4, far4, near6, far6 string) {
	t.Helper()
	p.Run(t, "ip", "link", "add", ifname, "address", nearMAC, "type", "veth", "peer", "name", ifname, "address", farMAC, "netns", far.Name)
	for _, end := range []struct {
		nettest.Space
		v4, v6, mac, peer4, peer6 string
	}{{p.Space, near4, near6, farMAC, far4, far6}, {far, far4, far6, nearMAC, near4, near6}} {
		end.Run(t, "ip", "link", "set", ifname, "addrgenmode", "none", "up")
		end.Run(t, "ip", "addr", "add", end.v4+"/24", "dev", ifname)
		end.Run(t, "ip", "addr", "add", end.v6+"/64", "dev", ifname, "nodad")
		// Neighbours are known, so that no packets are sent but the test's.
		end.Run(t, "ip", "neigh", "add", end.peer4, "lladdr", end.mac, "dev", ifname)
		end.Run(t, "ip", "neigh", "add", end.peer6, "lladdr", end.mac, "dev", ifname)
	}
}

// radio makes rmnet_data0 and the network's end of it.
func (p *phone) radio(t *testing.T) {
	t.Helper()
	near, far := nettest.QuietTun(t, p.Space, "rmnet_data0"), nettest.QuietTun(t, p.network, "rmnet_data0")
	carry := func(from, to *os.File) {
		b := make([]byte, 64<<10)
		for {
			n, err := from.Read(b)
			if err == nil {
				_, err = to.Write(b[:n])
			}
			if err != nil {
				return
			}
		}
	}
	go carry(near, far)
	go carry(far, near)
	for _, end := range []struct {
		nettest.Space
		v4, v6 string
	}{{p.Space, tunHere4, tunHere6}, {p.network, tunThere4, tunThere6}} {
		end.Run(t, "ip", "addr", "add", end.v4+"/24", "dev", "rmnet_data0")
		end.Run(t, "ip", "addr", "add", end.v6+"/64", "dev", "rmnet_data0", "nodad")
	}
}

// enterCgroup makes a cgroup2 with this process in it, for as long as the test runs.
func enterCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	root := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" && root == "" { // later ones may be those of other tests
			root = f[1]
		}
	}
	if root == "" {
		t.Skip("cgroup2 is not mounted")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	_, path, _ := strings.Cut(string(own), "0::")
	enter := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	dir, err := os.MkdirTemp(root, "droidtap-test-")
	must(t, err)
	t.Cleanup(func() {
		must(t, enter(filepath.Join(root, strings.TrimSpace(path))))
		removeCgroup(t, dir)
	})
	must(t, enter(dir))
	return dir
}

// removeCgroup removes a cgroup without processes: one that ended is there until its last task has been put away.
func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	err := os.Remove(dir)
	for end := time.Now().Add(nettest.Patience); errors.Is(err, unix.EBUSY) && time.Now().Before(end); {
		err = os.Remove(dir)
	}
	must(t, err)
}

// home runs a command below a root that is this machine's with a netd in it. The mounts are those of ip netns exec's own
// mount namespace, and go with it.
const home = `set -e
mount -t tmpfs droidtap-test /mnt
for f in /*; do
	case $f in /mnt) ;; *)
		if [ -L "$f" ]; then cp -P "$f" "/mnt$f"
		elif [ -d "$f" ]; then mkdir "/mnt$f" && mount --rbind "$f" "/mnt$f"
		fi ;;
	esac
done
mkdir -p /mnt/system/bin
: > /mnt/system/bin/netd
exec chroot /mnt "$@"`

// athome is a command on a phone that has a netd, or on one that has none: the agent asks for /system/bin/netd.
func (p *phone) athome(hasNetd bool, argv ...string) *exec.Cmd {
	if hasNetd {
		argv = append([]string{"sh", "-c", home, "home"}, argv...)
	}
	return p.Command(argv...)
}

// start starts a capture into file.
func (p *phone) start(t *testing.T, hasNetd bool, file string, agent []string, args ...string) *nettest.Process {
	t.Helper()
	argv := append(slices.Clone(agent), "-U", "-w", file)
	return nettest.Start(t, p.athome(hasNetd, append(argv, args...)...), "capturing on")
}

// beyond is the server that is reached through the clat.
func (p *phone) beyond() netip.AddrPort {
	for _, s := range p.servers {
		if s.ifname == clat {
			return s.at
		}
	}
	return netip.AddrPort{}
}

// askAll has the phone exchange a text with each server that is reached through one of the interfaces. The text is followed by
// the family and what ends it.
func (p *phone) askAll(text string, ifnames ...string) error {
	var errs []error
	for _, s := range p.servers {
		if slices.Contains(ifnames, s.ifname) {
			errs = append(errs, nettest.Ask(p.Space, "udp", s.at, text+" ipv"+s.family+"."))
		}
	}
	return errors.Join(errs...)
}

// order lists the filters of an interface and a direction in the order in which the kernel runs them: "1 bpf netd_vendor".
// Ours are "ours".
func (p *phone) order(t *testing.T, ifname, direction string) (filters []string) {
	t.Helper()
	for line := range strings.Lines(p.Run(t, "tc", "filter", "show", "dev", ifname, direction)) {
		f := strings.Fields(line)
		at := slices.Index(f, "handle")
		pref := slices.Index(f, "pref")
		if at < 0 || pref < 0 || f[0] != "filter" || f[pref+2] == "u32" && !slices.Contains(f, "order") {
			continue // the preference itself
		}
		name := ""
		if f[pref+2] == "bpf" && at+2 < len(f) {
			name = " " + f[at+2]
		}
		if strings.HasPrefix(name, " droidtap:") {
			name = " ours"
		}
		filters = append(filters, f[pref+1]+" "+f[pref+2]+name)
	}
	return filters
}

// awaitFirst waits until ours is the first filter of an interface in both directions.
func (p *phone) awaitFirst(t *testing.T, ifname string) {
	t.Helper()
	for _, direction := range []string{"ingress", "egress"} {
		var there []string
		for end := time.Now().Add(nettest.Patience); ; {
			if there = p.order(t, ifname, direction); len(there) > 0 && there[0] == "1 bpf ours" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("ours is not the first at %s of %s: %q", direction, ifname, there)
			}
		}
	}
}

// sightings counts the packets of a file that hold a text, by "interface in" and "interface out".
func sightings(f nettest.File, text string) map[string]int {
	n := map[string]int{}
	for _, p := range f.Packets {
		if strings.Contains(p.Data, text) {
			n[f.Interfaces[p.Interface].Name+[]string{"", " in", " out"}[p.Direction]]++
		}
	}
	return n
}

func merge(n, more map[string]int) map[string]int {
	all := maps.Clone(n)
	if all == nil {
		all = map[string]int{}
	}
	maps.Copy(all, more)
	return all
}

// awaitSightings waits until a file has the text wherever that is to be seen.
func awaitSightings(t *testing.T, file, text string, want map[string]int) {
	t.Helper()
	for where := range want {
		nettest.Await(t, file, func(p nettest.Packet) bool {
			if !strings.Contains(p.Data, text) {
				return false
			}
			f, err := nettest.Read(file)
			must(t, err)
			return sightings(f, text)[where] > 0
		})
	}
}
