// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroups returns where the tree of cgroups, version 2, is mounted, "" if it is not (proc_pid_mountinfo(5)).
func cgroups(proc fs.FS) (string, error) {
	mounts, err := fs.ReadFile(proc, "self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 && fields[3] == "/" {
			return fields[4], nil
		}
	}
	return "", nil
}

// enterCgroup has this process, and those that it starts, get the cgroup which Android's libprocessgroup makes for one of app, by which
// the agent tells them, where there is version 2. leave removes it.
func enterCgroup(proc fs.FS) (leave func() error, err error) {
	tree, err := cgroups(proc)
	if tree == "" {
		return func() error { return nil }, err
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
