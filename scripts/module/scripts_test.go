// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// begins is what the stand-in for the agent tells when it is run.
const begins = "run --config " + state + "agent.args --pid-file " + state + "run/agent.pid --socket " + state + "run/agent.sock --log " +
	state + "run/agent.log --ready-file " + state + "run/ready; umask 0022, in /"

// unset is what the stand-in for getprop tells before the boot is completed.
const unset = "sys.boot_completed is not set"

var manager = []string{"ARCH=arm64", "BOOTMODE=true"}

// installed is a phone that has booted once with the module.
func installed(t *testing.T) *phone {
	t.Helper()
	p := newPhone(t)
	p.copy(module(t, "v1", 1_790_000_000), "test/module.zip")
	if out, code := p.sh(manager, "/test/install.sh", "/test/module.zip"); code != 0 {
		t.Fatalf("install: exit code %d\n%s", code, out)
	}
	p.run("/test/boot.sh")
	return p
}

func (p *phone) contains(text string, want ...string) {
	p.t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			p.t.Errorf("no %q in\n%s", w, text)
		}
	}
}

func TestInstallationIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name, doctor, want string
		vars               []string
	}{
		{"another architecture", "0", "! droidtap runs on arm64 only, and this phone is x64", []string{"ARCH=x64", "BOOTMODE=true"}},
		{"from recovery", "0", "! droidtap is installed from the root manager's app, not from recovery", []string{"ARCH=arm64", "BOOTMODE=false"}},
		{"a kernel that lacks something", "4", "  a kernel\n! droidtap cannot capture on this kernel, ", manager},
		{"an agent that does not run", "127", "(agent doctor: exit code 127)", manager},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPhone(t)
			p.write("test/doctor", tc.doctor+"\n")
			p.copy(module(t, "v1", 1_790_000_000), "test/module.zip")
			out, code := p.sh(tc.vars, "/test/install.sh", "/test/module.zip")
			if code != 1 {
				t.Errorf("exit code %d", code)
			}
			p.contains(out, tc.want)
			if p.exists(state) || p.exists("/data/adb/modules_update/droidtap") || p.exists(folder) {
				t.Error("something is left of it")
			}
		})
	}
}

func TestInstallation(t *testing.T) {
	p := installed(t)
	for name, mode := range map[string]os.FileMode{state: os.ModeDir | 0o700, state + "agent.args": 0o600, folder + "agent": 0o755, folder + "service.sh": 0o644} {
		if st, err := os.Lstat(p.path(name)); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v, want %v", name, st.Mode(), err, mode)
		}
	}
	if p.read(state+"agent.args") != p.read(folder+"agent.args") {
		t.Error("the first file of flags is not the example")
	}
	if p.exists(state + "run") {
		t.Error("the service has begun without being turned on")
	}
	p.write(state+"agent.args", "-i wlan0\n")
	out, code := p.sh(manager, "/test/install.sh", "/test/module.zip")
	if p.contains(out, "agent.args stays as it is"); code != 0 || p.read(state+"agent.args") != "-i wlan0\n" {
		t.Errorf("an upgrade has changed the file of flags, or exit code %d", code)
	}
}

func TestActionTurnsOnAndOff(t *testing.T) {
	p := installed(t)
	p.contains(p.run(folder+"action.sh"), "droidtap is on", "capturing, says status status --socket "+state+"run/agent.sock")
	p.hear(begins)
	s := p.supervisor()
	p.contains(p.run(folder+"action.sh"), "droidtap is off")
	p.hear("ended by SIGTERM")
	p.ended(s)
	for _, name := range []string{"enabled", "run/ready", "run/service.pid"} {
		if p.exists(state + name) {
			t.Errorf("%s is left", name)
		}
	}
	p.contains(p.log(), "begins\n", "ends: it was told to\n")
	// Managers differ in how they name the script.
	p.contains(p.run("-c", "cd "+folder+" && sh action.sh"), "droidtap is on")
	p.hear(begins)
	p.contains(p.run("-c", "cd "+folder+" && sh ./action.sh"), "droidtap is off")
	p.hear("ended by SIGTERM")
}

// boots begins a boot with the module on, up to where the service waits for its end.
func (p *phone) boots() {
	p.t.Helper()
	p.write("test/props/sys.boot_completed", "")
	p.write(state+"enabled", "")
	p.run("/test/boot.sh")
	p.hear(unset)
}

func TestBootIsWaitedFor(t *testing.T) {
	p := installed(t)
	p.boots()
	p.hear("resetprop waits")
	p.write("test/props/sys.boot_completed", "1\n")
	p.send(p.boot, "")
	p.hear(begins)
}

func TestBootIsLookedForWithoutResetprop(t *testing.T) {
	p := installed(t)
	p.must(os.Remove(p.path("system/bin/resetprop")))
	p.boots()
	p.hear(unset) // once more, after resetprop would have waited
	p.write("test/props/sys.boot_completed", "1\n")
	line := p.line()
	for line == unset { // it has looked once a second
		line = p.line()
	}
	if line != begins {
		t.Errorf("heard %q, want %q", line, begins)
	}
}

func TestTurnedOffBeforeTheBootIsCompleted(t *testing.T) {
	p := installed(t)
	p.boots()
	p.hear("resetprop waits")
	s := p.supervisor()
	p.contains(p.run(folder+"action.sh"), "droidtap is off")
	p.ended(s)
	if strings.Contains(p.log(), "agent") {
		t.Errorf("the agent has run:\n%s", p.log())
	}
}

func TestAgentIsStartedAgain(t *testing.T) {
	p := installed(t)
	p.write(state+"enabled", "")
	p.run("/test/boot.sh")
	p.hear(begins)
	s := p.supervisor()
	p.send(p.exit, "1")
	p.hear(begins)
	p.send(p.exit, "137")
	p.hear(begins)
	p.write("test/uptime", "1600.00 0.00\n") // ten minutes later
	p.send(p.exit, "3")
	p.hear(begins)
	p.send(p.exit, "0")
	p.ended(s)
	want := "begins\n"
	for _, s := range []string{"1: it is started again in 1 s", "137: it is started again in 2 s", "3: it is started again in 1 s"} {
		want += "agent: stand-in says this on stderr\nthe agent has ended with exit code " + s + "\n"
	}
	want += "agent: stand-in says this on stderr\nends: the agent has ended as it was asked to\n"
	if p.log() != want {
		t.Errorf("log:\n%s\nwant:\n%s", p.log(), want)
	}
	if !p.exists(state + "enabled") {
		t.Error("an agent that has ended turns the module off for the next boot, too")
	}
}

func TestDelaysBeforeANewStart(t *testing.T) {
	p := installed(t)
	got := p.run("-c", "MODDIR="+folder+"; . "+folder+"common.sh; d=1; for i in 1 2 3 4 5 6 7 8 9 10; do d=$(after $d); echo $d; done")
	if want := "2\n4\n8\n16\n32\n64\n128\n256\n300\n300\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAWrongFlagEndsTheService(t *testing.T) {
	p := installed(t)
	p.write("test/wrong", "")
	out, code := p.sh(nil, folder+"action.sh")
	p.contains(out, "agent: no such flag\n", "ends: the agent does not understand "+state+"agent.args\n", "droidtap is off: it could not begin, see above\n")
	if code != 1 || p.exists(state+"enabled") || p.exists(state+"run/service.pid") {
		t.Errorf("exit code %d, or it is on, or a supervisor runs", code)
	}
}

func TestAnAgentWithoutItsSupervisorIsStopped(t *testing.T) {
	p := installed(t)
	p.must(os.Mkdir(p.path(state+"run"), 0o700))
	p.must(unix.Mknod(p.path(state+"run/agent.sock"), unix.S_IFSOCK|0o600, 0))
	p.run(folder + "uninstall.sh")
	p.hear("stop --socket " + state + "run/agent.sock")
}

func TestTheServiceRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		spoil      func(p *phone) error
	}{
		{"flags that belong to shell", "agent.args is not a file that belongs to root", func(p *phone) error { return os.Chown(p.path(state+"agent.args"), 2000, 2000) }},
		{"flags that a group may write", "agent.args is not a file that belongs to root", func(p *phone) error { return os.Chmod(p.path(state+"agent.args"), 0o620) }},
		{"flags that all may write", "agent.args is not a file that belongs to root", func(p *phone) error { return os.Chmod(p.path(state+"agent.args"), 0o602) }},
		{"flags behind a link", "agent.args is not a file that belongs to root", func(p *phone) error {
			p.must(os.Rename(p.path(state+"agent.args"), p.path("/data/local/tmp/agent.args")))
			return os.Symlink("/data/local/tmp/agent.args", p.path(state+"agent.args"))
		}},
		{"no flags", "agent.args is not a file that belongs to root", func(p *phone) error { return os.Remove(p.path(state + "agent.args")) }},
		{"flags that a power cut has taken", "agent.args is empty", func(p *phone) error { return os.Truncate(p.path(state+"agent.args"), 0) }},
		{"--daemon", "agent.args has --daemon", func(p *phone) error {
			return os.WriteFile(p.path(state+"agent.args"), []byte("-i lo\n\t--daemon\n"), 0o600)
		}},
		{"a directory that shell may write", "only root may write", func(p *phone) error { return os.Chmod(p.path(state), 0o777) }},
		{"an agent that shell may write", "only root may write", func(p *phone) error { return os.Chmod(p.path(folder+"agent"), 0o757) }},
		{"a disabled module", "the module is disabled or will be removed", func(p *phone) error { return os.WriteFile(p.path(folder+"disable"), nil, 0o600) }},
		{"a module that goes", "the module is disabled or will be removed", func(p *phone) error { return os.WriteFile(p.path(folder+"remove"), nil, 0o600) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := installed(t)
			p.must(tc.spoil(p))
			out, code := p.sh(nil, folder+"action.sh")
			if p.contains(out, "droidtap is off: ", tc.want); code != 1 {
				t.Errorf("exit code %d\n%s", code, out)
			}
			if p.exists(state + "enabled") {
				t.Error("it is on")
			}
			// And so at boot, where nobody asks action.sh.
			p.write(state+"enabled", "")
			p.run("-c", "mkdir -p "+state+"run; MODDIR="+strings.TrimSuffix(folder, "/")+"; cd /; sh "+folder+"supervisor.sh")
			p.contains(p.log(), "ends: ", tc.want)
		})
	}
}

func TestTheServiceRefusesAnotherFolder(t *testing.T) {
	p := installed(t)
	p.run("-c", "cp -a "+folder+" /data/local/tmp/module")
	out, code := p.sh(nil, "/data/local/tmp/module/action.sh")
	if p.contains(out, "/data/local/tmp/module is not a directory in /data/adb"); code != 1 {
		t.Errorf("exit code %d", code)
	}
}

func TestOneSupervisor(t *testing.T) {
	p := installed(t)
	p.write(state+"enabled", "")
	p.run(folder + "service.sh")
	p.hear(begins)
	first := p.read(state + "run/service.pid")
	p.run(folder + "supervisor.sh") // ends at once
	if again := p.read(state + "run/service.pid"); again != first {
		t.Errorf("%q has made way for %q", first, again)
	}
	// What a killed supervisor, or the last boot, leaves does not keep the next from beginning.
	p.killSupervisor()
	p.run(folder + "service.sh")
	p.hear(begins)
	// Nor does another process that has its number by now.
	p.killSupervisor()
	p.write(state+"run/service.pid", "1 "+strings.SplitN(first, " ", 2)[1])
	p.run(folder + "service.sh")
	p.hear(begins)
}

func TestUninstallLeavesTheCaptures(t *testing.T) {
	for _, atOnce := range []bool{false, true} {
		t.Run(fmt.Sprintf("while it runs %v", atOnce), func(t *testing.T) {
			p := installed(t)
			p.must(os.Mkdir(p.path("/data/local/tmp/droidtap"), 0o755))
			p.write("/data/local/tmp/droidtap/any.pcapng", "packets")
			p.run(folder + "action.sh")
			p.hear(begins)
			if atOnce {
				s := p.supervisor()
				p.run(folder + "uninstall.sh")
				p.hear("ended by SIGTERM")
				p.ended(s)
			} else { // at the next boot, when nothing runs
				p.killSupervisor()
				p.write(folder+"remove", "")
				p.run("/test/boot.sh")
			}
			if p.exists(state) {
				t.Errorf("%s is left", state)
			}
			if p.read("/data/local/tmp/droidtap/any.pcapng") != "packets" {
				t.Error("a capture has changed")
			}
		})
	}
}

func TestTheLogIsBounded(t *testing.T) {
	p := installed(t)
	p.run("-c", "MODDIR="+folder+"; . "+folder+"common.sh; prepare; i=0; while [ $i -lt 300 ]; do say $(printf %01000d $i); i=$((i+1)); done")
	var size int
	for _, name := range []string{"service.log", "service.log.1"} {
		n := len(p.read(state + "run/" + name))
		if size += n; n > 64<<10+1100 {
			t.Errorf("%s has %d bytes", name, n)
		}
	}
	if size < 64<<10 || !strings.HasSuffix(p.log(), "0299\n") {
		t.Errorf("%d bytes are left, and the end is %q", size, p.log()[len(p.log())-10:])
	}
}
