// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"droidtap/agent/control"
	"droidtap/agent/daemon"
	"droidtap/agent/plugin"
)

// stopPatience is how long agent stop waits for the process to end.
const stopPatience = 30 * time.Second

// controlCommands ask an agent that runs for something.
func controlCommands() []*cli.Command {
	return []*cli.Command{
		controlCommand(control.Status, "say what the daemon captures, how that goes, and what it warned of last"),
		controlCommand(control.Stop, "end the daemon, and wait until its process is gone; a second time, without waiting for its output"),
		controlCommand(control.Rotate, "have the daemon end its file and begin another one"),
		controlCommand(control.Stats, "say the daemon's counters"),
		controlCommand(control.Flush, "have the daemon write what it has captured so far"),
		controlCommand(control.Filter, "have the daemon capture by another expression from now on, and lose no packet that both match; '' is every packet"),
	}
}

func controlCommand(name, usage string) *cli.Command {
	c := &cli.Command{
		Name: name, Usage: usage, Action: ask,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "say it as JSON, in one line"},
			&cli.StringFlag{Name: "socket", Value: daemonFile("sock"), Usage: "ask the agent that listens at `SOCKET`"},
		},
	}
	if name == control.Filter {
		c.ArgsUsage = "EXPR"
	}
	return c
}

// exitOf is an error with the exit code of another process.
type exitOf struct {
	code int
	text string
}

func (e exitOf) Error() string { return e.text }

// startDaemon starts one, and returns when it is ready, or with its exit code.
func startDaemon(c *cli.Context) error {
	code, err := daemon.Start(c.App.ErrWriter)
	if err != nil || code == exitOK {
		return err
	}
	return reported(exitOf{code: code, text: "the daemon has said why"})
}

// ask asks for what the command says, and prints the answer.
func ask(c *cli.Context) error {
	r := control.Request{Do: c.Command.Name}
	switch {
	case r.Do == control.Filter && !c.Args().Present():
		return plugin.Usagef("filter needs an expression: '' is every packet")
	case r.Do == control.Filter:
		expr := strings.Join(c.Args().Slice(), " ")
		r.Expression = &expr
	case c.Args().Present():
		return plugin.Usagef("%s takes no argument, and %q is one", r.Do, c.Args().First())
	}
	client, err := control.Dial(c.String("socket"))
	if err != nil {
		return err
	}
	defer client.Close()
	var a control.Answer
	if r.Do == control.Stop {
		a, err = client.Stop(stopPatience)
	} else {
		a, err = client.Ask(r)
	}
	if err != nil {
		return err
	}
	if a.Error != "" {
		fmt.Fprintf(c.App.ErrWriter, "agent: %s\n", oneLine(a.Error))
		return reported(exitOf{max(a.Code, exitFailed), a.Error})
	}
	if c.Bool("json") {
		_, err := fmt.Fprintf(c.App.Writer, "%s\n", a.Result)
		return err
	}
	return show(c.App.Writer, r.Do, a.Result)
}

// show says for people what an agent has answered.
func show(w io.Writer, do string, result []byte) error {
	var answer interface{ write(io.Writer) }
	switch do {
	case control.Status:
		answer = &status{}
	case control.Stats:
		answer = &totals{}
	case control.Rotate:
		answer = &rotated{}
	default:
		return nil
	}
	if err := json.Unmarshal(result, answer); err != nil {
		return err
	}
	answer.write(w)
	return nil
}
