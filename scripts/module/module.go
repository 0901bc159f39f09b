// SPDX-License-Identifier: Apache-2.0

// Module packs the agent as a module of Magisk, KernelSU and APatch: a zip
// whose bytes depend on nothing but what goes in.
package main

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// names are the files of the module's folder that go in. What is not named stays
// out: an editor's backup, say.
var names = []string{
	"README.md", "action.sh", "agent.args", "common.sh", "customize.sh", "module.prop", "service.sh", "supervisor.sh", "uninstall.sh",
}

func main() {
	var (
		dir     = flag.String("dir", "android/module", "the module's `folder`")
		agent   = flag.String("agent", "build/arm64/agent", "the agent, `file`")
		licence = flag.String("licence", "LICENSE", "the licence, `file`")
		version = flag.String("version", "", "the `version` as people read it")
		at      = flag.Int64("at", 0, "when the version was committed, `seconds` since 1970: tells which of two is newer")
		out     = flag.String("o", "", "write to `file`")
	)
	flag.Parse()
	if err := build(*dir, *agent, *licence, *version, *at, *out); err != nil {
		fmt.Fprintln(os.Stderr, "module:", err)
		os.Exit(1)
	}
}

// build packs the module into the file out, which appears as a whole or not at all.
func build(dir, agent, licence, version string, at int64, out string) error {
	files, err := collect(os.DirFS(dir), version, at)
	if err != nil {
		return err
	}
	for name, path := range map[string]string{"agent": agent, "LICENSE": licence} {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files = append(files, file{name: name, text: text, executable: name == "agent"})
	}
	f, err := os.CreateTemp(filepath.Dir(out), ".module-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := pack(f, files); err != nil {
		return fmt.Errorf("write %s: %w", out, err)
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), out)
}

// collect reads the module's files from its folder and fills in its version.
func collect(dir fs.FS, version string, at int64) ([]file, error) {
	var files []file
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, err
		}
		if strings.Contains(string(text), "\r") {
			return nil, fmt.Errorf("%s: a carriage return, which no phone's shell takes for the end of a line", name)
		}
		if name == "module.prop" {
			if text, err = properties(string(text), version, at); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
		files = append(files, file{name: name, text: text})
	}
	return files, nil
}
