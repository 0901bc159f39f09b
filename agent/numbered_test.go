// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"droidtap/agent/daemon"
	"droidtap/agent/plugin"
)

// numbered are the files PATH, PATH1, PATH2 ..., of which each ends when somebody asks for it.
type numbered struct {
	path   string
	opened int
}

func (n *numbered) Next(string) (plugin.File, error) {
	path := n.name()
	n.opened++
	return os.Create(path)
}

// name is that of the next file.
func (n *numbered) name() string {
	if n.opened == 0 {
		return n.path
	}
	return n.path + fmt.Sprint(n.opened)
}

func (n *numbered) Full(plugin.Filling) plugin.Verdict { return plugin.Keep }
func (n *numbered) Lasts() time.Duration               { return 0 }

// numberedMain is an agent that writes to such files.
func numberedMain() {
	runAs(func(c *cli.Context) error {
		if c.Bool("daemon") && !daemon.Started() {
			return startDaemon(c)
		}
		said := &messages{stderr: c.App.ErrWriter}
		c.App.ErrWriter = said
		cfg, err := configure(c)
		if err != nil {
			return err
		}
		cfg.Output = &numbered{path: c.String("write")}
		return capturePackets(c, said, cfg)
	})
}
