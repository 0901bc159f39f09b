// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"droidtap/scripts/nettest"
)

const (
	captures  = "/data/local/tmp/droidtap"
	moduleDir = "/data/adb/modules/droidtap"
	argsFile  = "/data/adb/droidtap/agent.args"
	readyFile = "/data/adb/droidtap/run/ready"

	// moduleArgs are the file of flags: one app, and files that are rotated and bounded.
	moduleArgs = `# what the lab captures
-i wlan0
--app com.example.alice
-C 1
--disk-quota 32M
--min-free 8M
udp
`
	// What a phone that is reboots or cut may lose of a stream in the tests, where processors are short: the bound itself is
	// what make bench-powercut holds against.
	mostBehindHere = 4 * time.Second
)

// module is the agent's module on a phone, and what was done with it.
type module struct {
	*phone
	lab
	binary string
	before []string // files of /data before it was installed
}

// lab is a phone on which the module lives.
type lab struct {
	suite, filesystem, manager string
	loss                       loss // of its power cut
}

// testModule lives with the module: it is installed, turned on, upgraded, disabled and removed, while the phone reboots and
// loses its power.
func testModule(t *testing.T, on lab, binary string) {
	m := &module{phone: bootDisk(t, on.suite, on.filesystem, "lab_su="+on.manager), lab: on, binary: binary}
	m.shell(t, "mkdir -p "+truthDir)
	m.apps(t)
	m.before = m.files(t)
	for _, s := range []struct {
		name string
		test func(*testing.T, *module)
	}{
		{"install", testModuleInstall},
		{"turn on", testModuleOn},
		{"power cut", testModuleCut},
		{"upgrade", testModuleUpgrade},
		{"kill", testModuleKilled},
		{"turn off", testModuleOff},
		{"disable", testModuleDisable},
		{"uninstall", testModuleUninstall},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.test(t, m) }) {
			m.explain(t)
			return // each begins where the one before it ended
		}
	}
}

// says runs a line as root and logs both, for the transcript.
func (m *module) says(t *testing.T, line string) string {
	t.Helper()
	out := m.root(t, line)
	t.Logf("# %s\n%s", line, out)
	return out
}

// explain logs what the module's logs say.
func (m *module) explain(t *testing.T) {
	t.Helper()
	out, _ := m.run(t, "su -c 'tail -n 30 /data/adb/droidtap/run/*.log; ls -laR /data/adb "+captures+"; ps | grep -v \"\\[\"'")
	t.Log(out)
}

// files are all of /data but the captures.
func (m *module) files(t *testing.T) []string {
	t.Helper()
	out := m.root(t, "find /data -xdev -not -path "+captures+" -not -path \""+captures+"/*\"")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return lines
}

// zip makes the module of a version.
func (m *module) zip(t *testing.T, version string, at int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "droidtap-"+version+".zip")
	cmd := exec.Command("go", "run", "./scripts/module", "-agent", m.binary, "-version", version, "-at", fmt.Sprint(at), "-o", file)
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return file
}

// install does what the root manager's app does with a zip.
func (m *module) install(t *testing.T, version string, at int) {
	t.Helper()
	const zip = "/data/local/tmp/module.zip"
	m.push(t, m.zip(t, version, at), zip)
	if out := m.says(t, "/lab/module install "+zip+" 2>/dev/null"); !strings.HasSuffix(strings.TrimSpace(out), "- Done") {
		t.Fatal("it was not installed")
	}
	m.root(t, "rm "+zip)
}

// reboots has the phone end and boot again.
func (m *module) reboots(t *testing.T) {
	t.Helper()
	t.Log("the phone reboots")
	m.do(t, "reboot")
}

// agents are the processes of agents.
func (m *module) agents(t *testing.T) []string {
	t.Helper()
	out, _ := m.run(t, "pgrep -x agent")
	return strings.Fields(out)
}

// captures waits until the module captures.
func (m *module) captures(t *testing.T) {
	t.Helper()
	eventually(t, "the module captures", func() bool {
		// The file alone may be of the boot before.
		_, code := m.run(t, "su -c 'test -e "+readyFile+" && "+moduleDir+"/agent status | grep -q ^capturing'")
		return code == 0
	})
	if n := m.agents(t); len(n) != 1 {
		t.Errorf("processes of the agent: %q", n)
	}
	m.says(t, moduleDir+"/agent status")
}

// sameArgs checks that the file of flags is what it was when the module was turned on.
func (m *module) sameArgs(t *testing.T) {
	t.Helper()
	if out := m.says(t, "cat "+argsFile); out != moduleArgs {
		t.Fatal("the file of flags has changed")
	}
}

// quiet checks that nothing of the module runs, nor is left in the kernel.
func (m *module) quiet(t *testing.T) {
	t.Helper()
	if n := m.agents(t); len(n) != 0 {
		t.Errorf("processes of the agent: %q", n)
	}
	if out, _ := m.run(t, "su -c 'pgrep -f [/]"+moduleDir[1:]+"'"); out != "" {
		t.Errorf("processes of the module: %q", strings.Fields(out))
	}
	if out := m.root(t, "tc filter show dev wlan0 ingress 2>/dev/null; tc filter show dev wlan0 egress 2>/dev/null; true"); strings.TrimSpace(out) != "" {
		t.Errorf("left in tc:\n%s", out)
	}
}

// as runs a line as an app.
func (m *module) as(uid int, line string) string {
	return fmt.Sprintf(`su -c 'LAB_SU=magisk su %d -c "%s"'`, uid, line)
}

// streams begins a stream of one app, and returns when many of it are sent.
func (m *module) streams(t *testing.T, first int) {
	t.Helper()
	m.start(t, "shell", m.as(10123, streamLine(3000, first)))
	eventually(t, "a stream is under way", func() bool {
		marks := m.readLog(t, thisBoot).marks
		return len(marks) > 0 && marks[len(marks)-1].sent >= 500
	})
}

// survived checks what a boot has left of the stream that it interrupted.
func (m *module) survived(t *testing.T, first int) {
	t.Helper()
	folder := m.pullAll(t)
	got, err := last(folder, first)
	if err != nil {
		t.Fatal(err)
	}
	log := m.readLog(t, lastBoot)
	b := log.behind(len(log.log), got)
	t.Logf("of %d datagrams %d are in the files: lost are %d, %d bytes, %v", log.marks[len(log.marks)-1].sent, got, b.packets, b.bytes, b.time)
	if got == 0 || b.time > mostBehindHere && b.bytes > mostBehindBytes {
		t.Error("that is too much")
	}
}

// pullAll fetches all captures, as shell.
func (m *module) pullAll(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	out, err := m.adb("pull", captures, dir+"/").CombinedOutput()
	if err != nil {
		t.Fatalf("adb pull: %v\n%s", err, out)
	}
	t.Logf("$ adb pull %s\n%s", captures, out)
	return filepath.Join(dir, filepath.Base(captures))
}

// oneApp checks that an app's traffic is captured, from its first packet on, and no other app's.
func (m *module) oneApp(t *testing.T) {
	t.Helper()
	n := [2]int{3, 4} // what is sent tells who sent it
	for i, uid := range []int{10123, 10124} {
		m.shell(t, m.as(uid, fmt.Sprintf("/lab/phone udp -n %d %s:53", n[i], peer)))
	}
	m.root(t, moduleDir+"/agent flush")
	seen := map[string]int{}
	files, err := filepath.Glob(m.pullAll(t) + "/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("files: %q, %v", files, err)
	}
	f, err := nettest.Read(files[len(files)-1])
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Packets {
		if i := strings.Index(p.Data, "datagram "); i >= 0 {
			seen[p.Data[i:]]++
		}
	}
	for i := range n[0] {
		text := fmt.Sprintf("datagram %d of %d", i+1, n[0])
		if seen[text] != 2 { // and the answer
			t.Errorf("%q is in the last file %d times, want 2", text, seen[text])
		}
		delete(seen, text)
	}
	if len(seen) != 0 {
		t.Errorf("captured of another app: %v", seen)
	}
}

func testModuleInstall(t *testing.T, m *module) {
	m.install(t, "1.0", 1_000_000)
	m.quiet(t)
	m.reboots(t)
	m.says(t, "ls -l "+moduleDir+" /data/adb/droidtap")
	if out, code := m.run(t, "ls "+captures); code == 0 && strings.TrimSpace(out) != "" {
		t.Errorf("captured before it was turned on: %s", out)
	}
	m.quiet(t)
}

func testModuleOn(t *testing.T, m *module) {
	args := filepath.Join(t.TempDir(), "agent.args")
	if err := os.WriteFile(args, []byte(moduleArgs), 0o600); err != nil {
		t.Fatal(err)
	}
	const to = "/data/local/tmp/agent.args"
	m.push(t, args, to)
	m.root(t, "cat "+to+" >"+argsFile+" && rm "+to)
	if out := m.says(t, "/lab/module action droidtap"); !strings.Contains(out, "droidtap is on") {
		t.Fatal("it is not on")
	}
	m.captures(t)
	m.oneApp(t)
}

// testModuleCut cuts the power in the middle of a capture. What the phone wrote until then tells also what other cuts would have
// left.
func testModuleCut(t *testing.T, m *module) {
	m.streams(t, 1)
	seed := uint64(time.Now().UnixNano())
	t.Logf("the power goes: %v (seed %d)", m.loss, seed)
	m.cut(t, m.loss, rand.New(rand.NewPCG(seed, 0)))
	m.captures(t)
	m.says(t, "cat /data/adb/droidtap/run/*.log")
	m.sameArgs(t)
	m.survived(t, 1)
	m.oneApp(t)
	if m.filesystem != "ext4" {
		return // the host need not know it
	}
	c := powerCuts{log: m.readLog(t, lastBoot), folders: []string{strings.TrimPrefix(captures, "/data")}, seed: seed}
	c.run(t, 10)
	c.show(t, mostBehindHere)
}

// testModuleUpgrade installs another version, and reboots in the middle of a capture.
func testModuleUpgrade(t *testing.T, m *module) {
	m.install(t, "1.1", 2_000_000)
	const first = 1 + streamMost
	m.streams(t, first)
	m.reboots(t)
	m.captures(t)
	if out := m.says(t, "cat "+moduleDir+"/module.prop"); !strings.Contains(out, "\nversion=1.1\n") {
		t.Error("it is not the new version")
	}
	m.sameArgs(t)
	m.survived(t, first)
	m.oneApp(t)
}

// testModuleKilled has the agent die: the service starts it again.
func testModuleKilled(t *testing.T, m *module) {
	was := m.agents(t)
	m.says(t, "pkill -KILL -x agent")
	m.captures(t)
	if is := m.agents(t); slices.Equal(is, was) {
		t.Errorf("process %q is still there", is)
	}
	m.oneApp(t)
}

func testModuleOff(t *testing.T, m *module) {
	m.says(t, "/lab/module action droidtap")
	m.quiet(t)
	m.says(t, "/lab/module action droidtap")
	m.captures(t)
}

func testModuleDisable(t *testing.T, m *module) {
	m.says(t, "touch "+moduleDir+"/disable")
	m.reboots(t)
	m.quiet(t)
}

func testModuleUninstall(t *testing.T, m *module) {
	files := m.root(t, "ls "+captures)
	m.says(t, "rm "+moduleDir+"/disable; /lab/module remove droidtap")
	m.reboots(t)
	m.quiet(t)
	left := slices.DeleteFunc(m.files(t), func(f string) bool { return slices.Contains(m.before, f) })
	if len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	if out := m.says(t, "ls "+captures); out != files {
		t.Errorf("captures before: %s", files)
	}
}
