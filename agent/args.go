// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

// errOption marks a command line that names an option wrongly.
var errOption = errors.New("")

// normalise rewrites a command line as tcpdump's users type it (-s0, -nnvi any,
// -w-) to what urfave/cli takes: each option by itself, each value behind its
// option, "--" before the expression. An option behind the first word of the
// expression is an error: cli would take it for a part of the expression. Where that
// word is a command, the rest is the command's.
func normalise(argv []string, flags []cli.Flag, commands []*cli.Command) ([]string, error) {
	takesValue := map[string]bool{}
	for _, f := range flags {
		doc, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			takesValue[name] = ok && doc.TakesValue()
		}
	}
	out := []string{argv[0]}
	rest := argv[1:]
	for len(rest) > 0 {
		word := rest[0]
		if word == "--" {
			rest = rest[1:]
			break
		}
		if slices.ContainsFunc(commands, func(c *cli.Command) bool { return c.Name == word }) {
			for _, option := range out[1:] {
				if option != "-v" && option != "--verbose" {
					return nil, plugin.Usagef("%s is an option of a capture, and %s is none: its options come behind it", option, word)
				}
			}
			return append(out, rest...), nil
		}
		if len(word) < 2 || word[0] != '-' {
			if err := noOptions(rest, takesValue); err != nil {
				return nil, err
			}
			break
		}
		options, wantsNext, err := split(word, takesValue)
		if err != nil {
			return nil, err
		}
		rest = rest[1:]
		out = append(out, options...)
		if !wantsNext {
			continue
		}
		if len(rest) == 0 {
			return nil, plugin.Usagef("option %s needs a value%w", options[len(options)-1], errOption)
		}
		out = append(out, rest[0])
		rest = rest[1:]
	}
	if len(rest) == 0 {
		return out, nil
	}
	return append(append(out, "--"), rest...), nil
}

// split takes one word of options apart. wantsNext: the value of the last one is
// the next word.
func split(word string, takesValue map[string]bool) (options []string, wantsNext bool, err error) {
	if name, isLong := strings.CutPrefix(word, "--"); isLong {
		name, _, hasValue := strings.Cut(name, "=")
		takes, known := takesValue[name]
		switch {
		case !known || len(name) < 2:
			return nil, false, plugin.Usagef("there is no option --%s%w", name, errOption)
		case hasValue && !takes:
			return nil, false, plugin.Usagef("option --%s takes no value%w", name, errOption)
		}
		return []string{word}, takes && !hasValue, nil
	}
	for i, letter := range word[1:] {
		name := string(letter)
		takes, known := takesValue[name]
		if !known {
			return nil, false, plugin.Usagef("there is no option -%s in %q%w", name, word, errOption)
		}
		options = append(options, "-"+name)
		if !takes {
			continue
		}
		value := word[1+i+len(name):]
		if value == "" {
			return options, true, nil
		}
		return append(options, value), false, nil
	}
	return options, false, nil
}

// noOptions refuses words of an expression that are options.
func noOptions(words []string, takesValue map[string]bool) error {
	for _, w := range words {
		if len(w) < 2 || w[0] != '-' {
			continue
		}
		if _, _, err := split(w, takesValue); err == nil {
			return plugin.Usagef("options come before the expression, and %s stands behind %q (write -- before the expression if it is a part of it)", w, words[0])
		}
	}
	return nil
}
