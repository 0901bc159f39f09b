// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// tree makes a directory to test in: name is content, "x/" a directory, and a value of "-> y" a symbolic link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		content, path := files[name], filepath.Join(root, name)
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.Mkdir(path, 0o755)
		} else {
			// Twice, for a umask takes from the first.
			err = errors.Join(os.WriteFile(path, []byte(content), 0o644), os.Chmod(path, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// fill writes text to the next output of o, closes it and returns its name.
func fill(t *testing.T, o *opener, label, text string) (string, error) {
	t.Helper()
	f, err := o.Next(label)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(f, text); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	return f.Name(), nil
}

// checkUsage checks that err is a usage error of one line that says want.
func checkUsage(t *testing.T, err error, want string) {
	t.Helper()
	if !plugin.IsUsage(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v, want a usage error with %q", err, want)
	}
}

func TestFlags(t *testing.T) {
	tests := []struct {
		name, argv string
		want       opener
		err        string
	}{
		{name: "nothing", argv: "agent"},
		{name: "a file", argv: "agent -w x.pcapng", want: opener{write: "x.pcapng"}},
		{name: "the long form", argv: "agent --write x.pcapng", want: opener{write: "x.pcapng"}},
		{name: "standard output", argv: "agent -w -", want: opener{write: "-"}},
		{name: "a directory", argv: "agent --output-dir d", want: opener{dir: "d"}},
		{name: "a file without a name", argv: "agent --write=", err: "needs the name"},
		{name: "a directory without a name", argv: "agent --output-dir=", err: "needs the name"},
		{name: "both", argv: "agent -w x --output-dir d", err: "use one of them"},
	}
	var output plugin.Output
	for _, o := range plugin.Outputs() {
		if o.Name == "file" {
			output = o
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got plugin.Opener
			app := &cli.App{Flags: output.Flags, Action: func(c *cli.Context) (err error) {
				got, err = output.New(c)
				return err
			}}
			err := app.Run(strings.Fields(tt.argv))
			if tt.err != "" {
				checkUsage(t, err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			o := got.(*opener)
			if o.write != tt.want.write || o.dir != tt.want.dir {
				t.Errorf("-w %q and --output-dir %q, want %q and %q", o.write, o.dir, tt.want.write, tt.want.dir)
			}
		})
	}
}

func TestNamed(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		write string
		mode  os.FileMode
		usage string
		err   error
	}{
		{name: "a new file is the owner's alone", write: "x", mode: 0o600},
		{name: "an existing file is emptied and keeps its mode", files: map[string]string{"x": "longer than before"}, write: "x", mode: 0o644},
		{name: "through a linked directory", files: map[string]string{"d/": "", "l": "-> d"}, write: "l/x", mode: 0o600},
		{name: "a symbolic link", files: map[string]string{"y": "", "x": "-> y"}, write: "x", usage: "x is a symbolic link, which -w does not follow"},
		{name: "a symbolic link to nowhere", files: map[string]string{"x": "-> y"}, write: "x", usage: "is a symbolic link"},
		{name: "a missing directory", write: "d/x", usage: "/d does not exist: create it or choose another with -w"},
		{name: "a file as directory", files: map[string]string{"d": ""}, write: "d/x", usage: "/d is not a directory"},
		{name: "a directory", files: map[string]string{"d/": ""}, write: "d", usage: "/d is a directory"},
		{name: "a directory with its slash", files: map[string]string{"d/": ""}, write: "d/", usage: "/d/ is a directory"},
		{name: "a directory by its dots", files: map[string]string{"d/": ""}, write: "d/..", usage: "/d/.. is a directory"},
		{name: "a name too long", write: strings.Repeat("x", 256), err: syscall.ENAMETOOLONG},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, tt.files)
			path := root + "/" + tt.write
			name, err := fill(t, &opener{write: path}, "any", "new")
			if tt.usage != "" {
				checkUsage(t, err, tt.usage)
				return
			}
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			if name != path || string(got) != "new" || st.Mode() != tt.mode {
				t.Errorf("file %s holds %q with mode %v, want %s, mode %v", name, got, st.Mode(), path, tt.mode)
			}
		})
	}
}

func TestRefusedFilesAreUntouched(t *testing.T) {
	tests := []struct {
		name  string
		make  func(path, target string) error
		usage string
	}{
		{"symbolic link", func(path, target string) error { return os.Symlink(target, path) }, "is a symbolic link"},
		{"hard link", func(path, target string) error { return os.Link(target, path) }, "has 2 names (hard links)"},
		{"socket", func(path, _ string) error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		}, "is a socket"},
		{"FIFO without a reader", func(path, _ string) error { return unix.Mkfifo(path, 0o600) }, "start its reader first"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// A whole path could be too long for a socket.
			t.Chdir(tree(t, map[string]string{"target": "precious"}))
			if err := tt.make("x", "target"); err != nil {
				t.Fatal(err)
			}
			_, err := fill(t, &opener{write: "x"}, "any", "new")
			checkUsage(t, err, tt.usage)
			if got, err := os.ReadFile("target"); err != nil || string(got) != "precious" {
				t.Errorf("the target holds %q, %v", got, err)
			}
		})
	}
}

func TestRelativeName(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"x", "./x"} {
		if got, err := fill(t, &opener{write: name}, "any", ""); err != nil || got != name {
			t.Errorf("-w %s opened %q, %v", name, got, err)
		}
	}
}

func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := (&opener{write: path}).Next("any")
	if err != nil {
		t.Fatal(err)
	}
	checkStream(t, f)
	// More than a pipe holds, so the write has to wait for the reader.
	data := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	written := make(chan error, 1)
	go func() {
		_, err := f.Write(data)
		written <- errors.Join(err, f.Close())
	}()
	got, err := io.ReadAll(r)
	if err := errors.Join(err, <-written); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d of %d bytes, %v", len(got), len(data), err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// checkStream checks that pcapng.Writer will not try to cut f back.
func checkStream(t *testing.T, f plugin.File) {
	t.Helper()
	if _, ok := f.(interface{ Truncate(int64) error }); ok {
		t.Errorf("%s can be truncated", f.Name())
	}
}

func TestDevices(t *testing.T) {
	f, err := (&opener{write: "/dev/null"}).Next("any")
	if err != nil {
		t.Fatal(err)
	}
	checkStream(t, f)
	if _, err := io.WriteString(f, "x"); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if link, err := os.Readlink("/dev/ptmx"); err == nil {
		t.Skipf("/dev/ptmx is a link to %s here", link)
	}
	_, err = (&opener{write: "/dev/ptmx"}).Next("any")
	checkUsage(t, err, "/dev/ptmx is a terminal")
}

func TestBlockDeviceIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "loop")
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))); err != nil {
		t.Skip("making a block device node needs root:", err)
	}
	f, err := (&opener{write: path}).Next("any")
	if err == nil {
		t.Fatalf("opened %s", f.Name())
	}
}

func TestStandardOutput(t *testing.T) {
	t.Run("a terminal is refused", func(t *testing.T) {
		tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
		if err != nil {
			t.Skip("no terminal to be had:", err)
		}
		defer tty.Close()
		_, err = (&opener{write: "-", stdout: tty}).Next("any")
		checkUsage(t, err, "redirect it, or use -w FILE")
	})
	t.Run("a file keeps what it had", func(t *testing.T) {
		stdout, err := os.Create(filepath.Join(t.TempDir(), "stdout"))
		if err != nil {
			t.Fatal(err)
		}
		defer stdout.Close()
		if _, err := io.WriteString(stdout, "old "); err != nil {
			t.Fatal(err)
		}
		f, err := (&opener{write: "-", stdout: stdout}).Next("any")
		if err != nil {
			t.Fatal(err)
		}
		checkStream(t, f)
		if _, err := io.WriteString(f, "new"); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(stdout.Name()); err != nil || string(got) != "old new" || f.Name() != "standard output" {
			t.Errorf("%s holds %q, %v", f.Name(), got, err)
		}
	})
	t.Run("a pipe without a reader is an error", func(t *testing.T) {
		r, stdout, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdout.Close()
		f, err := (&opener{write: "-", stdout: stdout}).Next("any")
		if err != nil {
			t.Fatal(err)
		}
		checkStream(t, f)
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, "x"); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("error %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}
