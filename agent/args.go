// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

// errOption marks a command line that names an option wrongly.
var errOption = errors.New("")

// perform does what a command line asks for: a command of app, or app's own action.
// cli.App.Run would do as much, but it can print help as well, which takes
// text/template. A template calls methods by name, so that no exported method of any
// type could be left out: 1.0 MB on the phone.
func perform(app *cli.App, argv []string) error {
	line, err := reword(argv, app.Flags, words())
	if err != nil {
		return err
	}
	if line.help {
		_, err := io.WriteString(app.Writer, commandHelp(commandOf(line.word)))
		return err
	}
	line.note(app)
	args, err := normalise(line.argv, app.Flags, app.Commands)
	if err != nil {
		return err
	}
	e, err := expand(args[1:], app.Flags)
	if err != nil {
		return err
	}
	c, err := parse(app, nil, app.Flags, e.args(-1))
	if err != nil {
		return err
	}
	if c.Bool("help") {
		_, err := io.WriteString(app.Writer, help(app.Flags, append(slices.Clip(app.Commands), commandsOf(words())...)))
		return err
	}
	if wordOf(c.Args().First(), words()) != nil {
		return plugin.Usagef("%s is the first word of a command line, before all options but -v", c.Args().First())
	}
	command := app.Command(c.Args().First())
	if command == nil || e.file != nil || line.word != nil { // a command has no file of flags, and no word before it
		return e.blamed(app.Action(c), func(args []string) error { return try(app, args) })
	}
	if c, err = parse(app, c, optionsOf(command), c.Args().Tail()); err != nil {
		return err
	}
	c.Command = command
	words := c.Args().Slice() // options behind them are left to the command
	if c.Bool("help") || slices.Contains(words, "--help") || slices.Contains(words, "-h") {
		_, err := io.WriteString(app.Writer, commandHelp(command))
		return err
	}
	return command.Action(c)
}

// optionsOf returns the options of a command: its own, and --help.
func optionsOf(c *cli.Command) []cli.Flag {
	return append(slices.Clip(c.Flags), &cli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "print this"})
}

// parse reads the options that args begin with. The context that it returns has them,
// the words behind them, and the options of parent, which may be nil.
func parse(app *cli.App, parent *cli.Context, flags []cli.Flag, args []string) (*cli.Context, error) {
	set := flag.NewFlagSet(app.Name, flag.ContinueOnError)
	set.SetOutput(io.Discard) // it would print its errors, too
	for _, f := range flags {
		if err := f.Apply(set); err != nil {
			return nil, err
		}
	}
	err := set.Parse(args)
	if err == nil {
		err = alias(set, flags)
	}
	if err != nil {
		return nil, plugin.Usagef("%w", err)
	}
	return cli.NewContext(app, set, parent), nil
}

// alias gives what an option was set to by one of its names to the others, as cli
// does: to a set they are options of their own. A BoolFlag's count relies on it.
func alias(set *flag.FlagSet, flags []cli.Flag) error {
	given := map[string]*flag.Flag{}
	set.Visit(func(f *flag.Flag) { given[f.Name] = f })
	for _, f := range flags {
		var by *flag.Flag
		for _, name := range f.Names() {
			switch g := given[name]; {
			case g == nil:
			case by != nil:
				return fmt.Errorf("Cannot use two forms of the same flag: %s %s", name, by.Name)
			default:
				by = g
			}
		}
		if by == nil {
			continue
		}
		text := by.Value.String()
		if s, ok := by.Value.(cli.Serializer); ok { // a list, whose String is for readers
			text = s.Serialize()
		}
		for _, name := range f.Names() {
			if given[name] != nil {
				continue
			}
			if err := set.Set(name, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// normalise rewrites a command line as tcpdump's users type it (-s0, -nnvi any,
// -w-) to what parse takes: each option by itself, each value behind its
// option, "--" before the expression. An option behind the first word of the
// expression is an error: parse would take it for a part of the expression. Where that
// word is a command, the rest is the command's.
func normalise(argv []string, flags []cli.Flag, commands []*cli.Command) ([]string, error) {
	takesValue := valued(flags)
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

// valued tells of each name of an option whether it takes a value.
func valued(flags []cli.Flag) map[string]bool {
	takesValue := map[string]bool{}
	for _, f := range flags {
		doc, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			takesValue[name] = ok && doc.TakesValue()
		}
	}
	return takesValue
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
