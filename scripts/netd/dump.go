// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cgroupTypes are all attach types of cgroups, by include/uapi/linux/bpf.h enum bpf_attach_type; a kernel without one
// answers EINVAL.
var cgroupTypes = []ebpf.AttachType{
	ebpf.AttachCGroupInetIngress, ebpf.AttachCGroupInetEgress, ebpf.AttachCGroupInetSockCreate, ebpf.AttachCGroupSockOps,
	ebpf.AttachCGroupDevice, ebpf.AttachCGroupInet4Bind, ebpf.AttachCGroupInet6Bind, ebpf.AttachCGroupInet4Connect,
	ebpf.AttachCGroupInet6Connect, ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind,
	ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupSysctl, ebpf.AttachCGroupUDP4Recvmsg,
	ebpf.AttachCGroupUDP6Recvmsg, ebpf.AttachCGroupGetsockopt, ebpf.AttachCGroupSetsockopt,
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCgroupInet4GetSockname,
	ebpf.AttachCgroupInet6GetSockname, ebpf.AttachCgroupInetSockRelease,
}

// Dump returns, as sorted lines, what there is in the network namespace of the calling thread - links, qdiscs, the filters of
// clsact, TCX and XDP programs - and at the cgroups, which are directories. It holds no number that changes when the
// same is made again: no ifindex, no id.
func Dump(cgroups ...string) (string, error) {
	c, err := open()
	if err != nil {
		return "", fmt.Errorf("dump: %w", err)
	}
	defer c.close()
	d := &dump{conn: c, names: map[int]string{}}
	for _, step := range []func() error{d.links, d.qdiscs, d.programs} {
		if err := step(); err != nil {
			return "", fmt.Errorf("dump: %w", err)
		}
	}
	for _, dir := range cgroups {
		if err := d.cgroup(dir); err != nil {
			return "", fmt.Errorf("dump: %w", err)
		}
	}
	return sorted(d.lines), nil
}

// Objects returns, as sorted lines, how many bpf programs, maps and links of each type and name there are in the kernel,
// those of other processes among them. A map goes some time after the last program that used it.
func Objects() (string, error) {
	count := map[string]int{}
	for _, kind := range []struct {
		next func(id uint32) (uint32, string, error)
	}{{nextProgram}, {nextMap}} {
		for id := uint32(0); ; {
			next, line, err := kind.next(id)
			if errors.Is(err, os.ErrNotExist) {
				break
			}
			if err != nil {
				return "", fmt.Errorf("list bpf objects: %w", err)
			}
			if id = next; line != "" {
				count[line]++
			}
		}
	}
	it := new(link.Iterator)
	for it.Next() {
		if i, err := it.Link.Info(); err == nil {
			count[fmt.Sprintf("bpf link type %d", i.Type)]++
		}
	}
	// BPF_LINK_GET_NEXT_ID: 5.8.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL) {
		return "", fmt.Errorf("list bpf links: %w", err)
	}
	var lines []string
	for line, n := range count {
		lines = append(lines, fmt.Sprintf("%s: %d", line, n))
	}
	return sorted(lines), nil
}

func nextProgram(id uint32) (uint32, string, error) {
	next, err := ebpf.ProgramGetNextID(ebpf.ProgramID(id))
	if err != nil {
		return 0, "", err
	}
	p, err := ebpf.NewProgramFromID(next)
	if err != nil {
		return uint32(next), "", nil // gone meanwhile
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return 0, "", err
	}
	return uint32(next), fmt.Sprintf("bpf program %s %q", info.Type, info.Name), nil
}

func nextMap(id uint32) (uint32, string, error) {
	next, err := ebpf.MapGetNextID(ebpf.MapID(id))
	if err != nil {
		return 0, "", err
	}
	m, err := ebpf.NewMapFromID(next)
	if err != nil {
		return uint32(next), "", nil
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return 0, "", err
	}
	return uint32(next), fmt.Sprintf("bpf map %s %q", info.Type, info.Name), nil
}

func sorted(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// dump collects the lines of a Dump.
type dump struct {
	conn  *conn
	names map[int]string // by ifindex
	lines []string
}

func (d *dump) add(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...))
}

func (d *dump) links() error {
	all, err := d.conn.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		d.names[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range all {
		a := l.Attrs()
		line := fmt.Sprintf("link %s type %s %s mtu %d promiscuity %d allmulti %d", a.Name, l.Type(), flags(a), a.MTU, a.Promisc, a.Allmulti)
		if a.MasterIndex != 0 {
			line += " master " + d.names[a.MasterIndex]
		}
		d.lines = append(d.lines, line)
		if a.Xdp != nil && a.Xdp.Attached {
			d.add("xdp %s mode %d %s", a.Name, a.Xdp.AttachMode, describe(ebpf.ProgramID(a.Xdp.ProgId)))
		}
	}
	return nil
}

// flags are those that somebody set; whether there is a carrier is no matter.
func flags(a *netlink.LinkAttrs) string {
	s := "down"
	if a.RawFlags&unix.IFF_UP != 0 {
		s = "up"
	}
	for _, f := range []struct {
		flag uint32
		name string
	}{{unix.IFF_PROMISC, "promisc"}, {unix.IFF_ALLMULTI, "allmulti"}, {unix.IFF_NOARP, "noarp"}, {unix.IFF_LOOPBACK, "loopback"}, {unix.IFF_POINTOPOINT, "pointopoint"}} {
		if a.RawFlags&f.flag != 0 {
			s += "," + f.name
		}
	}
	return s
}

func (d *dump) qdiscs() error {
	all, err := d.conn.qdiscs()
	if err != nil {
		return err
	}
	for _, q := range all {
		name := d.names[q.ifindex]
		d.add("qdisc %s %s handle %x: parent %x:%x", name, q.kind, q.handle>>16, q.parent>>16, q.parent&0xffff)
		if q.parent != netlink.HANDLE_CLSACT {
			continue
		}
		for _, parent := range []uint32{ingress, egress} {
			fs, err := d.conn.filters(q.ifindex, parent)
			if err != nil {
				return err
			}
			for _, f := range fs {
				d.add("filter %s %s %s", name, way(parent), f)
			}
		}
	}
	return nil
}

// programs adds those of TCX, which there is from 6.6 on.
func (d *dump) programs() error {
	for index, name := range d.names {
		for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			r, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
			if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
				return nil
			}
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				continue
			}
			if err != nil {
				return fmt.Errorf("list TCX programs of %s: %w", name, err)
			}
			for i, p := range r.Programs {
				d.add("tcx %s %s %d %s", name, at, i, describe(p.ID))
			}
		}
	}
	return nil
}

func (d *dump) cgroup(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, at := range cgroupTypes {
		ids, flags, err := query(f, at)
		if errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil {
			return err
		}
		for i, id := range ids {
			d.add("cgroup %s %s flags %#x %d %s", dir, place(at), flags, i, describe(id))
		}
	}
	return nil
}

// place names an attach type; the library takes the first one, 0, for none.
func place(at ebpf.AttachType) string {
	if at == ebpf.AttachCGroupInetIngress {
		return "CGroupInetIngress"
	}
	return at.String()
}
