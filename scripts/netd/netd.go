// SPDX-License-Identifier: Apache-2.0

// Package netd stands in for Android's netd, and for ConnectivityService and Tethering where they use tc, in tests: it
// owns the clsact qdiscs of a network namespace and the programs at a cgroup as they do, with their preferences, flags
// and verdicts, and tells when somebody else has harmed one of them.
package netd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Where filters hang: ffff:fff2 and ffff:fff3.
const (
	ingress = netlink.HANDLE_MIN_INGRESS
	egress  = netlink.HANDLE_MIN_EGRESS
)

// Options are what Start is told.
type Options struct {
	// Cgroup is the directory of the cgroup2 to attach to: /sys/fs/cgroup on a phone. "" attaches no programs.
	Cgroup string
	// Log gets what netd only logs; nil: nobody.
	Log *slog.Logger
}

// Netd is a running one. Its methods may be called on any thread: they act in the network namespace of Start.
type Netd struct {
	log    *slog.Logger
	conn   *conn
	cgroup *os.File // nil without

	mu       sync.Mutex
	programs []*attached
	qdiscs   []qdisc
	filters  []*filter
	offloads *ebpf.Map
}

// qdisc is a clsact that we count on.
type qdisc struct {
	ifindex int
	ifname  string
	made    bool // by us; otherwise it was there
}

// Start starts as netd does: it deletes the clsact of every interface in the network namespace of the calling thread,
// whoever made it and whatever is in it, and attaches its programs to the cgroup. The error wraps EPERM where somebody
// has attached to the cgroup with BPF_F_ALLOW_MULTI or BPF_F_ALLOW_OVERRIDE.
func Start(o Options) (*Netd, error) {
	n := &Netd{log: o.Log}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	// Up to 5.10 maps count against it (kernel/bpf/syscall.c bpf_charge_memlock); without CAP_SYS_RESOURCE it has to do.
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	var err error
	if n.conn, err = open(); err != nil {
		return nil, fmt.Errorf("start netd: %w", err)
	}
	if o.Cgroup != "" {
		n.cgroup, err = os.Open(o.Cgroup)
	}
	if err == nil {
		var all *ebpf.CollectionSpec
		if all, err = parsed(); err == nil {
			n.offloads, err = ebpf.NewMap(all.Maps["offloads"])
		}
	}
	if err == nil {
		err = n.begin()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start netd: %w", err), n.Close())
	}
	return n, nil
}

// begin is what every start of netd does.
func (n *Netd) begin() error {
	links, err := n.conn.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		// NetworkController's constructor ignores the errors: most interfaces have no clsact.
		_ = n.conn.QdiscDel(clsact(l.Attrs().Index))
	}
	if n.cgroup == nil {
		return nil
	}
	return n.attachAll()
}

// Restart is a crash and the next start: nobody cleans up, all clsact go, and the programs at the cgroup are replaced
// by new ones of the same flags. netd then knows no interface.
func (n *Netd) Restart() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.programs
	n.programs = nil
	err := n.begin()
	for _, p := range old {
		err = errors.Join(err, p.close())
	}
	err = errors.Join(err, n.forget(func(int, string) bool { return true }))
	if err != nil {
		return fmt.Errorf("restart netd: %w", err)
	}
	return nil
}

// Close removes what is ours and still there: programs, filters, and a clsact that we made and in which no filter of
// others is left. Android's netd never does that.
func (n *Netd) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	if n.cgroup != nil {
		errs = append(errs, n.detachAll(), n.cgroup.Close())
		n.cgroup = nil
	}
	for len(n.filters) > 0 {
		errs = append(errs, n.remove(n.filters[0]))
	}
	for _, q := range n.qdiscs {
		errs = append(errs, n.deleteEmpty(q))
	}
	n.qdiscs = nil
	if n.offloads != nil {
		errs = append(errs, n.offloads.Close())
	}
	n.conn.close()
	return errors.Join(errs...)
}

func (n *Netd) deleteEmpty(q qdisc) error {
	there, err := n.conn.hasClsact(q.ifindex)
	if err != nil || !there || !q.made {
		return err
	}
	for _, parent := range []uint32{ingress, egress} {
		if fs, err := n.conn.filters(q.ifindex, parent); err != nil || len(fs) > 0 {
			return err
		}
	}
	if err := n.conn.QdiscDel(clsact(q.ifindex)); err != nil {
		return fmt.Errorf("delete clsact of %s: %w", q.ifname, err)
	}
	return nil
}

// forget drops what was on some interfaces without asking whether it is there.
func (n *Netd) forget(on func(ifindex int, ifname string) bool) error {
	n.qdiscs = slices.DeleteFunc(n.qdiscs, func(q qdisc) bool { return on(q.ifindex, q.ifname) })
	var errs []error
	n.filters = slices.DeleteFunc(n.filters, func(f *filter) bool {
		gone := on(f.ifindex, f.ifname)
		if gone {
			errs = append(errs, f.program.close())
		}
		return gone
	})
	return errors.Join(errs...)
}

// Join adds clsact, as RouteController::maybeModifyQdiscClsact does when an interface joins a physical or local
// network: one that is there already is logged and taken for netd's own, and v4-NAME gets none here. The error wraps
// syscall.ENODEV where there is no such interface.
func (n *Netd) Join(ifname string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if strings.HasPrefix(ifname, "v4-") {
		return nil
	}
	l, err := n.link(ifname)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	// What we had on it went with an interface of the same name, or with the qdisc that is missing.
	if err := n.forget(func(_ int, name string) bool { return name == ifname }); err != nil {
		return fmt.Errorf("join %s: %w", ifname, err)
	}
	err = n.conn.QdiscAdd(clsact(l.Index))
	if errors.Is(err, unix.EEXIST) {
		n.log.Warn("tcQdiscAddDevClsact failure: File exists", "interface", ifname)
	} else if err != nil {
		return fmt.Errorf("join %s: add clsact: %w", ifname, err)
	}
	n.qdiscs = append(n.qdiscs, qdisc{l.Index, ifname, err == nil})
	return nil
}

// Leave deletes the clsact with all in it, as when an interface leaves its network. An interface that is gone is no error.
func (n *Netd) Leave(ifname string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	l, err := n.link(ifname)
	switch {
	case errors.Is(err, unix.ENODEV):
		n.log.Warn("interface is gone", "interface", ifname)
		err = nil
	case err == nil:
		err = n.conn.QdiscDel(clsact(l.Index))
	}
	if err = errors.Join(err, n.forget(func(_ int, name string) bool { return name == ifname })); err != nil {
		return fmt.Errorf("leave %s: delete clsact: %w", ifname, err)
	}
	return nil
}

// iface is an interface as the steps need it.
type iface struct {
	Index    int
	Name     string
	Ethernet bool // its packets begin with such a header
	MAC      net.HardwareAddr
}

// link looks an interface up. The error wraps ENODEV where there is none.
func (n *Netd) link(ifname string) (iface, error) {
	l, err := n.conn.LinkByName(ifname)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		err = unix.ENODEV
	}
	if err != nil {
		return iface{}, fmt.Errorf("interface %s: %w", ifname, err)
	}
	a := l.Attrs()
	return iface{a.Index, a.Name, a.EncapType == "ether" || a.EncapType == "loopback", a.HardwareAddr}, nil
}
