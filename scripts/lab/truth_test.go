// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"droidtap/scripts/nettest"
	"droidtap/scripts/workload"
	"droidtap/scripts/workload/verdict"
)

// packagesList is of the users of the workload: two packages share the last one's uid.
const packagesList = `com.example.alice 10123 0 /data/user/0/com.example.alice default:targetSdkVersion=33 none 0 1 1 @null
com.example.bob 10124 0 /data/user/0/com.example.bob default:targetSdkVersion=33 3003 0 7 1 @product
com.example.carol 10125 0 /data/user/0/com.example.carol default:targetSdkVersion=33 none 0 1 1 @null
com.example.carol.two 10125 0 /data/user/0/com.example.carol.two default:targetSdkVersion=33 none 0 1 1 @null
`

var appsOf = map[int]string{10123: "com.example.alice", 10124: "com.example.bob", 10125: "com.example.carol,com.example.carol.two", 0: "root"}

// truths are the captures of a workload, side by side: each way to find owners, with a filter by uid and without.
var truths = []struct {
	name, args string
	wants      verdict.Wants
	// sockets are looked up; all packets that leave are seen with theirs
	lookup, certain bool
}{
	{"lookup", "", verdict.All, true, true},
	{"lookup, uid", "--uid 10124", verdict.UID(10124), true, true},
	{"flows", "--btf none", verdict.All, false, true},
	{"flows, uid", "--btf none --uid 10124", verdict.UID(10124), false, true},
	{"legacy", "--object legacy", verdict.All, false, true},
	{"legacy, not uid", "--object legacy --not-uid 10124", verdict.NotUID(10124), false, true},
	{"packet", "--backend packet", verdict.All, false, false},
}

// topology gives wlan0 IPv6 addresses, and the phone something to forward for.
func (p *phone) topology(t *testing.T) {
	t.Helper()
	lines := []string{
		"ip netns add behind", "ip link add veth1 type veth peer name veth0 netns behind",
		"ip link set veth1 up", "ip addr add 10.98.0.1/24 dev veth1", "ip addr add fd00:98::1/64 dev veth1 nodad",
		"ip addr add fd00:99::1/64 dev wlan0 nodad", "ip -n peer addr add fd00:99::2/64 dev wlan1 nodad",
		"ip -n behind link set lo up", "ip -n behind link set veth0 up", "ip -n behind addr add 10.98.0.2/24 dev veth0",
		"ip -n behind addr add fd00:98::2/64 dev veth0 nodad", "ip -n behind route add default via 10.98.0.1",
		"ip -n behind -6 route add default via fd00:98::1", "ip -n peer route add 10.98.0.0/24 via 192.168.49.1",
		"ip -n peer -6 route add fd00:98::/64 via fd00:99::1",
		"echo 1 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
	}
	p.root(t, strings.Join(lines, " && "))
	t.Cleanup(func() {
		p.root(t, "ip netns del behind; ip addr del fd00:99::1/64 dev wlan0; ip -n peer addr del fd00:99::2/64 dev wlan1; "+
			"ip -n peer route del 10.98.0.0/24; echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding; true")
	})
}

// truthDir is where the captures are, on the phone.
const truthDir = "/data/local/tmp/truth"

// apps tells the phone which packages there are.
func (p *phone) apps(t *testing.T) {
	t.Helper()
	list := filepath.Join(t.TempDir(), "packages.list")
	if err := os.WriteFile(list, []byte(packagesList), 0o644); err != nil {
		t.Fatal(err)
	}
	p.push(t, list, truthDir+"/packages.list")
	p.root(t, "mkdir -p /data/system && mv "+truthDir+"/packages.list /data/system/packages.list")
	t.Cleanup(func() { p.root(t, "rm /data/system/packages.list") })
}

// crowded is held by the one phone that has so many captures at once, which keep all of two processors busy: of two such phones
// captures would be late, and whom a port belongs to is told a moment later.
var crowded sync.Mutex

// testTruth holds what captures say of the owners of a workload's packets against what is known of them.
func testTruth(t *testing.T, p *phone) {
	crowded.Lock()
	defer crowded.Unlock()
	p.topology(t)
	p.shell(t, "mkdir -p "+truthDir)
	t.Cleanup(func() { p.root(t, "rm -r "+truthDir) })
	p.apps(t)
	pids, agents := p.work(t)
	p.root(t, "chmod 644 "+truthDir+"/*")

	release := strings.TrimSpace(p.shell(t, "uname -r"))
	reference, err := nettest.Read(p.pull(t, truthDir+"/reference.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := verdict.NewReference(reference, workload.Lab())
	if err != nil {
		t.Fatal(err)
	}
	r.Enough(t)
	of := verdict.Processes{Pids: pids, Made: true, Apps: appsOf}
	for i, c := range truths {
		t.Run(c.name, func(t *testing.T) {
			f, err := nettest.Read(p.pull(t, fmt.Sprintf("%s/%d.pcapng", truthDir, i)))
			if err != nil {
				t.Fatal(err)
			}
			table, err := r.Compare(f, c.wants, of)
			if err != nil {
				t.Fatal(err)
			}
			if err := table.Show(t, c.name+", Linux "+release); err != nil {
				t.Error(err)
			}
			table.Judge(t, c.lookup, c.certain)
			if said := strings.Join(agents[i].seen, "\n"); !strings.Contains(said, "\n0 packets dropped by kernel") {
				t.Errorf("packets were dropped:\n%s", said)
			}
		})
	}
}

// work runs the workload, and all captures of it and a tcpdump. It returns the processes of the near end by their names.
func (p *phone) work(t *testing.T) (pids map[string]int, agents []*process) {
	t.Helper()
	const rounds = 9
	// Emulated, with so many captures at once, all agents are late: ports change hands slowly.
	work := p.start(t, "shell", fmt.Sprintf("su -c '/lab/phone workload run -lab -far peer -behind behind -cgroups /sys/fs/cgroup -pause 1s -rounds %d'", rounds))
	work.until(t, regexp.MustCompile(`^workload: prepared$`))
	pids, err := verdict.Pids(strings.Join(work.seen, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := p.start(t, "shell", "su -c 'tcpdump -Z root --immediate-mode -B 16384 -s 4096 -U -i wlan0 -w "+truthDir+"/reference.pcap'")
	d.until(t, tcpdumpLine)
	for i, c := range truths {
		a := p.start(t, "shell", fmt.Sprintf("su -c '%s -U -B 16384 -i wlan0 --comments all %s -w %s/%d.pcapng'", agent, c.args, truthDir, i))
		a.until(t, readyLine)
		agents = append(agents, a)
	}
	p.root(t, fmt.Sprintf("kill -USR1 %d", pids[workload.RunComm]))
	for n := range rounds {
		work.until(t, regexp.MustCompile(fmt.Sprintf(`^workload: round %d$`, n)))
	}
	// It ends with answers, which all have seen by then: what they hold back comes with their end.
	work.until(t, regexp.MustCompile(`^workload: done$`))
	p.root(t, "pkill -INT -x agent && pkill -INT -x tcpdump")
	for i, a := range agents {
		if code := a.end(t); code != 0 {
			t.Errorf("%s: exit code %d:\n%s", truths[i].name, code, strings.Join(a.seen, "\n"))
		}
	}
	if code := d.end(t); code != 0 || !slices.Contains(d.seen, "0 packets dropped by kernel") {
		t.Errorf("tcpdump: exit code %d:\n%s", code, strings.Join(d.seen, "\n"))
	}
	p.root(t, fmt.Sprintf("kill %d", pids[workload.RunComm]))
	if code := work.end(t); code != 0 {
		t.Errorf("the workload: exit code %d:\n%s", code, strings.Join(work.seen, "\n"))
	}
	return pids, agents
}
