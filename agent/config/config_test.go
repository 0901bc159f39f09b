// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// told is a file in one line for each of its own.
func told(f *File) string {
	var b strings.Builder
	for _, l := range f.Flags {
		flag, value := l.Cut()
		fmt.Fprintf(&b, "%d %s|%s\n", l.Number, flag, value)
	}
	for _, l := range f.Expression {
		fmt.Fprintf(&b, "%d expr %s\n", l.Number, l.Text)
	}
	if f.Verbatim {
		b.WriteString("verbatim\n")
	}
	return b.String()
}

func TestParse(t *testing.T) {
	for _, tc := range []struct{ rule, text, want string }{
		{"nothing", "", ""},
		{"comments and empty lines", "\n# -i lo\n   # more\n\t\n#", ""},
		{"a flag by itself", "-U", "1 -U|\n"},
		{"the rest of the line is the value", "-z /bin/x -9 'a  b' # c", "1 -z|/bin/x -9 'a  b' # c\n"},
		{"a tab, and blanks at the ends", "\t-i\t wlan0  ", "1 -i|wlan0\n"},
		{"a long flag", "--app com.example", "1 --app|com.example\n"},
		{"a value behind =", "--not-uid=0", "1 --not-uid=0|\n"},
		{"blanks in it", "--app=a b = c", "1 --app=a b = c|\n"},
		{"= in a value", "--app a=b", "1 --app|a=b\n"},
		{"= is no end of a short flag", "-z a=b c", "1 -z|a=b c\n"},
		{"a short flag keeps its =", "-za=b c", "1 -za=b|c\n"},
		{"lines are numbered from 1, comments too", "# x\n-i lo\n\n-U", "2 -i|lo\n4 -U|\n"},
		{"ends of lines as Windows has them", "-i lo\r\n-U\r\n", "1 -i|lo\n2 -U|\n"},
		{"a byte order mark", "\ufeff-U", "1 -U|\n"},
		{"the expression is the rest", "-U\ntcp and\n  not port 22\n", "1 -U|\n2 expr tcp and\n3 expr not port 22\n"},
		{"comments in it", "tcp\n# all of it\nport 22", "1 expr tcp\n3 expr port 22\n"},
		{"a dash in it", "len\n- 4 > 0\n-i lo", "1 expr len\n2 expr - 4 > 0\n3 expr -i lo\n"},
		{"a lone dash begins it", "- 4", "1 expr - 4\n"},
		{"-- begins it", "-U\n--\n-4 < len", "1 -U|\n3 expr -4 < len\nverbatim\n"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			f, err := Parse(strings.NewReader(tc.text), "f")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, told(f)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct{ rule, text, want string }{
		{"no text", "-U\n-i \x00\n", "f:2: a line has no NUL"},
		{"too long a file", strings.Repeat("# nothing\n", maxSize/10+1), "f: more than 1048576 bytes"},
		{"too long a line", strings.Repeat("x", maxSize+1), "f: more than 1048576 bytes"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			if f, err := Parse(strings.NewReader(tc.text), "f"); err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("%v, %v; want %q", f, err, tc.want)
			}
		})
	}
	if _, err := Parse(strings.NewReader(strings.Repeat("x", maxSize-1)), "f"); err != nil {
		t.Errorf("the longest line: %v", err)
	}
}

// TestRead has files that others could write, as root and as somebody else reads them.
func TestRead(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: files of other users")
	}
	for _, tc := range []struct {
		rule      string
		dir, file os.FileMode
		dirOwner  int
		owner     int
		want      string // "" is none
	}{
		{"root's", 0o755, 0o644, 0, 0, ""},
		{"for root's eyes", 0o700, 0o600, 0, 0, ""},
		{"another's file", 0o755, 0o644, 0, 2000, "the file belongs to user 2000"},
		{"a file for the group", 0o755, 0o664, 0, 0, "others may write the file, mode 0664"},
		{"a file for all", 0o755, 0o646, 0, 0, "others may write the file, mode 0646"},
		{"another's directory", 0o755, 0o644, 2000, 0, "the directory belongs to user 2000"},
		{"a directory for all", 0o777 | os.ModeSticky, 0o644, 0, 0, "others may write the directory, mode 0777"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			path := filepath.Join(dir, "f")
			err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(path, []byte("-U\n"), 0o600), os.Chmod(path, tc.file), os.Chmod(dir, tc.dir),
				os.Chown(path, tc.owner, tc.owner), os.Chown(dir, tc.dirOwner, tc.dirOwner))
			if err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(t.TempDir(), "l")
			if err := os.Symlink(path, link); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{path, link} {
				f, err := Read(name)
				switch {
				case tc.want == "" && (err != nil || len(f.Flags) != 1):
					t.Errorf("%s: %v, %v", name, f, err)
				case tc.want != "" && (!errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), tc.want)):
					t.Errorf("%s: %v, want %q", name, err, tc.want)
				}
			}
			if f, err := open(path, false); err != nil {
				t.Errorf("who is not root may read what he can: %v", err)
			} else {
				f.Close()
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{fifo: "no regular file", dir: "no regular file", filepath.Join(dir, "none"): "no such file", "": "has a name"} {
		if f, err := Read(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", path, f, err, want)
		}
	}
}

// FuzzParse has any bytes be a file: each line is told once, with its number, or the whole is refused.
func FuzzParse(f *testing.F) {
	f.Add([]byte("# c\n-i lo\n--app=a b\n\ntcp\n-4"))
	f.Add([]byte("-U\r\n--\r\n-x"))
	f.Add([]byte("\ufeff- \x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := Parse(strings.NewReader(string(b)), "f")
		if err != nil {
			return
		}
		lines := strings.Split(string(b), "\n")
		last := 0
		for _, l := range append(file.Flags, file.Expression...) {
			if l.Number <= last || l.Number > len(lines) {
				t.Fatalf("line %d behind %d of %d", l.Number, last, len(lines))
			}
			last = l.Number
			if !strings.Contains(lines[l.Number-1], l.Text) || l.Text != strings.TrimSpace(l.Text) || l.Text == "" || l.Text[0] == '#' {
				t.Errorf("line %d is %q, told as %q", l.Number, lines[l.Number-1], l.Text)
			}
		}
		for _, l := range file.Flags {
			flag, value := l.Cut()
			if len(flag) < 2 || flag[0] != '-' || !strings.HasPrefix(l.Text, flag) || !strings.HasSuffix(l.Text, value) {
				t.Errorf("%q is cut into %q and %q", l.Text, flag, value)
			}
		}
	})
}
