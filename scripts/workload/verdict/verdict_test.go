// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
	"droidtap/scripts/workload"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		rule     string
		comments []string
		want     Said
		fails    bool
	}{
		{"none", nil, Said{UID: workload.None}, false},
		{"another's", []string{"from here on the filter is: tcp"}, Said{UID: workload.None}, false},
		{"unknown", []string{"uid=unknown"}, Said{UID: workload.None, Unknown: true}, false},
		{"all", []string{"a gap", "uid=10123 app=a,b pid=42 comm=two words pid=7"}, Said{UID: 10123, App: "a,b", Pid: 42, Comm: "two words pid=7"}, false},
		{"root", []string{"uid=0"}, Said{}, false},
		{"two", []string{"uid=0", "uid=1"}, Said{}, true},
		{"no number", []string{"uid=x"}, Said{}, true},
		{"another part", []string{"uid=1 gid=2"}, Said{}, true},
	} {
		t.Run(c.rule, func(t *testing.T) {
			got, err := Parse(c.comments)
			if (err != nil) != c.fails {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(c.want, got); !c.fails && diff != "" {
				t.Error(diff)
			}
		})
	}
}

// of is a packet that two users' ports are told by, with a comment.
func of(port uint16, text, comment string) nettest.Packet {
	ip := nettest.IPv4(nettest.Near4, nettest.Far4, 17, 0, nil, nettest.UDP(port, 7001, []byte(text)))
	p := nettest.Packet{Data: string(nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeIPv4, ip))}
	if comment != "" {
		p.Comments = []string{comment}
	}
	return p
}

func TestCompare(t *testing.T) {
	const alice, bob = 20900, 20900 + 2100
	file := func(packets ...nettest.Packet) nettest.File { return nettest.File{Packets: packets} }
	r, err := NewReference(file(of(alice, "1", ""), of(alice, "2", ""), of(bob, "1", "")), workload.Host())
	if err != nil {
		t.Fatal(err)
	}
	processes := Processes{Pids: map[string]int{workload.Comm(10123): 7}, Apps: map[int]string{10123: "a"}}
	for _, c := range []struct {
		rule     string
		packets  []nettest.Packet
		wants    Wants
		want     Count
		extra    int
		failures int // of Judge
	}{
		{"all right", []nettest.Packet{of(alice, "1", "uid=10123 app=a pid=7 comm=w alice"), of(alice, "2", "uid=10123 app=a")}, UID(10123),
			Count{Right: 2, NameRight: 1}, 0, 0},
		{"a wrong user", []nettest.Packet{of(alice, "1", "uid=10124"), of(alice, "2", "uid=10123 app=a")}, UID(10123),
			Count{Right: 1, Wrong: 1}, 0, 2},
		{"another's packet", []nettest.Packet{of(alice, "1", "uid=10123 app=a"), of(alice, "2", "uid=10123 app=a"), of(bob, "1", "uid=10124")}, UID(10123),
			Count{Right: 2, Wrong: 1}, 0, 2},
		{"one is missing, one unknown", []nettest.Packet{of(alice, "1", "uid=unknown")}, UID(10123), Count{Unknown: 1, Missing: 1}, 0, 1},
		{"no owner of one that has one", []nettest.Packet{of(alice, "1", ""), of(alice, "2", "uid=10123 app=a")}, UID(10123), Count{Right: 1, None: 1}, 0, 1},
		{"a wrong process and a wrong app", []nettest.Packet{of(alice, "1", "uid=10123 app=a pid=8 comm=w alice"), of(alice, "2", "uid=10123 app=b")}, UID(10123),
			Count{Right: 2, NameWrong: 2}, 0, 1},
		{"one that tcpdump has not", []nettest.Packet{of(alice, "1", "uid=10123 app=a"), of(alice, "2", "uid=10123 app=a"), of(alice, "3", "")}, UID(10123),
			Count{Right: 2}, 1, 0},
		{"one twice", []nettest.Packet{of(alice, "1", "uid=10123 app=a"), of(alice, "1", "uid=10123 app=a")}, UID(10123), Count{Right: 1, Missing: 1}, 1, 1},
	} {
		t.Run(c.rule, func(t *testing.T) {
			table, err := r.Compare(file(c.packets...), c.wants, processes)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, table.Sum(func(Row) bool { return true })); diff != "" || table.Extra != c.extra {
				t.Errorf("%d extra, %s", table.Extra, diff)
			}
			judged := &failures{TB: t}
			table.Judge(judged, true, true)
			if judged.n != c.failures {
				t.Errorf("%d failures, want %d", judged.n, c.failures)
			}
		})
	}
}

// failures counts them instead of failing.
type failures struct {
	testing.TB
	n int
}

func (f *failures) Errorf(string, ...any) { f.n++ }
func (f *failures) Helper()               {}
