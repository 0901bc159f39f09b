// SPDX-License-Identifier: Apache-2.0

// Package config reads files of flags: one flag a line, and behind them the expression.
//
//	# what stands on a line behind a #, as its first character, is a comment
//	-i wlan0
//	--app com.example
//	--not-uid=0
//	-z /data/adb/droidtap/pack.sh -9
//	tcp and
//	not port 22
//
// The first word of a line that begins with a dash is the flag, and all that stands behind it is the flag's value as it is,
// blanks and quotes in it, too; only those at the ends of a line do not count. The first line without a dash begins the
// expression, which goes on to the end of the file. A line "--" begins it as well, where its first word has a dash.
package config

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxSize is the largest file in bytes: none that somebody writes comes near, and a wrong one is not read to its end.
const maxSize = 1 << 20

// ErrUntrusted is wrapped where somebody other than root could have written what root reads.
var ErrUntrusted = errors.New("not root's alone")

// Line is one line without the blanks at its ends.
type Line struct {
	Number int // from 1 on
	Text   string
}

// File is what a file of flags says.
type File struct {
	Path       string
	Flags      []Line // that begin with a dash
	Expression []Line
	Verbatim   bool // "--" began the expression: no word of it is a flag, whatever it looks like
}

// Errorf makes an error of a line: "FILE:LINE: ...".
func (f *File) Errorf(l Line, format string, args ...any) error {
	return fmt.Errorf("%s:%d: %w", f.Path, l.Number, fmt.Errorf(format, args...))
}

// Parse reads a file whose errors call it path.
func Parse(r io.Reader, path string) (*File, error) {
	f := &File{Path: path}
	begun := false
	lines := bufio.NewScanner(io.LimitReader(r, maxSize+1))
	lines.Buffer(nil, maxSize+2)
	read := 0
	for n := 1; lines.Scan(); n++ {
		if read += len(lines.Bytes()) + 1; read > maxSize {
			return nil, fmt.Errorf("%s: more than %d bytes are no file of flags", path, maxSize)
		}
		l := Line{n, lines.Text()}
		if n == 1 {
			l.Text = strings.TrimPrefix(l.Text, "\ufeff") // of Windows' editors
		}
		l.Text = strings.TrimSpace(l.Text)
		switch {
		case strings.ContainsRune(l.Text, 0):
			return nil, f.Errorf(l, "a line has no NUL: this is no file of flags")
		case l.Text == "" || l.Text[0] == '#':
		case begun:
			f.Expression = append(f.Expression, l)
		case l.Text == "--":
			begun, f.Verbatim = true, true
		case isFlag(l.Text):
			f.Flags = append(f.Flags, l)
		default:
			begun = true
			f.Expression = append(f.Expression, l)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return f, nil
}

// isFlag tells a flag from an expression: a lone dash is an operator, of a line that went wrong.
func isFlag(text string) bool {
	return len(text) > 1 && text[0] == '-' && text[1] != ' ' && text[1] != '\t'
}

// Cut takes a flag apart: --name and its value, -x and its value, or a cluster of letters and the value of the last one.
// A long flag keeps a value that stands behind "=". value is "" where there is nothing.
func (l Line) Cut() (flag, value string) {
	i := strings.IndexAny(l.Text, " \t")
	if equals := strings.IndexByte(l.Text, '='); i < 0 || strings.HasPrefix(l.Text, "--") && equals >= 0 && equals < i {
		return l.Text, ""
	}
	return l.Text[:i], strings.TrimLeft(l.Text[i:], " \t")
}

// Read reads the file of flags at path. For root it has to be root's and writable by nobody else, as the directory that it
// lies in: who writes it says what root does. Else the error wraps ErrUntrusted.
func Read(path string) (*File, error) {
	open, err := open(path, os.Geteuid() == 0)
	if err != nil {
		return nil, err
	}
	defer open.Close()
	return Parse(open, path)
}

func open(path string, root bool) (*os.File, error) {
	if path == "" {
		return nil, errors.New("a file of flags has a name")
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, err
	}
	dir, err := unix.Open(filepath.Dir(resolved), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Dir(resolved), Err: err}
	}
	defer unix.Close(dir)
	// A FIFO that nobody writes must not hang us.
	fd, err := unix.Openat(dir, filepath.Base(resolved), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if err := trusted(dir, fd, root); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// trusted checks an open file and the directory that it was opened in.
func trusted(dir, fd int, root bool) error {
	var file, in unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &file), unix.Fstat(dir, &in)); err != nil {
		return err
	}
	switch {
	case file.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("this is no regular file")
	case !root:
		return nil
	case file.Uid != 0:
		return fmt.Errorf("%w: the file belongs to user %d, who could change what root does (chown 0)", ErrUntrusted, file.Uid)
	case file.Mode&0o022 != 0:
		return fmt.Errorf("%w: others may write the file, mode %#o, and change what root does (chmod go-w)", ErrUntrusted, file.Mode&0o777)
	case in.Uid != 0:
		return fmt.Errorf("%w: the directory belongs to user %d, who could put another file there", ErrUntrusted, in.Uid)
	case in.Mode&0o022 != 0:
		return fmt.Errorf("%w: others may write the directory, mode %#o, and put another file there", ErrUntrusted, in.Mode&0o777)
	}
	return nil
}
