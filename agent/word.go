// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

// words returns those that the first word of a command line may be, of all probes.
func words() (words []*plugin.Word) {
	for _, p := range plugin.Probes() {
		if p.Word != nil {
			words = append(words, p.Word)
		}
	}
	return words
}

// wordOf returns the word of a name, nil if there is none.
func wordOf(name string, words []*plugin.Word) *plugin.Word {
	if i := slices.IndexFunc(words, func(w *plugin.Word) bool { return w.Name == name }); i >= 0 {
		return words[i]
	}
	return nil
}

// commandOf makes a word a command, for --help.
func commandOf(w *plugin.Word) *cli.Command {
	return &cli.Command{Name: w.Name, Usage: w.Usage, ArgsUsage: "[pcap-filter expression]", Flags: w.Flags}
}

func commandsOf(words []*plugin.Word) (commands []*cli.Command) {
	for _, w := range words {
		commands = append(commands, commandOf(w))
	}
	return commands
}

// reworded is a command line that may have begun with a word.
type reworded struct {
	argv  []string     // without the word
	word  *plugin.Word // nil: argv is what was typed
	help  bool         // it is help on the word that is wanted
	notes []string     // what is to be said about the options
}

// reword makes a command line of a capture, with the agent's own options, of one that begins with a word, behind -v as it may
// for commands. It is done anew where the process starts anew, by the arguments that were typed.
func reword(argv []string, flags []cli.Flag, words []*plugin.Word) (reworded, error) {
	first := 1
	for first < len(argv) && verbose(argv[first]) {
		first++
	}
	r := reworded{argv: argv}
	if first >= len(argv) {
		return r, nil
	}
	if r.word = wordOf(argv[first], words); r.word == nil {
		return r, nil
	}
	flags = append(slices.Clip(flags), r.word.Flags...)
	behind := slices.Clone(argv[first:])
	if r.word.Before != nil {
		behind = append(behind[:1], r.word.Before(behind[1:])...)
	}
	args, err := normalise(behind, flags, nil)
	if err != nil {
		return r, err
	}
	typed, expression := separate(args[1:], valued(flags))
	r.help = slices.ContainsFunc(typed, func(o plugin.Option) bool { return o.Name == "help" || o.Name == "h" })
	if r.help {
		return r, nil
	}
	rewritten, notes, err := r.word.Rewrite(typed)
	if err != nil {
		return r, err
	}
	r.argv = slices.Clone(argv[:first])
	for _, o := range rewritten {
		r.argv = append(r.argv, dashed(o.Name))
		if o.Valued {
			r.argv = append(r.argv, o.Value)
		}
	}
	r.argv, r.notes = append(r.argv, expression...), notes
	return r, nil
}

// verbose tells whether a word of the command line is -v, -vv and so on.
func verbose(word string) bool {
	return word == "--verbose" || len(word) > 1 && word[0] == '-' && strings.Trim(word[1:], "v") == ""
}

// separate takes what normalise has made apart: the options, and the expression with "--" before it, if there is one.
func separate(args []string, takesValue map[string]bool) (options []plugin.Option, expression []string) {
	for len(args) > 0 && args[0] != "--" {
		var o plugin.Option
		o.Name, o.Value, args = firstOption(args, takesValue)
		o.Valued = takesValue[o.Name]
		options = append(options, o)
	}
	return options, args
}

// notesKey is where an app's Metadata has the notes.
const notesKey = "notes"

// note keeps what is to be said for when there is a log, and the process is the one that captures.
func (r *reworded) note(app *cli.App) {
	if r.notes != nil {
		app.Metadata = map[string]any{notesKey: r.notes}
	}
}

func notes(app *cli.App) []string {
	notes, _ := app.Metadata[notesKey].([]string)
	return notes
}
