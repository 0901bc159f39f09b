// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
	"droidtap/agent/sockdiag"
)

// Values of Row.BytesFrom.
const (
	fromNetd = "netd"
	fromTCP  = "tcp"
)

// Command is agent apps.
func Command() *cli.Command { return command(netdMaps) }

func command(netd []string) *cli.Command {
	return &cli.Command{
		Name:      "apps",
		Usage:     "list the apps with their uids, live sockets and bytes: all, or those of PATTERN, a part of the name, a glob or a uid",
		ArgsUsage: "[PATTERN]",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "as JSON: an array of objects"},
			&cli.StringFlag{Name: "packages", Value: List, Usage: "read the packages from `FILE`"},
		},
		Action: func(c *cli.Context) error { return list(c, netd) },
	}
}

// request is what the command line asks for.
type request struct {
	pattern, packages string
	json              bool
}

// arguments reads the options behind the pattern, too, where cli takes them for words.
func arguments(c *cli.Context) (r request, err error) {
	r = request{packages: c.String("packages"), json: c.Bool("json")}
	for words := c.Args().Slice(); len(words) > 0; words = words[1:] {
		name, value, hasValue := strings.Cut(words[0], "=")
		switch {
		case words[0] == "--json":
			r.json = true
		case name == "--json" && hasValue:
			if r.json, err = strconv.ParseBool(value); err != nil {
				return r, plugin.Usagef("option --json is true or false, not %q", value)
			}
		case name == "--packages" && hasValue:
			r.packages = value
		case name == "--packages" && len(words) > 1:
			r.packages, words = words[1], words[1:]
		case name == "--packages":
			return r, plugin.Usagef("option --packages needs a value")
		case strings.HasPrefix(words[0], "-"):
			return r, plugin.Usagef("apps has no option %s", words[0])
		case r.pattern != "":
			return r, plugin.Usagef("apps takes one pattern, and %q is another", words[0])
		default:
			r.pattern = words[0]
		}
	}
	if _, err := path.Match(r.pattern, ""); err != nil {
		return r, plugin.Usagef("pattern %q: %w", r.pattern, err)
	}
	return r, nil
}

func list(c *cli.Context, netd []string) error {
	asked, err := arguments(c)
	if err != nil {
		return err
	}
	warn := func(text string) { fmt.Fprintln(c.App.ErrWriter, text) }
	p, skipped, err := load(asked.packages)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		warn(fmt.Sprintf("no list of packages at %s: is this Android?", asked.packages))
		p = &page{}
	case err != nil:
		return err
	case skipped != "":
		warn(skipped)
	}
	// /data/user beside /data/system.
	data := os.DirFS(filepath.Join(filepath.Dir(asked.packages), ".."))
	o, err := observe(netd, warn)
	if err != nil {
		return err
	}
	o.users = phoneUsers(data)
	o.has = func(user uint32, name string) bool { return installed(data, user, name) }
	rows := pick(p.rows(o), asked.pattern)
	if asked.json {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		if err := e.Encode(append([]Row{}, rows...)); err != nil {
			return fmt.Errorf("list apps: %w", err)
		}
		return nil
	}
	if len(rows) == 0 && asked.pattern != "" {
		if near := p.near(asked.pattern); near != "" {
			return fmt.Errorf("no app is like %s: is it %s?", asked.pattern, near)
		}
		return fmt.Errorf("no app is like %s", asked.pattern)
	}
	if err := printTable(c.App.Writer, rows, o.from); err != nil {
		return fmt.Errorf("list apps: %w", err)
	}
	return nil
}

// observe asks the kernel for the sockets of this network namespace, and netd's map, or else them, for bytes.
func observe(netd []string, warn func(string)) (observed, error) {
	o := observed{sockets: map[uint32]int{}, from: fromNetd}
	tcp := map[uint32]traffic{}
	err := sockdiag.Sockets(func(s sockdiag.Socket) {
		if s.Inode != 0 { // a process has it open
			o.sockets[s.UID]++
		}
		t := tcp[s.UID]
		tcp[s.UID] = traffic{t.sent + s.Sent, t.received + s.Received}
	})
	if errors.Is(err, sockdiag.ErrNoDiag) {
		warn("sockets are missing: " + strings.ReplaceAll(err.Error(), "\n", "; "))
		err = nil
	}
	if err != nil {
		return o, err
	}
	if o.bytes, err = countedByNetd(netd); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			warn("netd's counters are not used: " + strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		o.bytes, o.from = tcp, fromTCP
	}
	return o, nil
}
