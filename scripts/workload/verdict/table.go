// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"droidtap/scripts/nettest"
	"droidtap/scripts/workload"
)

// Row is a kind of packets.
type Row struct {
	Case     workload.Case
	Version  int
	Protocol string
}

// Count is how many packets of a kind are said to be whose.
type Count struct {
	Right, Wrong int
	Unknown      int // uid=unknown
	None         int // no owner, of a packet that has one
	Missing      int // in tcpdump's capture only
	NameRight    int // process and app, where they are told
	NameWrong    int
}

// Table is what a capture says of all packets.
type Table struct {
	Rows map[Row]*Count
	// Odd are the first packets that are wrong, in words.
	Odd []string
	// Extra is how many packets tcpdump has not.
	Extra int
}

// add counts for a packet and keeps what is odd about it.
func (t *Table) add(truth workload.Truth) *Count {
	row := Row{truth.Case, truth.Version, truth.Protocol}
	if t.Rows[row] == nil {
		t.Rows[row] = &Count{}
	}
	return t.Rows[row]
}

func (t *Table) odd(format string, args ...any) {
	if len(t.Odd) < 20 {
		t.Odd = append(t.Odd, fmt.Sprintf(format, args...))
	}
}

// Wants says which packets a capture should have.
type Wants func(workload.Truth) bool

// All wants every packet.
func All(workload.Truth) bool { return true }

// In wants what comes in.
func In(t workload.Truth) bool { return !t.Out }

// UID wants the packets of a user.
func UID(uid int) Wants { return func(t workload.Truth) bool { return t.UID == uid } }

// NotUID wants those of the others; what has no owner is left out.
func NotUID(uid int) Wants {
	return func(t workload.Truth) bool { return t.UID != uid && t.UID != workload.None }
}

// Processes are those at the near end.
type Processes struct {
	Pids map[string]int // by name
	// Made says that a packet's process is the one that made the socket, as the socket's cgroup tells; otherwise it is one that has it.
	Made bool
	// Apps are the names of each user's apps. nil: none are told.
	Apps map[int]string
}

// Compare holds a capture against the truth. A packet that is not wanted is wrong.
func (r *Reference) Compare(f nettest.File, wants Wants, of Processes) (*Table, error) {
	t := &Table{Rows: map[Row]*Count{}}
	left := map[string]int{}
	for _, truth := range r.Truths {
		if wants(truth) {
			left[truth.Key]++
		}
	}
	for i, p := range f.Packets {
		said, err := Parse(p.Comments)
		if err != nil {
			return nil, fmt.Errorf("packet %d: %w", i+1, err)
		}
		truth, ok := r.Of(p)
		if !ok {
			if t.Extra++; said.UID != workload.None {
				t.odd("packet %d is not in tcpdump's capture and is said to be of user %d: %x", i+1, said.UID, p.Data)
			}
			continue
		}
		if left[truth.Key]--; left[truth.Key] < 0 && wants(truth) {
			t.Extra++
			t.odd("packet %d, %s, is there once more than in tcpdump's capture", i+1, truth.Case)
			continue
		}
		t.judge(i+1, truth, said, wants, of)
	}
	for _, truth := range r.Truths {
		if wants(truth) && left[truth.Key] > 0 {
			left[truth.Key]--
			t.add(truth).Missing++
		}
	}
	return t, nil
}

func (t *Table) judge(n int, truth workload.Truth, said Said, wants Wants, of Processes) {
	c := t.add(truth)
	what := fmt.Sprintf("packet %d, %s, IPv%d %s, out %v, of user %d", n, truth.Case, truth.Version, truth.Protocol, truth.Out, truth.UID)
	switch {
	case !wants(truth):
		c.Wrong++
		t.odd("%s is in the capture", what)
	case said.Unknown:
		c.Unknown++
	case said.UID == truth.UID:
		c.Right++
	case said.UID == workload.None:
		c.None++
	default:
		c.Wrong++
		t.odd("%s is said to be of user %d", what, said.UID)
	}
	if said.UID == truth.UID && said.App != of.Apps[truth.UID] {
		c.NameWrong++
		t.odd("%s is said to be of app %q, and is of %q", what, said.App, of.Apps[truth.UID])
	}
	is := func(comm string) bool {
		return said.Pid == of.Pids[comm] && (said.Comm == "" || said.Comm == comm)
	}
	// Who made a socket that another uses is what its cgroup tells; /proc tells who has it.
	either := truth.Shared && (!of.Made || truth.Case == workload.Chowned)
	switch {
	case said.Pid == 0:
	case truth.Comm != "" && (is(truth.Comm) || either && is(workload.RunComm)):
		c.NameRight++
	default:
		c.NameWrong++
		t.odd("%s is said to be of process %d %q, and is of %d %q", what, said.Pid, said.Comm, of.Pids[truth.Comm], truth.Comm)
	}
}

// Sum adds up the kinds that of takes.
func (t *Table) Sum(of func(Row) bool) (all Count) {
	for row, c := range t.Rows {
		if of(row) {
			all.Right += c.Right
			all.Wrong += c.Wrong
			all.Unknown += c.Unknown
			all.None += c.None
			all.Missing += c.Missing
			all.NameRight += c.NameRight
			all.NameWrong += c.NameWrong
		}
	}
	return all
}

// Total is how many packets a count is of.
func (c Count) Total() int { return c.Right + c.Wrong + c.Unknown + c.None + c.Missing }

// String has a line for each kind and one for all.
func (t *Table) String() string {
	rows := make([]Row, 0, len(t.Rows))
	for row := range t.Rows {
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Case, b.Case), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Protocol, b.Protocol))
	})
	var s strings.Builder
	line := func(name string, c Count) {
		fmt.Fprintf(&s, "%-34s %7d %7d %7d %7d %7d %7d | %7d %7d\n", name, c.Total(), c.Right, c.Wrong, c.Unknown, c.None, c.Missing, c.NameRight, c.NameWrong)
	}
	fmt.Fprintf(&s, "%-34s %7s %7s %7s %7s %7s %7s | %7s %7s\n", "", "packets", "right", "wrong", "unknown", "none", "missing", "named", "wrong")
	for _, row := range rows {
		line(fmt.Sprintf("%-24s %d %s", row.Case, row.Version, row.Protocol), *t.Rows[row])
	}
	line("all", t.Sum(func(Row) bool { return true }))
	return s.String()
}

// Show prints a table, and appends it to the file that DROIDTAP_TABLE names.
func (t *Table) Show(tb testing.TB, name string) error {
	tb.Helper()
	text := fmt.Sprintf("%s\n%s%s\n", name, t, strings.Join(t.Odd, "\n"))
	tb.Log("\n" + text)
	file := os.Getenv("DROIDTAP_TABLE")
	if file == "" {
		return nil
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, text)
	return errors.Join(err, f.Close())
}

// Judge fails the test if anything is wrong, or where all sockets are seen more than one in a thousand of what has an owner is without
// it. lookup says that the sockets of what comes in are looked up. It returns how many packets that have an owner are missing.
func (t *Table) Judge(tb testing.TB, lookup, certain bool) (missing int) {
	tb.Helper()
	counts := func(row Row) bool {
		// The agent hears of a socket's end when it is closed, and the next one may have a packet by then: only a lookup knows better.
		return lookup || row.Case != workload.UDPReuseNow
	}
	if all := t.Sum(counts); all.Wrong > 0 || all.NameWrong > 0 {
		tb.Errorf("%d packets with a wrong uid, %d with a wrong process or app", all.Wrong, all.NameWrong)
	}
	owned := t.Sum(func(row Row) bool { return counts(row) && row.Case < workload.Closed })
	if got, of := owned.Right, owned.Total(); certain && got*1000 < of*999 {
		tb.Errorf("%d of %d packets have their owner", got, of)
	}
	return owned.Missing
}
