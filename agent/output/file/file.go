// SPDX-License-Identifier: Apache-2.0

// Package file is the output plugin that writes a capture to a file of the user's choice, a file it names itself, or
// standard output.
//
// The agent runs as root in directories that belong to others, so what it opens is never reached through a symbolic
// link in the last place, never shared with another name, and ends up with the owner of its directory.
package file

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

func init() {
	plugin.RegisterOutput(plugin.Output{
		Name:     "file",
		Usage:    "pcapng files, or standard output",
		Flags:    flags(),
		Commands: []*cli.Command{repairCommand()},
		New:      func(c *cli.Context) (plugin.Opener, error) { return open(c) },
	})
}

// opener opens files by its flags. Those of the user that were not given are zero. The writer's goroutine owns it.
type opener struct {
	write string // -w
	dir   string // --output-dir
	rotation
	making
	room     *room
	then     *commands                             // -z; nil: none
	squeeze  func(to, text []byte) ([]byte, error) // nil: files are not compressed
	duration time.Duration                         // of the whole capture; 0: no limit
	most     uint64                                // packets of it; 0: no limit
	ext      string                                // of generated names

	tmp    string // the directory where adb puts things
	stdout *os.File
	now    func() time.Time
	boot   func() time.Duration

	opened   int           // files
	latest   *regular      // of those; nil: there is none
	number   int           // of the last one; see turn
	slice    time.Time     // as in turn
	until    time.Duration // when the file or slice is over, by the boot clock; 0: not known yet, or never
	stem     string        // of the last generated name, and the number behind it
	suffix   int
	streams  bool          // what -w names is no regular file
	unmarked bool          // it was said that files have no mark
	repairs  chan struct{} // closed when what was left is repaired; nil: nobody does that
}

func (o *opener) clock() time.Time {
	if o.now == nil {
		return time.Now()
	}
	return o.now()
}

// Next opens the output. A name that cannot be used is a usage error, and a first file without rotation overwrites what is there.
func (o *opener) Next(label string) (plugin.File, error) {
	if o.write == "-" {
		f, err := standardOutput(o.stdout)
		return o.wrap(f), err
	}
	if o.latest != nil {
		o.latest.ended.Store(true) // it may be removed from here on
	}
	t := o.next()
	dir, base, err := o.place(label, t)
	if err != nil {
		return nil, err
	}
	if err := o.room.begin(dir); err != nil {
		dir.close()
		return nil, err
	}
	f, err := o.make(dir, base, t)
	for full(err) && o.room.dropAny(dir, id{}) {
		f, err = o.make(dir, base, t)
	}
	if err != nil {
		dir.close()
		return nil, err
	}
	if !o.slices || t.number == 0 {
		o.until = 0
	}
	o.number, o.slice = t.number, t.slice
	if r, ok := f.(*regular); ok {
		o.own(r)
	} else {
		o.streams = true
	}
	o.opened++
	return o.wrap(f), nil
}

// wrap has f compressed if that is wanted.
func (o *opener) wrap(f plugin.File) plugin.File {
	if o.squeeze == nil || f == nil {
		return f
	}
	c := &compressed{File: f, squeeze: o.squeeze}
	if s, ok := f.(plugin.Syncer); ok {
		return compressedFile{c, s}
	}
	return c
}

// own gives a file what the opener knows, and has what an earlier capture left beside the first one repaired.
func (o *opener) own(r *regular) {
	r.room, o.latest = o.room, r
	if o.then != nil {
		r.then = o.then.run
	}
	o.room.began(entry{name: r.base, id: r.id})
	if !r.marked && !o.unmarked {
		o.unmarked = true
		level := slog.LevelInfo
		if o.room.removesAny() {
			level = slog.LevelWarn
		}
		slog.Log(context.Background(), level, "this file system or user has no marks for the agent's own files: those of other runs are neither removed for room nor repaired",
			"path", r.Name())
	}
	if o.opened == 0 {
		if left, err := openDirectory(r.dir.path, 0); err == nil {
			o.repairs = make(chan struct{})
			go func() {
				defer close(o.repairs)
				defer left.close()
				repairLeft(left)
			}()
		}
	}
}

// Stdout tells whether the output is standard output.
func (o *opener) Stdout() bool { return o.write == "-" }

// place opens the directory of a file and returns it with the file's name in it. The name of a generated one is a stem.
func (o *opener) place(label string, t turn) (dir *directory, base string, err error) {
	if o.write == "" {
		dir, err = o.directory()
		return dir, sanitise(label) + "-" + t.now.Format("20060102-150405"), err
	}
	path := o.write
	if !o.streams {
		path = o.path(t)
	}
	parent, base := filepath.Split(path)
	if base == "" || base == "." || base == ".." {
		return nil, "", isDirectory(path)
	}
	dir, err = openDirectory(filepath.Clean(parent), 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = plugin.Usagef("directory %s does not exist: create it or choose another with -w", filepath.Clean(parent))
	case errors.Is(err, unix.ENOTDIR):
		err = plugin.Usagef("%s is not a directory: choose another with -w", filepath.Clean(parent))
	case err == nil:
		dir.prefix = parent
	}
	return dir, base, err
}

// make makes the file of a turn. On success it takes dir over.
func (o *opener) make(dir *directory, base string, t turn) (plugin.File, error) {
	var r *regular
	var err error
	switch {
	case o.write == "":
		r, err = o.generate(dir, base)
	case o.streams, o.opened == 0 && !o.rotates():
		r, err = dir.create(base, dir.prefix+base, o.making)
		if errors.Is(err, unix.EEXIST) {
			return dir.overwrite(base, dir.prefix+base)
		}
	case !o.announced(t):
		suffix, _ := suffixOf(base)
		digits := strconv.Itoa(t.number)
		r, _, err = dir.createFree(strings.TrimSuffix(base, digits+suffix), suffix, "", t.number, o.making)
	default:
		r, err = o.replace(dir, base, t)
	}
	if err != nil {
		return nil, err // not a nil *regular
	}
	return r, nil
}

// generate makes a file whose name nobody has given. Of one second's files the later one has the higher number, also where an
// earlier one is gone.
func (o *opener) generate(dir *directory, stem string) (*regular, error) {
	from := 0
	if o.stem == stem {
		from = o.suffix + 1
	}
	r, number, err := dir.createFree(stem, o.ext, "-", from, o.making)
	if err == nil {
		o.stem, o.suffix = stem, number
	}
	return r, err
}

// replace makes a file anew that may be there from before. Somebody may still read that one, so it is not emptied. One that was
// written later than now stays: the clock was set back, and its name is not meant to come again yet.
func (o *opener) replace(dir *directory, base string, t turn) (*regular, error) {
	path := dir.prefix + base
	r, err := dir.create(base, path, o.making)
	if !errors.Is(err, unix.EEXIST) {
		return r, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &os.PathError{Op: "replace", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, plugin.Usagef("%s is no regular file, and there are to be several files: choose another name with -w", path)
	}
	old := entryOf(base, &st)
	if (o.slices || o.dumpcap) && old.changed > t.now.UnixNano() {
		stem, extension := splitName(base)
		r, _, err := dir.createFree(stem, extension, "-", 1, o.making)
		if err == nil {
			slog.Warn("the clock was set back: the earlier file of that name stays", "path", path, "new", r.Name())
		}
		return r, err
	}
	if o.opened == 0 { // later it may be an own one that is about to be closed
		if err := dir.unused(base, path); err != nil {
			return nil, err
		}
	}
	if err := dir.unlink(old, true); err != nil {
		return nil, &os.PathError{Op: "replace", Path: path, Err: err}
	}
	return dir.create(base, path, o.making)
}

// directory opens the directory of generated files, and makes it if need be.
func (o *opener) directory() (*directory, error) {
	if o.dir != "" {
		dir, err := openOrMake(filepath.Clean(o.dir), 0)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil, plugin.Usagef("directory %s does not exist: create it or choose another with --output-dir",
				filepath.Dir(filepath.Clean(o.dir)))
		case errors.Is(err, unix.ENOTDIR):
			return nil, plugin.Usagef("%s is not a directory: choose another with --output-dir", o.dir)
		}
		return dir, err
	}
	if st, err := os.Stat(o.tmp); err != nil || !st.IsDir() {
		return openDirectory(".", 0)
	}
	// Whoever may write here could lead root elsewhere with a link, so a link is no directory.
	// Not "agent": that is where adb push puts the program itself.
	path := filepath.Join(o.tmp, "droidtap")
	dir, err := openOrMake(path, unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, plugin.Usagef("%s is not a directory: choose another with --output-dir", path)
	}
	return dir, err
}

// sanitise makes a label fit for a file name that needs no quoting: an interface name may hold any byte but '/', ':'
// and white space.
func sanitise(label string) string {
	const longest = 100
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("._-+,@", r):
			return r
		}
		return '_'
	}, label)
	name = name[:min(len(name), longest)]
	if name == "" {
		return "capture"
	}
	if name[0] == '-' || name[0] == '.' {
		return "_" + name[1:]
	}
	return name
}
