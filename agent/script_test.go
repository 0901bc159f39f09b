// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"

	"droidtap/scripts/nettest"
)

// attached returns what hangs on the interfaces of the namespace.
func attached(s nettest.Space) (what []string, err error) {
	err = s.Do(0, func() error {
		qdiscs, err := netlink.QdiscList(nil)
		if err != nil {
			return err
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				what = append(what, "clsact")
			}
		}
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
				found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: at})
				if err != nil {
					return err
				}
				for range found.Programs {
					what = append(what, at.String()+" of "+l.Attrs().Name)
				}
			}
		}
		return nil
	})
	return what, err
}

// TestScripts runs testdata/*.txt, each in a namespace with lo, veth0 and tun0. They may use:
//
//	exits CODE argv...       argv ends with that code, and nothing stays attached
//	refuses CODE TEXT argv... so, saying nothing but one line that matches TEXT
//	captures argv...         argv, an agent that captures on veth0, writes what passes to out.pcapng
func TestScripts(t *testing.T) {
	nettest.Require(t, "agent", "tcpdump", "setpriv", "capinfos")
	files, err := filepath.Glob("testdata/*.txt")
	must(t, err)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			near, far := nettest.Pair(t)
			openTun(t, near)
			exits := func(ts *testscript.TestScript, want string, argv ...string) {
				code := 0
				err := ts.Exec("ip", append([]string{"netns", "exec", near.Name}, argv...)...)
				if exit := new(exec.ExitError); errors.As(err, &exit) {
					code = exit.ExitCode()
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if n, err := strconv.Atoi(want); err != nil || n != code {
					ts.Fatalf("code %d, not %s", code, want)
				}
				if what, err := attached(near); err != nil || len(what) > 0 {
					ts.Fatalf("left behind: %v (%v)", what, err)
				}
			}
			testscript.Run(t, testscript.Params{
				Files:           []string{file},
				ContinueOnError: true,
				Setup: func(env *testscript.Env) error {
					btf, err := filepath.Abs("../btf/min")
					env.Setenv("BTF", btf)
					return err
				},
				Deadline: time.Now().Add(2 * nettest.Patience), // a capture that should have been refused runs for ever
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits": func(ts *testscript.TestScript, _ bool, args []string) {
						exits(ts, args[0], args[1:]...)
					},
					"refuses": func(ts *testscript.TestScript, _ bool, args []string) {
						exits(ts, args[0], args[2:]...)
						said := ts.ReadFile("stderr")
						if strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "agent: ") || !regexp.MustCompile(args[1]).MatchString(said) {
							ts.Fatalf("stderr is not one line that matches %q:\n%s", args[1], said)
						}
						if out := ts.ReadFile("stdout"); out != "" {
							ts.Fatalf("stdout is not empty:\n%s", out)
						}
					},
					"captures": func(ts *testscript.TestScript, _ bool, args []string) {
						file := ts.MkAbs("out.pcapng")
						argv := append([]string{args[0], "-U", "-w", file, "-i", "veth0"}, args[1:]...)
						cmd := near.Command(argv...)
						cmd.Dir = ts.MkAbs(".")
						p := nettest.Start(t, cmd, "capturing on")
						mark(t, near, far, endOut, endIn)
						nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == endIn })
						p.Stop(t, syscall.SIGINT)
					},
				},
			})
		})
	}
}
