// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/filter"
	"droidtap/agent/plugin"
)

// maxSnaplen is the most that tcpdump and libpcap take, in bytes.
const maxSnaplen = 262144

func flags() []cli.Flag {
	return append([]cli.Flag{
		&cli.StringSliceFlag{Name: "interface", Aliases: []string{"i"}, Category: plugin.GroupCapture,
			Usage: "capture on `IF[,IF]` (repeatable), a number from -D, a pattern such as 'rmnet*', @inet: what leads to the internet, or any; all are followed as they come and go", DefaultText: "any"},
		&cli.IntFlag{Name: "snapshot-length", Aliases: []string{"s"}, Category: plugin.GroupCapture,
			Usage: "capture `N` bytes of each packet; 0 means 262144", DefaultText: "262144"},
		&cli.StringFlag{Name: "direction", Aliases: []string{"Q"}, Category: plugin.GroupCapture, Value: "inout",
			Usage: "capture packets that go `in|out|inout`"},
		&cli.StringFlag{Name: "expression-file", Aliases: []string{"F"}, Category: plugin.GroupCapture,
			Usage: "read the expression from `FILE`; # begins a comment"},
		&cli.BoolFlag{Name: "list-interfaces", Aliases: []string{"D"}, Category: plugin.GroupInstead,
			Usage: "list the interfaces"},
		&cli.BoolFlag{Name: "dump-filter", Aliases: []string{"d"}, Category: plugin.GroupInstead, Count: new(int),
			Usage: "print the expression's classic bpf program; -dd as C, -ddd as numbers, -dddd the eBPF that is injected"},
		&cli.StringFlag{Name: "filter-form", Category: plugin.GroupAdvanced, Value: "auto",
			Usage: "run the expression in the form `auto|hybrid|load-bytes|agent`; agent: behind the kernel"},
	}, ownerFlags()...)
}

// options is what the flags say, checked.
type options struct {
	names      []string // as given, "any" among them; empty: any
	expr       string
	snaplen    uint32        // 1 to maxSnaplen
	directions uint32        // recordIngress, recordEgress
	forms      []filter.Form // to be tried in this order
	owning
}

// parse checks the flags; its errors are usage errors of one line.
func parse(c *cli.Context) (options, error) {
	o := options{names: c.StringSlice("interface")}
	var err error
	if o.expr, err = expression(c.Args().Slice(), c.String("expression-file"), os.ReadFile); err != nil {
		return o, err
	}
	if o.snaplen, err = snaplen(c.Int("snapshot-length")); err != nil {
		return o, err
	}
	if o.directions, err = directions(c.String("direction")); err != nil {
		return o, err
	}
	if o.forms, err = forms(c.String("filter-form")); err != nil {
		return o, err
	}
	if o.owning, err = parseOwning(c); err != nil {
		return o, err
	}
	return o, nil
}

// expression returns the expression's text: the words of the command line, or
// what a file holds, without comments.
func expression(words []string, file string, read func(string) ([]byte, error)) (string, error) {
	if file == "" {
		return strings.TrimSpace(strings.Join(words, " ")), nil
	}
	if len(words) > 0 {
		return "", plugin.Usagef("the expression is given twice: in %s by -F and as %q", file, strings.Join(words, " "))
	}
	text, err := read(file)
	if err != nil {
		return "", plugin.Usagef("read the expression: %w", err)
	}
	var lines []string
	for line := range bytes.Lines(text) {
		code, _, _ := strings.Cut(string(line), "#")
		if code = strings.TrimSpace(code); code != "" {
			lines = append(lines, code)
		}
	}
	return strings.Join(lines, " "), nil
}

func snaplen(n int) (uint32, error) {
	switch {
	case n < 0 || n > maxSnaplen:
		return 0, plugin.Usagef("-s %d: a snapshot length is 1 to %d bytes, 0 the most", n, maxSnaplen)
	case n == 0:
		return maxSnaplen, nil
	}
	return uint32(n), nil
}

// forms returns the forms of the filter to try, each smaller than the one before it.
func forms(name string) ([]filter.Form, error) {
	all := []filter.Form{filter.Hybrid, filter.LoadBytes, filter.Agent}
	if name == "auto" {
		return all, nil
	}
	for _, f := range all {
		if f.String() == name {
			return []filter.Form{f}, nil
		}
	}
	return nil, plugin.Usagef("--filter-form %q: a form is hybrid, load-bytes, agent or auto", name)
}

func directions(q string) (uint32, error) {
	switch q {
	case "in":
		return recordIngress, nil
	case "out":
		return recordEgress, nil
	case "inout":
		return recordIngress | recordEgress, nil
	}
	return 0, plugin.Usagef("-Q %q: a direction is in, out or inout", q)
}
