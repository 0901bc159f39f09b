// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

const helpHead = `agent: capture packets on a rooted Android phone, with tcpdump's options

    agent [options] [pcap-filter expression]
    agent doctor
    agent --daemon [options] [expression]; agent status; agent stop
    agent -i wlan0 port 443
    agent -i any --uid 10123 -w - | wireshark -k -i -

Without -w the capture goes to a file of its own, whose path is printed on stderr
when everything is attached, and again at the end. Ctrl-C ends it; then its
counters are printed.
Exit codes: 0 done, 1 failed, 2 usage, 3 not permitted, 4 the kernel lacks something.
`

// help describes every option by its group; urfave/cli's own text repeats each
// value's name for each spelling of the option.
func help(flags []cli.Flag, commands []*cli.Command) string {
	groups := map[string][]string{}
	for _, f := range flags {
		c, hasGroup := f.(cli.CategorizableFlag)
		doc, hasDoc := f.(cli.DocGenerationFlag)
		if hasGroup && hasDoc {
			groups[c.GetCategory()] = append(groups[c.GetCategory()], option(f.Names(), doc))
		}
	}
	var b strings.Builder
	b.WriteString(helpHead)
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		slices.Sort(groups[name])
		fmt.Fprintf(&b, "\n%s:\n%s", name, strings.Join(groups[name], ""))
	}
	b.WriteString("\nCommands:\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "  agent %s\n%s", c.Name, wrap(c.Usage, "        ", 80))
	}
	return b.String()
}

// commandHelp describes a command and its options.
func commandHelp(c *cli.Command) string {
	var b strings.Builder
	b.WriteString(wrap("agent "+c.Name+": "+c.Usage, "", 80))
	fmt.Fprintf(&b, "\n    %s\n\nOptions:\n", strings.TrimSpace("agent "+c.Name+" [options] "+c.ArgsUsage))
	for _, f := range optionsOf(c) {
		if doc, ok := f.(cli.DocGenerationFlag); ok {
			b.WriteString(option(f.Names(), doc))
		}
	}
	return b.String()
}

// option describes one option: "  -i, --interface IF" and, indented, what it does.
func option(names []string, doc cli.DocGenerationFlag) string {
	var spelled []string
	for _, n := range slices.Backward(names) {
		dashes := "--"
		if len(n) == 1 {
			dashes = "-"
		}
		spelled = append(spelled, dashes+n)
	}
	// The value's name stands in backquotes in the usage.
	usage := doc.GetUsage()
	head := "  " + strings.Join(spelled, ", ")
	if parts := strings.SplitN(usage, "`", 3); len(parts) == 3 {
		head += " " + parts[1]
		usage = parts[0] + parts[1] + parts[2]
	}
	if d := doc.GetDefaultText(); d != "" && doc.TakesValue() {
		usage += " (default " + strings.Trim(d, `"`) + ")"
	}
	return head + "\n" + wrap(usage, "        ", 80)
}

// wrap breaks text into lines of at most width columns, each behind indent.
func wrap(text, indent string, width int) string {
	var b strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		switch {
		case column == 0:
			b.WriteString(indent + word)
			column = len(indent) + len(word)
		case column+1+len(word) > width:
			b.WriteString("\n" + indent + word)
			column = len(indent) + len(word)
		default:
			b.WriteString(" " + word)
			column += 1 + len(word)
		}
	}
	return b.String() + "\n"
}
