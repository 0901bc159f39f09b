// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// testScript captures by scripts/phone.sh, which finds the emulated phone as it
// would find a real one.
func testScript(t *testing.T, p *phone, binary string) {
	cmd := script(t, binary)
	cmd.Env = p.environ(t)
	pr := start(t, cmd)
	pr.until(t, regexp.MustCompile(`^== Use the phone`))
	p.shell(t, "/lab/phone fetch -n 3 https://"+peer+"/")
	pr.interrupt(t)
	code := pr.end(t)
	said := strings.Join(pr.seen, "\n")
	if code != 0 {
		t.Fatalf("exit code %d:\n%s", code, said)
	}
	files, err := filepath.Glob(filepath.Join(cmd.Dir, "*"))
	if err != nil || len(files) != 1 || !regexp.MustCompile(`/wlan0-\d{8}-\d{6}\.pcapng$`).MatchString(files[0]) {
		t.Fatalf("it left %q (%v), want one capture:\n%s", files, err, said)
	}
	_, got := read(t, files[0])
	if len(got) < 3*8 {
		t.Errorf("%d packets of three fetches", len(got))
	}
	shown := 0
	for _, line := range pr.seen {
		if strings.Contains(line, " → ") {
			shown++
		}
	}
	if shown != len(got) {
		t.Errorf("%d packets shown, %d in the file:\n%s", shown, len(got), said)
	}
	if want := strconv.Itoa(len(got)) + ` packets of "port 443" captured on wlan0`; pr.seen[len(pr.seen)-1] != want {
		t.Errorf("last line %q, want %q", pr.seen[len(pr.seen)-1], want)
	}
}

// script is scripts/phone.sh in a directory of its own.
func script(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := filepath.Abs("../phone.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = t.TempDir()
	return cmd
}

// TestScriptErrors needs no phone: each case lacks one in its way.
func TestScriptErrors(t *testing.T) {
	for _, tool := range []string{"adb", "tshark"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	arm64 := elf(t, 183) // EM_AARCH64
	env := emptyServer(t)
	for _, c := range []struct {
		name, agent string
		env         []string
		want        string
	}{
		{"no file", "/nonexistent/agent", nil, `/nonexistent/agent not found: .*make agent`},
		{"a directory", t.TempDir(), nil, `not found: .*make agent`},
		{"not a program", "../../phone.sh", nil, `is no program for arm64: .*make agent`},
		{"for x86_64", elf(t, 62), nil, `is no program for arm64: .*make agent`},
		{"no phone", arm64, nil, `no phone: connect one`},
		{"not that phone", arm64, []string{"ANDROID_SERIAL=nobody"}, `nobody: .*not found`},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := script(t, c.agent)
			if c.agent == "../../phone.sh" {
				cmd.Args[1] = cmd.Path
			}
			cmd.Env = append(slices.Clone(env), c.env...)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("%v, want exit code 1", err)
			}
			said := strings.TrimSpace(string(out))
			if !regexp.MustCompile(`^phone\.sh: error: .*`+c.want).MatchString(said) || strings.Contains(said, "\n") {
				t.Errorf("it says %q, want one line %q", said, c.want)
			}
		})
	}
}

// elf makes a file that begins as a little-endian program of a machine.
func elf(t *testing.T, machine byte) string {
	t.Helper()
	header := make([]byte, 64)
	copy(header, "\x7fELF\x02\x01\x01")
	header[16], header[18] = 2, machine
	file := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(file, header, 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

// emptyServer starts an adb server that knows no phone and looks for none; it
// gives the environment in which adb asks it.
func emptyServer(t *testing.T) []string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "ANDROID_") })
	home := t.TempDir()
	env = append(env, "ANDROID_ADB_SERVER_PORT="+port, "HOME="+home, "TMPDIR="+home, "ADB_USB=0", "ADB_MDNS=0", "ADB_EMU=0")
	adb := func(arg string) error {
		cmd := exec.Command("adb", arg)
		cmd.Env = env
		return cmd.Run()
	}
	t.Cleanup(func() {
		if err := adb("kill-server"); err != nil {
			t.Errorf("adb kill-server: %v", err)
		}
	})
	if err := adb("start-server"); err != nil {
		t.Fatalf("adb start-server: %v", err)
	}
	return env
}
