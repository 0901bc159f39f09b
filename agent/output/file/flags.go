// SPDX-License-Identifier: Apache-2.0

package file

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"droidtap/agent/boottime"
	"droidtap/agent/plugin"
)

func flags() []cli.Flag {
	text := func(name, alias, usage string) cli.Flag {
		f := &cli.StringFlag{Name: name, Category: plugin.GroupOutput, Usage: usage}
		if alias != "" {
			f.Aliases = []string{alias}
		}
		return f
	}
	return []cli.Flag{
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
		text("C", "", "begin another file when one has `SIZE`, before it is compressed: FILE, FILE1, FILE2 and so on; a number is one of millions of bytes, 10k, 10m and 10g are KiB, MiB and GiB"),
		text("G", "", "begin another file every `SECONDS`, counted from its first packet, sleep included; FILE has the time as strftime(3) writes it (%Y%m%d-%H%M%S), and -C numbers files of the same time"),
		text("W", "", "with -C, use `N` names again and again; with -G alone, end after that many files; without -w, keep the newest N of this capture"),
		text("z", "", "run `COMMAND` FILE by the shell for each file that is closed, as root; it is not waited for"),
		&cli.StringSliceFlag{
			Name: "autostop", Aliases: []string{"a"}, Category: plugin.GroupOutput,
			Usage: "stop at `CONDITION` duration:SECONDS, filesize:KB (of 1,000 bytes), packets:N or files:N; with several files, filesize ends each of them",
		},
		&cli.StringSliceFlag{
			Name: "ring-buffer", Aliases: []string{"b"}, Category: plugin.GroupOutput,
			Usage: "begin another file at `CONDITION` duration:SECONDS, filesize:KB, packets:N or interval:SECONDS (where the clock has a multiple of it), and keep the newest files:N of this capture; FILE.pcapng becomes FILE_00001_<YYYYmmddHHMMSS>.pcapng",
		},
		text("disk-quota", "", "remove the oldest captures in the directory, of any run, where all would have more than `SIZE` (as -C has it); where that does not do, a capture in one file ends and others wait"),
		text("min-free", "", "the same where less than `SIZE` of the file system would be free"),
		text("file-mode", "", "give new files the permissions `OCTAL` (default 0600)"),
		text("relinquish-privileges", "Z", "give new files to `USER` shell, system, root or a uid (default: the owner of their directory)"),
		text("compress", "", "compress by `zstd|gzip|none` (default: as the name ends, .zst or .gz), so that the file can be read while it grows"),
	}
}

func open(c *cli.Context) (*opener, error) {
	o := &opener{
		write:  c.String("write"),
		dir:    c.String("output-dir"),
		tmp:    "/data/local/tmp",
		stdout: os.Stdout,
		now:    time.Now,
		boot:   boottime.Now,
		ext:    ".pcapng",
	}
	if c.String("format") == "pcap" || c.Bool("P") {
		o.ext = ".pcap"
	}
	switch {
	case c.IsSet("write") && o.write == "":
		return nil, plugin.Usagef("-w needs the name of a file, or - for standard output")
	case c.IsSet("output-dir") && o.dir == "":
		return nil, plugin.Usagef("--output-dir needs the name of a directory")
	case o.write != "" && o.dir != "":
		return nil, plugin.Usagef("-w names the file, so --output-dir has no effect: use one of them")
	}
	for _, step := range []func(*cli.Context) error{o.tcpdumps, o.dumpcaps, o.rooms, o.makings, o.compresses} {
		if err := step(c); err != nil {
			return nil, err
		}
	}
	if o.write == "-" && (o.rotates() || o.room != nil || o.last > 0 || o.then != nil) {
		return nil, plugin.Usagef("-w - is standard output, and -C, -G, -W, -z, -b, --disk-quota and --min-free are about files")
	}
	return o, nil
}

// tcpdumps reads the options of tcpdump's.
func (o *opener) tcpdumps(c *cli.Context) (err error) {
	if c.IsSet("C") {
		if o.size, err = size("-C", c.String("C")); err != nil {
			return err
		}
	}
	if c.IsSet("G") {
		if o.span, err = seconds("-G", c.String("G")); err != nil {
			return err
		}
		o.slices = true
		if o.write != "" && o.write != "-" && !dated(o.write) {
			return plugin.Usagef("-G begins a file every %s seconds, and all would be %s: put the time into the name (%s)",
				c.String("G"), o.write, "-w NAME-%Y%m%d-%H%M%S.pcapng")
		}
	}
	if c.IsSet("W") {
		n, err := count("-W", c.String("W"))
		switch {
		case err != nil:
			return err
		case !o.rotates():
			return plugin.Usagef("-W %d is how many files there are, so it needs -C or -G", n)
		case o.write == "":
			o.limit().ring = n
		case o.size > 0:
			o.cyclic = n
		default:
			o.last = n
		}
	}
	if c.IsSet("z") {
		if strings.TrimSpace(c.String("z")) == "" {
			return plugin.Usagef("-z needs a command")
		}
		o.then = &commands{text: c.String("z")}
	}
	return nil
}

// limit returns the room of the files, without a limit yet.
func (o *opener) limit() *room {
	if o.room == nil {
		o.room = &room{}
	}
	return o.room
}

// dumpcaps reads the options of dumpcap's. tcpdump's have been read.
func (o *opener) dumpcaps(c *cli.Context) error {
	ring := c.StringSlice("ring-buffer")
	if len(ring) > 0 {
		if o.rotates() {
			return plugin.Usagef("-b says the same as -C, -G and -W, with other names: use one of them")
		}
		o.dumpcap = o.write != ""
		for _, text := range ring {
			if err := o.ringCondition(text); err != nil {
				return err
			}
		}
	}
	several := len(ring) > 0 || o.rotates()
	for _, text := range c.StringSlice("autostop") {
		if err := o.stopCondition(text, several); err != nil {
			return err
		}
	}
	if len(ring) > 0 && !o.rotates() {
		return plugin.Usagef("-b says how many files are kept, but not when one is full: add filesize, duration, packets or interval")
	}
	if o.last > 0 && !o.rotates() {
		return plugin.Usagef("-a files:%d is how many files there are, so it needs -b, -C or -G", o.last)
	}
	return nil
}

// ringCondition reads one of -b.
func (o *opener) ringCondition(text string) (err error) {
	name, value, _ := strings.Cut(text, ":")
	what := "-b " + name
	n := 0
	switch name {
	case "duration":
		o.span, err = seconds(what, value)
	case "interval":
		o.interval, err = seconds(what, value)
	case "filesize":
		n, err = count(what, value)
		o.size = int64(n) * 1000
	case "packets":
		n, err = count(what, value)
		o.packets = uint64(n)
	case "files":
		n, err = count(what, value)
		o.limit().ring = n
	default:
		err = plugin.Usagef("-b %s: a condition is duration:SECONDS, filesize:KB, packets:N, interval:SECONDS or files:N", text)
	}
	return err
}

// stopCondition reads one of -a. Of several files, filesize ends each and not the capture, also where -b has only files.
func (o *opener) stopCondition(text string, several bool) (err error) {
	name, value, _ := strings.Cut(text, ":")
	what := "-a " + name
	n := 0
	switch name {
	case "duration":
		o.duration, err = seconds(what, value)
	case "filesize":
		n, err = count(what, value)
		o.size, o.single = int64(n)*1000, !several
	case "packets":
		n, err = count(what, value)
		o.most = uint64(n)
	case "files":
		o.last, err = count(what, value)
	default:
		err = plugin.Usagef("-a %s: a condition is duration:SECONDS, filesize:KB, packets:N or files:N", text)
	}
	return err
}

// rooms reads how much room the files may take.
func (o *opener) rooms(c *cli.Context) (err error) {
	if c.IsSet("disk-quota") {
		if o.limit().quota, err = size("--disk-quota", c.String("disk-quota")); err != nil {
			return err
		}
		if o.size >= o.room.quota {
			return plugin.Usagef("--disk-quota %s has no room for one file of %d bytes and others: use a larger quota or smaller files",
				c.String("disk-quota"), o.size)
		}
	}
	if c.IsSet("min-free") {
		o.limit().minFree, err = size("--min-free", c.String("min-free"))
	}
	return err
}

// users are the names that -Z knows. A phone has no list of them.
var users = map[string]int{"root": 0, "system": 1000, "shell": 2000}

// makings reads what new files are like.
func (o *opener) makings(c *cli.Context) error {
	if c.IsSet("file-mode") {
		mode, err := strconv.ParseUint(c.String("file-mode"), 8, 32)
		if err != nil || mode == 0 || mode > 0o777 {
			return plugin.Usagef("--file-mode %s: permissions are octal, 1 to 777 (0644: all may read)", c.String("file-mode"))
		}
		o.mode = uint32(mode)
	}
	if c.IsSet("relinquish-privileges") {
		name := c.String("relinquish-privileges")
		uid, known := users[name]
		if !known {
			n, err := strconv.ParseUint(name, 10, 32)
			if err != nil || n >= math.MaxUint32 { // the last one means none (chown(2))
				return plugin.Usagef("-Z %s: a user is shell, system, root or a uid", name)
			}
			uid = int(n)
		}
		o.owner = &uid
	}
	return nil
}

// compresses reads how files are compressed.
func (o *opener) compresses(c *cli.Context) (err error) {
	suffix, method := "", compressNone
	if o.write != "-" {
		suffix, method = suffixOf(o.write)
	}
	if c.IsSet("compress") {
		asked := c.String("compress")
		if asked != compressNone && suffixes[asked] == "" {
			return plugin.Usagef("--compress %s: it is zstd, gzip or none", asked)
		}
		if suffix != "" && asked != compressNone && asked != method {
			return plugin.Usagef("--compress %s, and %s ends as files of %s do: use one of them", asked, filepath.Base(o.write), method)
		}
		method = asked
	}
	o.ext += suffixes[method]
	o.squeeze, err = newSqueezer(method)
	return err
}

// size reads a number of bytes as tcpdump's -C has it.
func size(option, text string) (int64, error) {
	unit := int64(1_000_000)
	digits := text
	if n := len(text); n > 0 {
		if at := strings.IndexByte("kmg", text[n-1]|0x20); at >= 0 {
			unit, digits = 1<<(10*(at+1)), text[:n-1]
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n == 0 || int64(n) > math.MaxInt64/unit {
		return 0, plugin.Usagef("%s %s: a size is a number of millions of bytes, or one with k, m or g behind it", option, text)
	}
	return int64(n) * unit, nil
}

// seconds reads a time above 0.
func seconds(option, text string) (time.Duration, error) {
	const most = 1e9 // 31 years
	n, err := strconv.ParseFloat(text, 64)
	if d := time.Duration(n * float64(time.Second)); err == nil && n > 0 && n <= most && d > 0 {
		return d, nil
	}
	return 0, plugin.Usagef("%s %s: a time is a number of seconds above 0", option, text)
}

func count(option, text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n == 0 {
		return 0, plugin.Usagef("%s %s: a number is 1 or more", option, text)
	}
	return int(n), nil
}
