// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	apps "droidtap/agent/process" // process is what the bench runs
)

// enterCgroup has this process, and those that it starts, get the cgroup which Android's libprocessgroup makes for one of app, by which
// the agent tells them, where there is version 2. leave removes it.
func enterCgroup(proc fs.FS) (leave func() error, err error) {
	mounts, err := fs.ReadFile(proc, "self/mountinfo")
	if err != nil {
		return nil, err
	}
	tree := apps.FindCgroups(string(mounts))
	if tree == "" {
		return func() error { return nil }, nil
	}
	user := filepath.Join(tree, fmt.Sprintf("uid_%d", app))
	dir := filepath.Join(user, fmt.Sprintf("pid_%d", os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	join := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	leave = func() error {
		err := errors.Join(join(tree), os.Remove(dir))
		_ = os.Remove(user) // there may be another one of app
		return err
	}
	if err := join(dir); err != nil {
		return nil, errors.Join(err, leave())
	}
	return leave, nil
}
