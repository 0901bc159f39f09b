// SPDX-License-Identifier: Apache-2.0

// Package file is the output plugin that writes a capture to a file of the user's choice, a file it names itself, or
// standard output.
//
// The agent runs as root in directories that belong to others, so what it opens is never reached through a symbolic
// link in the last place, never shared with another name, and ends up with the owner of its directory.
package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

func init() {
	plugin.RegisterOutput(plugin.Output{
		Name:  "file",
		Usage: "a pcapng file, or standard output",
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "write", Aliases: []string{"w"}, Category: plugin.GroupOutput, TakesFile: true,
				Usage: "write to `FILE`, which is overwritten; - is standard output " +
					"(default: a new file <interface>-<YYYYmmdd-HHMMSS>.pcapng in --output-dir)",
			},
			&cli.StringFlag{
				Name: "output-dir", Category: plugin.GroupOutput,
				Usage: "without -w, make the file in `DIR`, which is made if need be (default: on a phone " +
					"/data/local/tmp/droidtap, elsewhere the working directory)",
			},
		},
		New: open,
	})
}

// opener opens files by its two flags. Either may be empty: not given.
type opener struct {
	write string // -w
	dir   string // --output-dir

	tmp    string // the directory where adb puts things
	stdout *os.File
	now    func() time.Time
}

func open(c *cli.Context) (plugin.Opener, error) {
	o := &opener{
		write:  c.String("write"),
		dir:    c.String("output-dir"),
		tmp:    "/data/local/tmp",
		stdout: os.Stdout,
		now:    time.Now,
	}
	switch {
	case c.IsSet("write") && o.write == "":
		return nil, plugin.Usagef("-w needs the name of a file, or - for standard output")
	case c.IsSet("output-dir") && o.dir == "":
		return nil, plugin.Usagef("--output-dir needs the name of a directory")
	case o.write != "" && o.dir != "":
		return nil, plugin.Usagef("-w names the file, so --output-dir has no effect: use one of them")
	}
	return o, nil
}

// Next opens the output. A name that cannot be used is a usage error. Each call with -w FILE overwrites it.
func (o *opener) Next(label string) (plugin.File, error) {
	switch o.write {
	case "-":
		return standardOutput(o.stdout)
	case "":
		return o.generated(label)
	default:
		return named(o.write)
	}
}

// Stdout tells whether the output is standard output.
func (o *opener) Stdout() bool { return o.write == "-" }

// named creates or overwrites the file of -w.
func named(path string) (plugin.File, error) {
	parent, base := filepath.Split(path)
	if base == "" || base == "." || base == ".." {
		return nil, isDirectory(path)
	}
	dir, err := openDirectory(filepath.Clean(parent), 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, plugin.Usagef("directory %s does not exist: create it or choose another with -w", filepath.Clean(parent))
	case errors.Is(err, unix.ENOTDIR):
		return nil, plugin.Usagef("%s is not a directory: choose another with -w", filepath.Clean(parent))
	case err != nil:
		return nil, err
	}
	defer dir.close()
	f, err := dir.create(base, path)
	if errors.Is(err, unix.EEXIST) {
		return dir.overwrite(base, path)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// generated creates a file named after label and the local time, and numbered if that name is taken.
func (o *opener) generated(label string) (plugin.File, error) {
	dir, err := o.directory()
	if err != nil {
		return nil, err
	}
	defer dir.close()
	stem := sanitise(label) + "-" + o.now().Format("20060102-150405")
	for i := range 1000 {
		base := stem + ".pcapng"
		if i > 0 {
			base = fmt.Sprintf("%s-%d.pcapng", stem, i)
		}
		f, err := dir.create(base, filepath.Join(dir.path, base))
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("create %s: every number up to 999 is taken", filepath.Join(dir.path, stem+".pcapng"))
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
