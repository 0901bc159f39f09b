// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	agent = "/data/local/tmp/agent"
	truth = "/data/local/tmp/tcpdump.pcap"
	peer  = "192.168.49.2"
	cell  = "10.78.0.2" // the peer behind rmnet_data0
)

var (
	readyLine    = regexp.MustCompile(`^capturing on \S+ to (\S+)$`)
	capturedLine = regexp.MustCompile(`(?m)^(\d+) packets captured$`)
	tcpdumpLine  = regexp.MustCompile(`listening on `)
)

// scope is which tests a kernel has.
type scope int

const (
	brief    scope = iota // those that depend most on what it has
	thorough              // those that depend on it
	whole                 // also those of which nobody expects that they do
)

// scopeOf is more of the oldest kernel, and of the newest that Debian has released. With DROIDTAP_LAB_ALL it is whole.
func scopeOf(suite string) scope {
	switch {
	case suite == "bullseye" || os.Getenv("DROIDTAP_LAB_ALL") != "":
		return whole
	case suite == "trixie":
		return thorough
	}
	return brief
}

// TestPhone runs the tests on the kernel of each suite in DROIDTAP_LAB_SUITES, on as many phones at once as this
// machine has processors (go test -parallel): one phone keeps little more than one of them busy.
func TestPhone(t *testing.T) {
	binary := os.Getenv("DROIDTAP_AGENT")
	if binary == "" {
		t.Skip("DROIDTAP_AGENT does not name an arm64 agent")
	}
	if !filepath.IsAbs(binary) { // go test runs in this directory
		abs, err := filepath.Abs(filepath.Join("../..", binary))
		if err != nil {
			t.Fatal(err)
		}
		binary = abs
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatal(err)
	}
	suites := strings.Split(cmp.Or(os.Getenv("DROIDTAP_LAB_SUITES"), "bookworm,bullseye,trixie,trixie-backports"), ",")
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			p := boot(t, suite)
			p.push(t, binary, agent)
			from := func(least scope, name string, test func(*testing.T)) {
				if scopeOf(suite) >= least {
					t.Run(name, test)
				}
			}
			from(whole, "su", func(t *testing.T) { testSu(t, p) })
			t.Run("capture", func(t *testing.T) { testCapture(t, p, scopeOf(suite) == whole) })
			t.Run("filters", func(t *testing.T) { testFilters(t, p) })
			t.Run("choice", func(t *testing.T) { testChoice(t, p) })
			t.Run("uid", func(t *testing.T) { testUID(t, p, "") })
			t.Run("uid by the legacy object", func(t *testing.T) { testUID(t, p, "--object legacy") })
			from(whole, "not root", func(t *testing.T) { testNotRoot(t, p) })
			from(thorough, "clean", func(t *testing.T) { testClean(t, p) })
			from(whole, "README", func(t *testing.T) { testReadme(t, p, binary) })
			from(whole, "script", func(t *testing.T) { testScript(t, p, binary) })
			t.Run("doctor", func(t *testing.T) { testDoctor(t, p, suite) })
			t.Run("BTF", func(t *testing.T) { testBTF(t, p) })
			from(thorough, "packet socket", func(t *testing.T) { testPacketSocket(t, p) })
			t.Run("uid by a packet socket", func(t *testing.T) { testPacketSocketUID(t, p) })
			from(thorough, "truth", func(t *testing.T) { testTruth(t, p) })
			from(thorough, "offload", func(t *testing.T) { testOffload(t, p) })
			t.Run("in the way", func(t *testing.T) { testInTheWay(t, p) })
			from(thorough, "clock", func(t *testing.T) { testClock(t, p) })
			from(thorough, "sleep", func(t *testing.T) { testSleep(t, p) })
			from(thorough, "processors", func(t *testing.T) { testProcessors(t, p) })
			t.Run("netd", func(t *testing.T) { testNetd(t, p) })
			t.Run("home", func(t *testing.T) { testHome(t, p) })
			if suite == "bookworm" {
				t.Run("TLS", func(t *testing.T) { testTLS(t, p) })
			}
			t.Run("no clsact", func(t *testing.T) { testNoClsact(t, p) })
			t.Run("without clsact", func(t *testing.T) { testWithoutClsact(t, p) })
			// The last one: no phone is unlocked again.
			t.Run("locked down", func(t *testing.T) { testLockedDown(t, p) })
		})
	}
	// One that keeps the kernel from what is the processes' (PAN, UAO), as those of phones do.
	if suite := "bullseye"; slices.Contains(suites, suite) {
		t.Run(suite+" on a cortex-a76", func(t *testing.T) {
			t.Parallel()
			p := boot(t, suite, "LAB_CPU=cortex-a76")
			p.push(t, binary, agent)
			t.Run("TLS", func(t *testing.T) { testTLS(t, p) })
		})
	}
	for _, on := range []lab{{"bullseye", "ext4", "magisk", randomLoss}, {"trixie", "f2fs", "kernelsu", allLost}} {
		if slices.Contains(suites, on.suite) {
			t.Run(on.suite+" by "+on.manager, func(t *testing.T) {
				t.Parallel()
				testModule(t, on, binary)
			})
		}
	}
}

// testSu starts the agent the ways in which users write it; the third, quoted
// for Magisk's su, is that of testCapture.
func testSu(t *testing.T, p *phone) {
	line := agent + " -i wlan0 port 443"
	for _, c := range []struct {
		name, style string
		args        []string
	}{
		{"Magisk unquoted", "magisk", append([]string{"shell", "su", "-c"}, strings.Fields(line)...)},
		{"KernelSU quoted", "kernelsu", []string{"shell", "su -c '" + line + "'"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.root(t, "setprop lab.su "+c.style)
			t.Cleanup(func() { p.root(t, "setprop lab.su magisk") })
			got, want := p.compare(t, c.args, "wlan0", "port 443", func() { p.browse(t, peer) })
			same(t, got, want)
		})
	}
}

// testCapture compares with tcpdump by interface, expression and flags, or by a few of them. own are
// flags that tcpdump has not.
func testCapture(t *testing.T, p *phone, all bool) {
	few := []string{"Ethernet", "raw IP", "payload", "raw IP by the legacy object"}
	for _, c := range []struct {
		name, iface, own, flags, expr, peer string
	}{
		{"Ethernet", "wlan0", "", "", "port 443", peer},
		{"no expression but a host", "wlan0", "", "", "host " + peer, peer},
		{"snaplen", "wlan0", "", "-s 100", "port 443", peer},
		{"in", "wlan0", "", "-Q in", "port 443", peer},
		{"out", "wlan0", "", "-Q out", "port 443", peer},
		{"raw IP", "rmnet_data0", "", "", "udp or icmp", cell},
		{"raw IP TCP", "rmnet_data0", "", "", "port 443", cell},
		{"payload", "wlan0", "", "", "tcp[32]=22 or udp port 443", peer},
		{"payload by load-bytes", "wlan0", "--filter-form load-bytes", "", "tcp[32]=22 or udp port 443", peer},
		{"payload in the agent", "wlan0", "--filter-form agent", "", "tcp[32]=22 or udp port 443", peer},
		// libpcap filters the first packet itself, since it may have come before the kernel's filter was there, and
		// there knows no direction: so that must not be what is looked for.
		{"inbound", "wlan0", "", "", "tcp[13]=2 or inbound and port 443", peer},
		{"outbound raw IP", "rmnet_data0", "--object legacy", "", "tcp[13]=2 or outbound and port 443", cell},
		{"protochain", "wlan0", "", "", "ip protochain 17 and port 443", peer},
		{"Ethernet by the legacy object", "wlan0", "--object legacy", "", "port 443", peer},
		{"raw IP by the legacy object", "rmnet_data0", "--object legacy", "", "port 443", cell},
	} {
		if !all && !slices.Contains(few, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			line := fmt.Sprintf("su -c '%s -i %s %s %s %s'", agent, c.iface, c.own, c.flags, c.expr)
			got, want := p.compare(t, []string{"shell", line}, c.iface, c.flags+" "+c.expr, func() { p.browse(t, c.peer) })
			same(t, got, want)
		})
	}
	t.Run("count", func(t *testing.T) {
		a := p.start(t, "shell", "su -c '"+agent+" -i wlan0 -c 5 port 443'")
		path := a.until(t, readyLine)[1]
		p.browse(t, peer)
		if code := a.end(t); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, strings.Join(a.seen, "\n"))
		}
		if _, got := read(t, p.pull(t, path)); len(got) != 5 {
			t.Errorf("%d packets in the file, want 5", len(got))
		}
	})
}

// testFilters runs a part of agent/filter's own differential test on the phone's kernel: its verifier takes the
// programs, and their verdicts are libpcap's.
func testFilters(t *testing.T, p *phone) {
	binary := os.Getenv("DROIDTAP_FILTER_TEST")
	if binary == "" {
		t.Skip("DROIDTAP_FILTER_TEST does not name an arm64 test of agent/filter")
	}
	const dir = "/data/local/tmp/filter"
	p.shell(t, "mkdir -p "+dir+"/testdata")
	p.push(t, binary, dir+"/filter.test")
	for _, file := range []string{"expressions.txt", "expressions-l3.txt"} {
		p.push(t, "../../agent/filter/testdata/"+file, dir+"/testdata/"+file)
	}
	out, code := p.run(t, "su -c 'cd "+dir+"; ./filter.test -test.short -test.v -test.run \"TestVerdict|TestRegisters|TestScratch|TestSizeOfProgram\"'")
	if code != 0 || !strings.Contains(out, "--- PASS: TestVerdictIsThatOfLibpcapWithoutEthernetHeader") || strings.Contains(out, "--- SKIP") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "expressions over") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// testChoice wants the object and the hook that the kernel is new enough for,
// and the object that was asked for.
func testChoice(t *testing.T, p *phone) {
	var major, minor int
	if _, err := fmt.Sscanf(p.shell(t, "uname -r"), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	object, hook := "legacy", "tc"
	if major > 5 || major == 5 && minor >= 8 {
		object = "ring" // BPF_MAP_TYPE_RINGBUF
	}
	if major > 6 || major == 6 && minor >= 6 {
		hook = "tcx"
	}
	for _, c := range []struct{ name, flags, object string }{
		{"automatic", "", object},
		{"legacy object", "--object legacy", "legacy"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := p.start(t, "shell", "su -c '"+agent+" -v -i wlan0 "+c.flags+" port 443'")
			a.until(t, readyLine)
			p.root(t, "pkill -INT -x agent")
			if code := a.end(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			said := strings.Join(a.seen, "\n")
			for _, want := range []string{
				`(?m)^agent: loaded \(probe packet, object ` + c.object + `\)$`,
				`(?m)^agent: plan: hook ` + hook + `\b`,
			} {
				if !regexp.MustCompile(want).MatchString(said) {
					t.Errorf("kernel %d.%d: no line %q:\n%s", major, minor, want, said)
				}
			}
		})
	}
}

// testUID has two apps browse at once, each to its own port, and wants the
// packets of one, received ones too.
func testUID(t *testing.T, p *phone, flags string) {
	const expr = "port 443 or port 8443"
	args := []string{"shell", "su -c '" + agent + " -i wlan0 --uid 10123 " + flags + " " + expr + "'"}
	got, want := p.compare(t, args, "wlan0", expr, func() {
		p.shell(t, `su 10123 -c '/lab/phone fetch -n 5 https://`+peer+`/' &
			su 10124 -c '/lab/phone fetch -n 5 https://`+peer+`:8443/'; wait`)
		p.quiet(t)
		p.shell(t, "su 10124 -c '/lab/phone udp "+peer+":53'")
		p.shell(t, "su 10123 -c '/lab/phone udp "+peer+":443'")
	})
	want = slices.DeleteFunc(want, func(pk packet) bool { return !strings.Contains(ports(pk.data), " 443 ") })
	if len(want) < 5*8 {
		t.Fatalf("only %d packets of uid 10123 in tcpdump's file", len(want))
	}
	same(t, got, want)
}

func testNotRoot(t *testing.T, p *phone) {
	out, code := p.run(t, agent+" -i wlan0 port 443")
	if code != 3 || !regexp.MustCompile(`\bsu\b`).MatchString(out) {
		t.Errorf("exit code %d, want 3 and a line that says to use su:\n%s", code, out)
	}
}
