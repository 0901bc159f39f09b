// SPDX-License-Identifier: Apache-2.0

// Package process tells which process a socket belongs to, by the cgroup in which it was made or by who has it open.
package process

import "log/slog"

// Process is one, as it was when it was looked at: what is gone keeps its name.
type Process struct {
	PID  int
	Comm string // /proc/PID/comm, up to 15 bytes; of an Android app the end of its process's name
	Name string // the first word of /proc/PID/cmdline: "com.example:remote"; "" where there is none
}

// Table may be used by several goroutines at once.
type Table struct{}

// Options say where to look.
type Options struct {
	Cgroups string // where cgroup version 2 is mounted; "": found in /proc/self/mountinfo
	Proc    string // "": /proc
	Log     *slog.Logger
}

// Open looks at what there is, and watches it.
func Open(Options) (*Table, error) { return &Table{}, nil }

// Android tells whether cgroups tell processes, as on Android: there is a directory uid_U/pid_P for each.
func (t *Table) Android() bool { return false }

// OfCgroup returns the process of a cgroup by its id, and false where that tells none.
func (t *Table) OfCgroup(id uint64) (Process, bool) { return Process{}, false }

// OfInode returns the processes that have a socket open, by its inode, the lowest pid first.
func (t *Table) OfInode(inode uint32) []Process { return nil }

// Close ends the watch.
func (t *Table) Close() error { return nil }
