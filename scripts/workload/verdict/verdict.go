// SPDX-License-Identifier: Apache-2.0

// Package verdict holds what captures of the workload say of packets' owners against what is known of them.
package verdict

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"droidtap/scripts/nettest"
	"droidtap/scripts/workload"
)

// Reference is what tcpdump saw of the workload.
type Reference struct {
	Truths []workload.Truth
	truth  map[string]workload.Truth // by key
}

// NewReference classifies a capture's packets.
func NewReference(f nettest.File, n workload.Net) (*Reference, error) {
	r := &Reference{truth: map[string]workload.Truth{}}
	c := workload.NewClassifier(n)
	for i, p := range f.Packets {
		t, err := c.Classify([]byte(p.Data))
		if err != nil {
			return nil, fmt.Errorf("packet %d: %w: %x", i+1, err, p.Data)
		}
		if before, seen := r.truth[t.Key]; seen && (before.UID != t.UID || before.Comm != t.Comm) {
			return nil, fmt.Errorf("packet %d is of %s, user %d, and before of %s, user %d: %x", i+1, t.Case, t.UID, before.Case, before.UID, p.Data)
		}
		r.truth[t.Key] = t
		r.Truths = append(r.Truths, t)
	}
	return r, nil
}

// Of returns the truth of a packet of another capture; ok is false where tcpdump has none with its bytes.
func (r *Reference) Of(p nettest.Packet) (t workload.Truth, ok bool) {
	key := workload.Key([]byte(p.Data))
	t, ok = r.truth[key]
	return t, ok
}

var processLine = regexp.MustCompile(`(?m)^workload: process \d+ (\d+) (.*)$`)

// Pids reads the processes that the workload tells, as Processes has them.
func Pids(said string) (map[string]int, error) {
	of := map[string]int{}
	for _, m := range processLine.FindAllStringSubmatch(said, -1) {
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, err
		}
		of[m[2]] = pid
	}
	return of, nil
}

// Said is what a packet's comment says.
type Said struct {
	UID     int // workload.None: there is no comment
	Unknown bool
	Pid     int // 0: not told
	Comm    string
	App     string
}

// Parse reads the comments of a packet, of which one is the agent's of the owner.
func Parse(comments []string) (s Said, err error) {
	s.UID = workload.None
	found := false
	for _, comment := range comments {
		rest, ok := strings.CutPrefix(comment, "uid=")
		if !ok {
			continue
		}
		if found {
			return s, fmt.Errorf("two comments of the owner: %q", comments)
		}
		found = true
		rest, s.Comm, _ = strings.Cut(rest, " comm=")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return s, fmt.Errorf("no uid: %q", comment)
		}
		if s.Unknown = fields[0] == "unknown"; !s.Unknown {
			if s.UID, err = strconv.Atoi(fields[0]); err != nil {
				return s, fmt.Errorf("%q: %w", comment, err)
			}
		}
		for _, f := range fields[1:] {
			switch name, value, _ := strings.Cut(f, "="); name {
			case "app":
				s.App = value
			case "pid":
				if s.Pid, err = strconv.Atoi(value); err != nil {
					return s, fmt.Errorf("%q: %w", comment, err)
				}
			default:
				return s, fmt.Errorf("%q: what is %q?", comment, name)
			}
		}
	}
	return s, nil
}

// Census tells how many packets there are of each case.
func (r *Reference) Census() string {
	type key struct {
		c        workload.Case
		version  int
		protocol string
	}
	in, out := map[key]int{}, map[key]int{}
	var keys []key
	for _, t := range r.Truths {
		k := key{t.Case, t.Version, t.Protocol}
		if in[k]+out[k] == 0 {
			keys = append(keys, k)
		}
		if t.Out {
			out[k]++
		} else {
			in[k]++
		}
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.c, b.c), cmp.Compare(a.version, b.version), cmp.Compare(a.protocol, b.protocol))
	})
	var s strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&s, "%-24s %d %-5s %6d in %6d out\n", k.c, k.version, k.protocol, in[k], out[k])
	}
	return s.String()
}

// Enough fails the test unless at least 10,000 packets come in and as many go out.
func (r *Reference) Enough(tb testing.TB) {
	tb.Helper()
	in, out := 0, 0
	for _, t := range r.Truths {
		if t.Out {
			out++
		} else {
			in++
		}
	}
	if in < 10000 || out < 10000 {
		tb.Errorf("%d packets in and %d out:\n%s", in, out, r.Census())
	}
}
