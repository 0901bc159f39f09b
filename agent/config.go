// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/config"
	"droidtap/agent/plugin"
)

// expansion is a command line with the options of a file of flags put in: those of the file come first.
type expansion struct {
	file *config.File
	own  []configured // of the file, as far as the command line does not take their place
	rest []string     // the command line's options, and behind "--" the expression
}

// configured is one line of the file as parse takes it.
type configured struct {
	line  config.Line
	words []string
}

// args returns the options and the expression, without line number skip of own (-1: none).
func (e *expansion) args(skip int) (args []string) {
	for i, c := range e.own {
		if i != skip {
			args = append(args, c.words...)
		}
	}
	return append(args, e.rest...)
}

// expand reads the file of flags that args name, which normalise has made; the program's name is not in them. What the command
// line gives comes in the place of what the file gives, but that lists take from both. e.file is nil where there is no file.
// All errors are usage errors.
func expand(args []string, flags []cli.Flag) (*expansion, error) {
	e := &expansion{rest: args}
	takesValue := valued(flags)
	path, given, hasExpression, err := survey(args, flags, takesValue)
	if err != nil || path == nil {
		return e, err
	}
	if e.file, err = config.Read(*path); err != nil {
		return e, plugin.Usagef("--config: %w", err)
	}
	seen := map[cli.Flag]mention{}
	for _, l := range e.file.Flags {
		if err := e.add(l, flags, takesValue, given, seen); err != nil {
			return e, plugin.Usagef("%w", e.file.Errorf(l, "%w", err))
		}
	}
	var expression []string
	for _, l := range e.file.Expression {
		expression = append(expression, l.Text)
		if e.file.Verbatim {
			continue
		}
		if err := noOptions(append([]string{expression[0]}, strings.Fields(l.Text)...), takesValue); err != nil {
			return e, plugin.Usagef("%w", e.file.Errorf(l, "%w", err))
		}
	}
	if !hasExpression && len(expression) > 0 {
		e.rest = append(slices.Clip(e.rest), "--", strings.Join(expression, " "))
	}
	return e, nil
}

// survey looks through a command line: the file of flags that it names, if any, which options it gives and by which of their
// names, and whether it has an expression.
func survey(args []string, flags []cli.Flag, takesValue map[string]bool) (path *string, given map[cli.Flag]string, hasExpression bool, err error) {
	given = map[cli.Flag]string{}
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' && args[0] != "--" {
		var name, value string
		name, value, args = firstOption(args, takesValue)
		given[named(flags, name)] = name
		if name != optionConfig {
			continue
		}
		if path != nil {
			return nil, nil, false, plugin.Usagef("there is one file of flags, and --config is there twice")
		}
		path = &value
	}
	return path, given, len(args) > 1 && args[0] == "--", nil
}

// firstOption takes the first option of words, and its value if it takes one, each by itself as normalise and apart leave them.
func firstOption(words []string, takesValue map[string]bool) (name, value string, rest []string) {
	name, value, hasValue := strings.Cut(strings.TrimLeft(words[0], "-"), "=")
	rest = words[1:]
	if takesValue[name] && !hasValue && len(rest) > 0 {
		value, rest = rest[0], rest[1:]
	}
	return name, value, rest
}

const optionConfig = "config"

// named returns the flag of a name, nil if there is none.
func named(flags []cli.Flag, name string) cli.Flag {
	if i := slices.IndexFunc(flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), name) }); i >= 0 {
		return flags[i]
	}
	return nil
}

// mention is where an option is first in a file, and how it is spelled there: parse takes one spelling only.
type mention struct {
	line int
	name string
}

// add takes a line of the file, given the options of the command line and those of the lines before.
func (e *expansion) add(l config.Line, flags []cli.Flag, takesValue map[string]bool, given map[cli.Flag]string, seen map[cli.Flag]mention) error {
	options, err := apart(l, takesValue)
	if err != nil {
		return err
	}
	for len(options) > 0 {
		var name, value string
		name, value, options = firstOption(options, takesValue)
		f := named(flags, name)
		if err := tryValue(f, name, value, takesValue[name]); err != nil {
			return err
		}
		slice, ok := f.(cli.DocGenerationSliceFlag)
		isList := ok && slice.IsSliceFlag()
		first, twice := seen[f]
		if twice && takesValue[name] && !isList {
			return fmt.Errorf("option %s has a value already, by line %d", dashed(name), first.line)
		}
		if !twice {
			first = mention{l.Number, name}
			seen[f] = first
		}
		spelled, onBoth := given[f]
		if onBoth && !isList {
			continue
		}
		if !onBoth {
			spelled = first.name
		}
		words := []string{dashed(spelled)}
		if takesValue[name] {
			words = append(words, value)
		}
		e.own = append(e.own, configured{l, words})
	}
	return nil
}

// apart returns the options of a line, each by itself and followed by its value if it takes one.
func apart(l config.Line, takesValue map[string]bool) ([]string, error) {
	word, value := l.Cut()
	options, wantsNext, err := split(word, takesValue)
	switch {
	case err != nil:
		return nil, err
	case wantsNext && value == "":
		return nil, plugin.Usagef("option %s needs a value%w", options[len(options)-1], errOption)
	case wantsNext:
		return append(options, value), nil
	case value == "":
		return options, nil
	}
	// -zCMD ARG: the value began in the option's word, and all of the rest is it, too.
	if n := len(options); n > 1 && takesValue[strings.TrimLeft(options[n-2], "-")] {
		options[n-1] += strings.TrimPrefix(l.Text, word)
		return options, nil
	}
	return nil, plugin.Usagef("option %s takes no value%w", options[len(options)-1], errOption)
}

// tryValue tries a value, so that an error of the library's is the line's.
func tryValue(f cli.Flag, name, value string, takesValue bool) error {
	if name == optionConfig {
		return fmt.Errorf("a file of flags names no other one")
	}
	if !takesValue { // nothing to try, and an option that is counted would be counted
		return nil
	}
	set := flag.NewFlagSet("", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	if err := f.Apply(set); err != nil {
		return err
	}
	return set.Parse([]string{"-" + name, value})
}

// dashed is how an option is typed.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// blamed puts the line in front of a usage error that is there because of it: try makes a capture of other arguments, and without
// that line it says something else. Where it is none, as with an interface that does not exist, the file is named.
func (e *expansion) blamed(err error, try func(args []string) error) error {
	if e.file == nil || !plugin.IsUsage(err) {
		return err
	}
	if again := try(e.args(-1)); again != nil && again.Error() == err.Error() {
		for i, c := range e.own {
			if other := try(e.args(i)); other == nil || other.Error() != err.Error() {
				return plugin.Usagef("%w", e.file.Errorf(c.line, "%w", err))
			}
		}
	}
	return plugin.Usagef("%w (with the flags of %s)", err, e.file.Path)
}

// try tells what making a capture of args says, without running one.
func try(app *cli.App, args []string) error {
	silent := *app
	silent.Writer, silent.ErrWriter = io.Discard, io.Discard
	c, err := parse(&silent, nil, app.Flags, args)
	if err == nil {
		_, err = configure(c)
	}
	return err
}
