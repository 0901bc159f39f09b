// SPDX-License-Identifier: Apache-2.0

package capability

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestMain is a program that sheds, too, and prints the names and the sets that its threads have then.
func TestMain(m *testing.M) {
	if os.Getenv("SHED") == "" {
		os.Exit(m.Run())
	}
	if err := Shed(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	files, _ := filepath.Glob("/proc/self/task/*/status")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that has ended
		}
		var sets []string
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "Cap") {
				sets = append(sets, strings.Join(strings.Fields(line), ""))
			}
		}
		fmt.Println(strings.Join(sets, " "))
	}
	name, _ := os.ReadFile("/proc/self/comm")
	fmt.Printf("%s %d %s", os.Args[1:], os.Getpid(), name)
}

// sets is what /proc says of a thread.
func sets(inherited, permitted, effective, bounding, ambient Set) string {
	return fmt.Sprintf("CapInh:%016x CapPrm:%016x CapEff:%016x CapBnd:%016x CapAmb:%016x", uint64(inherited), uint64(permitted), uint64(effective), uint64(bounding), uint64(ambient))
}

// TestShed runs a program as one that setpriv starts as root, or whom else it says.
func TestShed(t *testing.T) {
	setpriv, err := exec.LookPath("setpriv")
	if err != nil || os.Getuid() != 0 {
		t.Skip("needs root and setpriv")
	}
	all := bounding()
	if all&^Needed() == 0 {
		t.Skip("needs a root that lacks nothing")
	}
	needed, raw := all&Needed(), Set(1)<<unix.CAP_NET_RAW
	chown, pcap := Set(1)<<unix.CAP_CHOWN, Set(1)<<unix.CAP_SETPCAP
	for _, tc := range []struct{ rule, args, want string }{
		{"root", "--inh-caps -all", sets(0, needed, needed, needed, 0)},
		{"root with what is inherited", "--inh-caps +net_raw,+kill --ambient-caps +net_raw,+kill", sets(0, needed, needed, needed, 0)},
		{"a su that took some away", "--inh-caps -all --bounding-set -chown", sets(0, needed&^chown, needed&^chown, needed&^chown, 0)},
		{"a su that took away that, too", "--inh-caps -all --bounding-set -setpcap", sets(0, all&^pcap, all&^pcap, all&^pcap, 0)},
		{"nobody", "--inh-caps -all --reuid 2000 --clear-groups", sets(0, 0, 0, all, 0)},
		{"nobody with what he was given", "--reuid 2000 --clear-groups --inh-caps +net_raw --ambient-caps +net_raw", sets(raw, raw, raw, all, raw)},
		{"a root who is nobody special", "--securebits +noroot --inh-caps +net_raw,+setpcap --ambient-caps +net_raw,+setpcap", sets(raw|pcap, raw|pcap, raw|pcap, all, raw|pcap)},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			link := filepath.Join("/proc/self", "exe")
			file, err := os.Readlink(link)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(setpriv, append(strings.Fields(tc.args), file, "a", "b c")...)
			cmd.Env = append(os.Environ(), "SHED=1")
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			last := len(lines) - 1
			if last < 2 {
				t.Errorf("one thread, or none, proves nothing: %q", lines)
			}
			for _, line := range lines[:last] {
				if d := cmp.Diff(tc.want, line); d != "" {
					t.Error(d)
				}
			}
			name := filepath.Base(file)
			if want := fmt.Sprintf("[a b c] %d %s", cmd.Process.Pid, name[:min(len(name), 15)]); lines[last] != want {
				t.Errorf("%q, want %q", lines[last], want)
			}
		})
	}
}
