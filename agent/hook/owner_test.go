// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"os"
	"testing"
	"testing/fstest"
)

func TestOwner(t *testing.T) {
	for _, c := range []struct {
		rule, name string
		want       owner
		ours       bool
	}{
		{"ours", "droidtap:4026531836:1234:567890", owner{4026531836, 1234, 567890, false}, true},
		{"ours, made the clsact", "droidtap:0:1:18446744073709551615:clsact", owner{0, 1, 18446744073709551615, true}, true},
		{"netd's", "prog_clatd_schedcls_ingress6_clat_rawip:[*fsobj]", owner{}, false},
		{"no name", "", owner{}, false},
		{"no start", "droidtap:1:1234", owner{}, false},
		{"no number", "droidtap:1:x:1", owner{}, false},
		{"other tail", "droidtap:1:1:2:qdisc", owner{}, false},
		{"not as we print it", "droidtap:1:01:2", owner{}, false},
		{"pid beyond 31 bits", "droidtap:1:4294967297:2", owner{}, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if got, ours := parseOwner(c.name); got != c.want || ours != c.ours {
				t.Errorf("parseOwner(%q) = %+v, %v, want %+v, %v", c.name, got, ours, c.want, c.ours)
			}
		})
	}
}

func TestDead(t *testing.T) {
	const tail = " 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 567890 0 0"
	proc := fstest.MapFS{
		"10/stat": {Data: []byte("10 (agent) S" + tail)},
		"11/stat": {Data: []byte("11 (a) Z (b) R" + tail)},
		"12/stat": {Data: []byte("12 (agent) Z" + tail)},
		"13/stat": {Data: []byte("13 agent")},
	}
	for _, c := range []struct {
		rule  string
		pid   int
		start uint64
		dead  bool
	}{
		{"lives", 10, 567890, false},
		{"a re-used pid", 10, 567889, true},
		{"a command with brackets", 11, 567890, false},
		{"a zombie", 12, 567890, true},
		{"no such process", 14, 567890, true},
		{"unreadable counts as living", 13, 567890, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if got := (owner{pid: c.pid, start: c.start}).dead(proc, 0); got != c.dead {
				t.Errorf("dead is %v, want %v", got, c.dead)
			}
		})
	}
	if (owner{ns: 1, pid: 1 << 30}).dead(proc, 2) {
		t.Error("a process of another pid namespace is taken for dead")
	}
	me, err := self()
	if err != nil || me.dead(os.DirFS("/proc"), me.ns) {
		t.Errorf("this process is %+v, %v, and dead", me, err)
	}
}

func FuzzParseOwner(f *testing.F) {
	f.Add("droidtap:1:1234:567890:clsact")
	f.Add("droidtap:::")
	f.Fuzz(func(t *testing.T, name string) {
		if o, ok := parseOwner(name); ok && (o.String() != name || o.pid < 0) {
			t.Errorf("parseOwner(%q) = %+v, which prints %q", name, o, o)
		}
	})
}

func FuzzStartTime(f *testing.F) {
	f.Add([]byte("10 (agent) S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 567890 0 0"))
	f.Add([]byte(")"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		if start, err := startTime(fstest.MapFS{"1/stat": {Data: stat}}, 1); err != nil && start != 0 {
			t.Errorf("startTime = %d, %v", start, err)
		}
	})
}
