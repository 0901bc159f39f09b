// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernel answers with what it is told: below 0, that it does not know.
type kernel struct {
	uid   int
	err   error
	asked int
}

func (k *kernel) Owner(Flow) (uint32, bool, error) {
	k.asked++
	if k.uid < 0 || k.err != nil {
		return 0, false, k.err
	}
	return uint32(k.uid), true, nil
}

const unknown = -1

func TestTable(t *testing.T) {
	// step asks after that much more time. uid is what the kernel says, want what the table does.
	type step struct {
		after time.Duration
		uid   int
		syn   bool
		want  int
		asked bool
	}
	const ms, s = time.Millisecond, time.Second
	for _, c := range []struct {
		rule     string
		protocol uint8
		steps    []step
	}{
		{"an answer holds for two seconds", unix.IPPROTO_TCP, []step{
			{0, 10001, false, 10001, true}, {1999 * ms, 10002, false, 10001, false}, {1 * ms, 10002, false, 10002, true}}},
		{"root's is an answer", unix.IPPROTO_TCP, []step{
			{0, 0, false, 0, true}, {1 * s, 10002, false, 0, false}, {2 * s, unknown, false, 0, true}}},
		{"not to know holds for 20 ms", unix.IPPROTO_UDP, []step{
			{0, unknown, false, unknown, true}, {19 * ms, 10001, false, unknown, false}, {1 * ms, 10001, false, 10001, true}}},
		{"a closed TCP socket's owner stays", unix.IPPROTO_TCP, []step{
			{0, 10001, false, 10001, true}, {2 * s, unknown, false, 10001, true}, {3600 * s, unknown, false, 10001, true}}},
		{"a SYN asks at once", unix.IPPROTO_TCP, []step{{0, 10001, true, 10001, true}, {1 * ms, 10002, true, 10002, true}}},
		{"a SYN of nobody's ends a closed TCP socket's", unix.IPPROTO_TCP, []step{
			{0, 10001, false, 10001, true}, {1 * ms, unknown, true, unknown, true}, {20 * ms, unknown, false, unknown, true}}},
		{"a SYN asks although it was not known just now", unix.IPPROTO_TCP, []step{
			{0, unknown, false, unknown, true}, {1 * ms, 10001, true, 10001, true}}},
		{"a closed UDP socket's owner stays for a minute", unix.IPPROTO_UDP, []step{
			{0, 10001, false, 10001, true}, {59 * s, unknown, false, 10001, true}, {999 * ms, unknown, false, 10001, true},
			{20 * ms, unknown, false, unknown, true}}},
		{"that minute begins with the last answer", unix.IPPROTO_UDP, []step{
			{0, 10001, false, 10001, true}, {59 * s, 10001, false, 10001, true}, {59 * s, unknown, false, 10001, true},
			{1 * s, unknown, false, unknown, true}}},
		{"a UDP port's next owner is seen after 20 ms", unix.IPPROTO_UDP, []step{
			{0, 10001, false, 10001, true}, {2 * s, unknown, false, 10001, true}, {19 * ms, 10002, false, 10001, false},
			{1 * ms, 10002, false, 10002, true}}},
		{"a little back in time is no age", unix.IPPROTO_TCP, []step{
			{0, 10001, false, 10001, true}, {-100 * ms, 10002, false, 10001, false}}},
		{"far back in time the kernel is asked", unix.IPPROTO_TCP, []step{
			{0, 10001, false, 10001, true}, {-3600 * s, 10002, false, 10002, true}}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			k := &kernel{}
			table := NewTable(k)
			now := time.Unix(1700000000, 0)
			for i, step := range c.steps {
				now = now.Add(step.after)
				before := k.asked
				k.uid = step.uid
				uid, known := table.Owner(flow(c.protocol, a4+":5353", b4+":443"), now, step.syn)
				got := unknown
				if known {
					got = int(uid)
				}
				if got != step.want || (k.asked != before) != step.asked {
					t.Errorf("step %d: owner %d, asked %v, want %+v", i, got, k.asked != before, step)
				}
			}
		})
	}
}

func numbered(i int) Flow {
	return flow(unix.IPPROTO_TCP, fmt.Sprintf("%s:%d", a4, i%65536), fmt.Sprintf("%s:%d", b4, i/65536))
}

func TestTableIsBounded(t *testing.T) {
	k := &kernel{uid: 10001}
	table := NewTable(k)
	now := time.Unix(1700000000, 0)
	ask := func(i int) bool {
		before := k.asked
		table.Owner(numbered(i), now, false)
		return k.asked != before
	}
	for i := range maxFlows {
		ask(i)
	}
	const busy = 100
	for i := range busy {
		if ask(i) {
			t.Fatalf("flow %d of %d is forgotten", i, maxFlows)
		}
	}
	for i := range 2 * maxFlows {
		ask(maxFlows + i)
		if ask(i % busy) {
			t.Fatalf("flow %d gives way although it is used all the time", i%busy)
		}
	}
	if len(table.entries) != maxFlows || len(table.places) != maxFlows {
		t.Errorf("%d entries, %d places, want %d", len(table.entries), len(table.places), maxFlows)
	}
	if !ask(busy) {
		t.Error("a quiet flow did not give way")
	}
	for f := range table.places {
		table.Owner(f, now, false)
	}
	if !ask(4 * maxFlows) {
		t.Error("a new flow is known")
	}
	for f, place := range table.places {
		if table.entries[place].flow != f {
			t.Fatalf("the place of %+v is that of %+v", f, table.entries[place].flow)
		}
	}
}

func TestTableKeepsFlowsApart(t *testing.T) {
	k := &kernel{uid: 10001}
	table := NewTable(k)
	now := time.Unix(1700000000, 0)
	one := flow(unix.IPPROTO_TCP, a4+":5353", b4+":443")
	table.Owner(one, now, false)
	k.uid = 10002
	other := one
	other.Protocol = unix.IPPROTO_UDP
	elsewhere := one
	elsewhere.Ifindex = 3
	for _, f := range []Flow{other, elsewhere, {Protocol: one.Protocol, Local: one.Remote, Remote: one.Local}} {
		if uid, known := table.Owner(f, now, false); uid != 10002 || !known {
			t.Errorf("the owner of %+v is %d, %v", f, uid, known)
		}
	}
}

func TestTableCountsFailures(t *testing.T) {
	k := &kernel{uid: 10001}
	table := NewTable(k)
	now := time.Unix(1700000000, 0)
	f := flow(unix.IPPROTO_TCP, a4+":5353", b4+":443")
	table.Owner(f, now, false)
	if n, err := table.Failures(); n != 0 || err != nil {
		t.Errorf("failures: %d, %v", n, err)
	}
	first := errors.New("first")
	for _, k.err = range []error{first, errors.New("second")} {
		now = now.Add(2 * time.Second)
		if uid, known := table.Owner(f, now, false); uid != 10001 || !known {
			t.Errorf("without an answer the owner is %d, %v", uid, known)
		}
	}
	if n, err := table.Failures(); n != 2 || !errors.Is(err, first) {
		t.Errorf("failures: %d, %v, want 2, %v", n, err, first)
	}
}
