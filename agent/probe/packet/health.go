// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"droidtap/agent/boottime"
	"droidtap/agent/plan"
	"droidtap/agent/rtnl"
)

const (
	// silence is how long an interface may count packets of which a program sees none: from one tick to the next, which come a
	// little early now and then.
	silence = period - period/10
	// fewest is how many packets it must have counted by then: drivers count a few that they keep to themselves.
	fewest = 4
	// lull is how long they may take for that.
	lull = 30 * time.Second
)

// pulse compares what an interface counts in one direction with what our program there has seen.
type pulse struct {
	begun   bool
	counted uint64        // by the interface when last we saw a packet, or lull ago
	seen    uint64        // by us then
	since   time.Duration // when that was
	before  uint64        // counted at the last beat
	suspect time.Duration // since when packets are missing; 0: none are
}

// beat takes both counters at a time of the boot clock, and tells whether packets have gone by unseen for too long.
func (p *pulse) beat(counted, seen uint64, now time.Duration) (unseen bool) {
	grown := counted > p.before
	p.before = counted
	switch {
	// An interface that is new, or the driver has reset it.
	case !p.begun, seen != p.seen, counted < p.counted:
		*p = pulse{begun: true, counted: counted, seen: seen, since: now, before: counted}
	case counted-p.counted < fewest && now-p.since >= lull:
		p.counted, p.since = counted, now
	case counted-p.counted < fewest:
	case p.suspect == 0:
		p.suspect = now
	default:
		return grown && now-p.suspect >= silence
	}
	return false
}

// anew has the next beat compare with the last one: another hook is to be judged.
func (p *pulse) anew(now time.Duration) { p.counted, p.since, p.suspect = p.before, now, 0 }

// health is what is known of whether the packets of an interface are seen.
type health struct {
	in, out pulse
	blind   []plan.Hook // those that saw nothing while the interface counted packets
	deaf    bool        // all of them, which is said once
}

// listen compares each interface's counters with ours. Where ours stand still another hook takes the interface; where all of
// them do, so that the packets pass by the kernel's network stack, it goes back to the first one for good. It tells whether
// no interface has counted anything since the last time.
func (k *keeper) listen(links []rtnl.Link) (quiet bool, err error) {
	quiet = true
	for _, t := range slices.Clone(k.taps) {
		n := slices.IndexFunc(links, func(l rtnl.Link) bool { return t.is(l.Interface) })
		if n < 0 || t.deaf {
			continue
		}
		// After the interface's: what that has counted has reached the hook by now, or nearly so.
		sum, err := k.total(t.port)
		if err != nil {
			return false, err
		}
		quiet = quiet && links[n].Received == t.in.before && links[n].Sent == t.out.before
		points := k.points(t.ifc)
		now := boottime.Now()
		in := t.in.beat(links[n].Received, sum.In, now) && k.directions&recordIngress != 0
		out := t.out.beat(links[n].Sent, sum.Out, now) && k.directions&recordEgress != 0 && slices.Contains(points, egress) && !t.ifc.Loopback
		switch {
		case in:
			err = k.unseen(t, "receives")
		case out:
			err = k.unseen(t, "sends")
		}
		if err != nil {
			return false, err
		}
	}
	return quiet, nil
}

// sighted returns the hooks of the plan that may see packets of an interface: all, where none of them does.
func (k *keeper) sighted(t *tap) []plan.Hook {
	hooks := slices.DeleteFunc(slices.Clone(k.target.Plan.Hooks), func(h plan.Hook) bool { return slices.Contains(t.blind, h) })
	if len(hooks) == 0 {
		return k.target.Plan.Hooks
	}
	return hooks
}

// unseen captures an interface by another hook, if there is one.
func (k *keeper) unseen(t *tap, what string) error {
	t.blind = append(t.blind, t.at)
	now := boottime.Now()
	all := k.target.Plan.Hooks
	t.in.anew(now)
	t.out.anew(now)
	if others := k.sighted(t); len(others) < len(all) {
		t.gap.Switches++
		return k.move(t, now, fmt.Sprintf("it counts packets that it %s, and %s sees none of them", what, t.at), others)
	}
	t.deaf = true
	names := make([]string, len(all))
	for i, h := range all {
		names[i] = string(h)
	}
	text := fmt.Sprintf("%s counts packets that it %s and that no hook sees (%s): they pass by the kernel's network stack, as with hardware offload",
		t.name, what, strings.Join(names, ", "))
	if len(all) == 1 {
		text = fmt.Sprintf("%s counts packets that it %s, and %s sees none of them: no other hook may be used", t.name, what, t.at)
	}
	k.note(t.port, now, text)
	k.warn(t.name, text)
	if t.at == all[0] {
		return nil
	}
	t.gap.Switches++
	return k.move(t, now, "no hook sees more than another", all)
}
