// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const shell = 2000 // AID_SHELL

// at is 14:03:12 local time, wherever that is.
func at() time.Time { return time.Date(2026, 11, 22, 14, 3, 12, 0, time.Local) }

func TestGenerated(t *testing.T) {
	const name = "wlan0-20261122-140312"
	tests := []struct {
		name  string
		files map[string]string
		dir   string // --output-dir
		tmp   string
		want  string
		usage string
	}{
		{
			name: "on a phone, beside the agent itself", files: map[string]string{"tmp/": "", "tmp/agent": "\x7fELF"}, tmp: "tmp",
			want: "tmp/droidtap/" + name + ".pcapng",
		},
		{
			name: "on a phone, a second time", files: map[string]string{"tmp/": "", "tmp/droidtap/": ""}, tmp: "tmp",
			want: "tmp/droidtap/" + name + ".pcapng",
		},
		{
			name: "not where a link leads", files: map[string]string{"tmp/": "", "data/": "", "tmp/droidtap": "-> ../data"}, tmp: "tmp",
			usage: "tmp/droidtap is not a directory: choose another with --output-dir",
		},
		{name: "elsewhere", tmp: "tmp", want: name + ".pcapng"},
		{name: "elsewhere, with a file of that name", files: map[string]string{"tmp": ""}, tmp: "tmp", want: name + ".pcapng"},
		{name: "a name that is taken", files: map[string]string{name + ".pcapng": "old"}, want: name + "-1.pcapng"},
		{
			name:  "names that are taken by a file and a link",
			files: map[string]string{name + ".pcapng": "old", name + "-1.pcapng": "-> nowhere"}, want: name + "-2.pcapng",
		},
		{name: "a given directory", files: map[string]string{"d/": "", "tmp/": ""}, tmp: "tmp", dir: "d", want: "d/" + name + ".pcapng"},
		{name: "a given directory that is missing", dir: "d", want: "d/" + name + ".pcapng"},
		{name: "a given directory with its slash", dir: "d/", want: "d/" + name + ".pcapng"},
		{name: "a given link to a directory", files: map[string]string{"d/": "", "l": "-> d"}, dir: "l", want: "l/" + name + ".pcapng"},
		{name: "two levels are missing", dir: "d/e", usage: "directory d does not exist: create it or choose another with --output-dir"},
		{name: "a given file", files: map[string]string{"d": ""}, dir: "d", usage: "d is not a directory"},
		{name: "a given link to nowhere", files: map[string]string{"d": "-> nowhere"}, dir: "d", usage: "d is not a directory"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(tree(t, tt.files))
			o := &opener{dir: tt.dir, tmp: tt.tmp, now: at, ext: ".pcapng"}
			got, err := fill(t, o, "wlan0", "new")
			if tt.usage != "" {
				checkUsage(t, err, tt.usage)
				return
			}
			if err != nil || got != tt.want {
				t.Fatalf("opened %q, %v, want %q", got, err, tt.want)
			}
			if text, err := os.ReadFile(got); err != nil || string(text) != "new" {
				t.Errorf("%s holds %q, %v", got, text, err)
			}
			for name, content := range tt.files {
				if text, err := os.ReadFile(name); err == nil && string(text) != content {
					t.Errorf("%s was %q, is %q", name, content, text)
				}
			}
		})
	}
}

func TestSanitise(t *testing.T) {
	tests := []struct{ name, label, want string }{
		{"as it is", "v4-rmnet_data0", "v4-rmnet_data0"},
		{"VLAN and peer", "eth0.100@eth0", "eth0.100@eth0"},
		{"several", "wlan0,rmnet_data0", "wlan0,rmnet_data0"},
		{"odd bytes", "a/b\\c*\x01\xff\u00e4\U0001f600'", "a_b_c______"},
		{"an option", "-rf", "_rf"},
		{"a hidden file", "..", "_."},
		{"nothing", "", "capture"},
		{"too long", strings.Repeat("wlan0,", 100), strings.Repeat("wlan0,", 100)[:100]},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, sanitise(tt.label)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// owner is who owns a path and its permissions.
type owner struct {
	UID, GID uint32
	Mode     os.FileMode
}

func ownerOf(t *testing.T, path string) owner {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	return owner{sys.Uid, sys.Gid, st.Mode()}
}

func TestOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away needs root")
	}
	tests := []struct {
		name   string
		opener opener
		want   map[string]owner
	}{
		{
			"a new directory and file", opener{tmp: "tmp", now: at, ext: ".pcapng"},
			map[string]owner{
				"tmp/droidtap": {shell, shell, os.ModeDir | 0o755},
				"tmp/droidtap/any-20261122-140312.pcapng": {shell, shell, 0o600},
			},
		},
		{
			"a given directory", opener{dir: "tmp/d", now: at, ext: ".pcapng"},
			map[string]owner{
				"tmp/d":                            {shell, shell, os.ModeDir | 0o755},
				"tmp/d/any-20261122-140312.pcapng": {shell, shell, 0o600},
			},
		},
		{"a new file", opener{write: "tmp/x"}, map[string]owner{"tmp/x": {shell, shell, 0o600}}},
		{"an existing file keeps its owner", opener{write: "tmp/old"}, map[string]owner{"tmp/old": {1000, 1001, 0o640}}},
	}
	defer unix.Umask(unix.Umask(0o022))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(tree(t, map[string]string{"tmp/": "", "tmp/old": ""}))
			err := errors.Join(os.Chown("tmp", shell, shell), os.Chown("tmp/old", 1000, 1001), os.Chmod("tmp/old", 0o640))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fill(t, &tt.opener, "any", "new"); err != nil {
				t.Fatal(err)
			}
			got := make(map[string]owner)
			for path := range tt.want {
				got[path] = ownerOf(t, path)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("owners (-want +got):\n%s", diff)
			}
		})
	}
}
