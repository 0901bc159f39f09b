// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/rtnl"
	"droidtap/android"
)

// handleBase is the first handle of our filters at ingress; netd uses 1. Those at egress begin elsewhere: an old ingress qdisc that has taken
// the place of a clsact lists its filters as those of either direction.
const (
	handleBase   = 0x64740001 // "dt"
	handleEgress = handleBase + 1<<16
)

// The preferences of Android's own filters: 2 tether6, 3 tether4, 4 clat, 5 dscp (Connectivity
// TcUtils and ClatCoordinator, PRIO_TETHER6 to PRIO_DSCP). netd adds them with another protocol and would fail if one were taken.
const (
	prefFirst = 1
	prefNext  = 6
)

// attempts bounds the retries when the place that was chosen is taken before we get there.
const attempts = 8

// Filter is a program attached by a cls_bpf filter of a clsact qdisc.
type Filter struct {
	Pref   uint16 // 1, or from 6 up where filters ahead may hide packets
	Handle uint32

	ifc   android.Interface
	dir   Direction
	name  string
	ahead []string // the TCX programs that run before
	newer string   // the filter that was put ahead at the same preference since

	once sync.Once
	err  error
}

// Warning says why the program may not see every packet, or is "".
func (f *Filter) Warning() string {
	if f.newer != "" {
		return fmt.Sprintf("%s was put ahead of ours at %s of %s and may hide packets", f.newer, f.dir, f.ifc.Name)
	}
	return behind(f.ifc, f.dir, f.Pref, f.ahead)
}

// behind says what runs ahead of a filter at a preference: TCX programs do, whatever the preference.
func behind(ifc android.Interface, dir Direction, pref uint16, ahead []string) string {
	switch {
	case len(ahead) > 0:
		return fmt.Sprintf("at %s of %s TCX programs run ahead (%s), which may hide packets", dir, ifc.Name, strings.Join(ahead, ", "))
	case pref != prefFirst:
		return fmt.Sprintf("preference 1 at %s of %s is taken, ours is %d: filters ahead may hide packets", dir, ifc.Name, pref)
	}
	return ""
}

// Check lists the filters: the kernel does so in the order in which it runs them.
func (f *Filter) Check() error {
	there, err := filters(f.ifc.Index, f.dir)
	if err != nil {
		return err
	}
	f.newer = ""
	for _, g := range there {
		if f.is(g) {
			return nil
		}
		// Those of other agents change nothing, and would move ahead of ours in turn.
		if _, ours := parseOwner(g.name); !ours && g.pref == f.Pref && g.handle != 0 && f.newer == "" {
			f.newer = strings.TrimSpace("filter " + g.name)
		}
	}
	f.newer = ""
	// Nothing is left for Close to remove, so it need not look again: each look delays what is put in its place.
	f.once.Do(func() { f.err = ErrLost })
	return ErrLost
}

// choose returns the preference and the handle of a new filter beside those that are there. A cls_bpf runs its newest
// filter first (net/sched/cls_bpf.c cls_bpf_change: list_add_rcu), so a shared preference 1 hides nothing from us.
// Preferences refused twice are passed over. Handles begin at base.
func choose(there []filter, refused map[uint16]int, base uint32) (pref uint16, handle uint32) {
	taken := func(pref uint16) bool {
		return refused[pref] > 1 || slices.ContainsFunc(there, func(f filter) bool { return f.pref == pref })
	}
	foreign := func(f filter) bool {
		return f.pref == prefFirst && (f.kind != kindBPF || f.proto != unix.ETH_P_ALL)
	}
	pref = prefFirst
	if refused[pref] > 1 || slices.ContainsFunc(there, foreign) {
		for pref = prefNext; taken(pref); pref++ {
		}
	}
	for handle = base; slices.ContainsFunc(there, func(f filter) bool { return f.pref == pref && f.handle == handle }); handle++ {
	}
	return pref, handle
}

// attachClsact adds the filter, and the clsact where there is none. refused is how often each preference was refused.
func attachClsact(ifc android.Interface, dir Direction, prog *ebpf.Program, refused map[uint16]int) (*Filter, error) {
	me, err := self()
	if err != nil {
		return nil, err
	}
	created := false
	for range attempts {
		var made bool
		if made, err = ensureClsact(ifc, dir, me); err != nil {
			break
		}
		created = created || made
		me.made = created
		var f *Filter
		if f, err = add(ifc, dir, prog, me, refused); err == nil {
			f.ahead, _ = tcxPrograms(ifc, dir) // what cannot be asked is no obstacle
			return f, nil
		}
		// Lost a race against netd or another agent: the handle or preference is taken now, or the qdisc is gone.
		if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if created {
		_, undo := deleteEmpty(ifc)
		err = errors.Join(err, undo)
	}
	return nil, err
}

// ensureClsact sees to a qdisc at ffff: that can hold the filter, and says whether it had to create it.
func ensureClsact(ifc android.Interface, dir Direction, me owner) (created bool, err error) {
	there, err := qdiscs()
	if err != nil {
		return false, err
	}
	if missing, err := lacksClsact(ifc, dir, there[ifc.Index].kind); !missing || err != nil {
		return false, err
	}
	switch err = addClsact(ifc.Index, me); {
	case errors.Is(err, unix.EEXIST):
		return false, nil
	case errors.Is(err, unix.ENOENT):
		return false, fmt.Errorf("%w: the kernel has none (CONFIG_NET_SCH_INGRESS): %w", ErrNoClsact, err)
	case err != nil:
		return false, fmt.Errorf("create clsact: %w", err)
	}
	return true, nil
}

// lacksClsact tells whether a clsact has to be created, where kind is that of the qdisc at ffff:. The error wraps ErrNoClsact.
func lacksClsact(ifc android.Interface, dir Direction, kind string) (bool, error) {
	switch {
	case kind == "clsact", kind == "ingress" && dir == Ingress:
		return false, nil
	case kind != "":
		// The kernel would accept the filter and run it at ingress: sch_ingress.c knows one block only.
		return false, fmt.Errorf("%w: an %s qdisc is in its place, which has no egress", ErrNoClsact, kind)
	case strings.HasPrefix(ifc.Name, "v4-"):
		// ClatCoordinator.java takes the EEXIST of its own tcQdiscAddDevClsact for a failure of the offload.
		return false, fmt.Errorf("%w: netd creates it on %s itself and gives up the clat offload if there is one", ErrNoClsact, ifc.Name)
	}
	return true, nil
}

// add puts the filter in the best place there is now.
func add(ifc android.Interface, dir Direction, prog *ebpf.Program, me owner, refused map[uint16]int) (*Filter, error) {
	there, err := filters(ifc.Index, dir)
	if err != nil {
		return nil, err
	}
	if !me.made {
		if me.made, err = ours(ifc.Index, dir, there); err != nil {
			return nil, err
		}
	}
	f := &Filter{ifc: ifc, dir: dir, name: me.String()}
	base := uint32(handleBase)
	if dir == Egress {
		base = handleEgress
	}
	f.Pref, f.Handle = choose(there, refused, base)
	if err := f.put(prog, unix.NLM_F_CREATE|unix.NLM_F_EXCL); err != nil {
		// EEXIST is about the handle only, and the next list shows it.
		if !errors.Is(err, unix.EEXIST) {
			refused[f.Pref]++
		}
		return nil, fmt.Errorf("add filter at preference %d: %w", f.Pref, err)
	}
	if dir == Ingress {
		return f, nil
	}
	// Somebody may have put an ingress qdisc in the place of the clsact since that was looked at: it runs the filter at ingress.
	now, err := qdiscs()
	if err == nil {
		_, err = lacksClsact(ifc, dir, now[ifc.Index].kind)
	}
	if err != nil {
		if undo := f.delete(); !gone(undo) {
			err = errors.Join(err, undo)
		}
		return nil, err
	}
	return f, nil
}

// Update replaces the program of the filter at its place, which the kernel does under RCU (net/sched/cls_bpf.c
// cls_bpf_change: list_replace_rcu). The error wraps ErrLost where the
// filter is not there any more; where the interface is gone there is none.
func (f *Filter) Update(prog *ebpf.Program) error {
	there, err := f.attached()
	if err == nil && !there {
		err = f.lost()
	}
	if err == nil && there {
		err = f.put(prog, unix.NLM_F_CREATE)
	}
	if err != nil {
		return fmt.Errorf("update clsact %s of %s: %w", f.dir, f.ifc.Name, err)
	}
	return nil
}

// ours says whether a process of ours created the clsact of an interface, of which the filters of one direction are known: then
// a filter of ours that hangs in it says so, and whichever of them is closed last deletes it.
func ours(ifindex int, dir Direction, there []filter) (bool, error) {
	made := func(f filter) bool {
		o, ok := parseOwner(f.name)
		return ok && o.made
	}
	if slices.ContainsFunc(there, made) {
		return true, nil
	}
	others, err := filters(ifindex, Ingress+Egress-dir)
	return slices.ContainsFunc(others, made), err
}

// attached says whether the filter at our place is ours still; not after netd deleted the clsact.
func (f *Filter) attached() (bool, error) {
	fs, err := filters(f.ifc.Index, f.dir)
	return slices.ContainsFunc(fs, f.is), err
}

// is tells whether an entry of a list is this filter.
func (f *Filter) is(g filter) bool {
	return g.kind == kindBPF && g.pref == f.Pref && g.handle == f.Handle && g.name == f.name
}

// ErrLost is wrapped by the error of a Close that did not find our filter where it was, on an interface that is there.
var ErrLost = errors.New("somebody removed our filter, and packets since then are missing (Android's netd deletes clsact " +
	"when an interface leaves its network)")

// lost is the error for a filter that is gone, unless its interface is.
func (f *Filter) lost() error {
	if _, err := rtnl.Get(f.ifc.Index); err != nil {
		return nil
	}
	return ErrLost
}

// Close removes the filter, and the clsact if a process of ours created it and nothing is left in it. What has gone with
// its interface is no error. Call it in the network namespace of Attach.
func (f *Filter) Close() error {
	f.once.Do(func() {
		if err := f.detach(); err != nil {
			f.err = fmt.Errorf("detach clsact %s from %s: %w", f.dir, f.ifc.Name, err)
		}
	})
	return f.err
}

func (f *Filter) detach() error {
	there, err := f.attached()
	if err != nil {
		return err
	}
	if !there {
		return f.lost()
	}
	if err := f.delete(); err != nil {
		if there, again := f.attached(); there || again != nil {
			return errors.Join(fmt.Errorf("delete filter at preference %d: %w", f.Pref, err), again)
		}
		return nil
	}
	if o, _ := parseOwner(f.name); o.made {
		_, err = deleteEmpty(f.ifc)
	}
	return err
}
