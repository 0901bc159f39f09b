// SPDX-License-Identifier: Apache-2.0

// Package process tells which process a socket belongs to, by the cgroup in which it was made or by who has it open.
package process

import (
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Process is one, as it was when it was looked at: what is gone keeps its name. Both names are bytes that the process
// chose: they may hold anything but NUL. They are empty where the process was gone before it could be looked at.
type Process struct {
	PID  int
	Comm string // /proc/PID/comm, up to 15 bytes; of an Android app the end of its process's name
	Name string // the first word of /proc/PID/cmdline, up to 255 bytes: "com.example:remote"; "" where there is none
}

// Table may be used by several goroutines at once.
type Table struct {
	proc    procfs
	log     *slog.Logger
	now     func() time.Time
	android atomic.Bool

	mu      sync.Mutex // of what follows
	root    string     // where cgroup version 2 is mounted, "" if it is not
	watch   *watch     // nil where inotify is not to be had
	dirs    *cache[uint64, *group]
	ids     *cache[uint64, *group]
	walked  time.Time // when the last walk ended
	sockets sockets   // with a lock of its own
	ends    sync.WaitGroup
}

// Options say where to look.
type Options struct {
	Cgroups string // where cgroup version 2 is mounted; "": found in /proc/self/mountinfo
	Proc    string // "": /proc
	Log     *slog.Logger
}

// remembered is how many cgroups, and how many sockets, are known at once; that asked for the longest ago goes first.
const remembered = 8192

// Open looks at what there is, and watches it. A cgroup tree that is missing is no error: then no cgroup tells a process.
// Nothing happens afterwards but when a directory of a process is made or when somebody asks.
func Open(o Options) (*Table, error) {
	if o.Proc == "" {
		o.Proc = "/proc"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Table{
		proc: procfs(o.Proc), log: o.Log, now: time.Now, root: o.Cgroups,
		dirs: newCache[uint64, *group](remembered), ids: newCache[uint64, *group](remembered),
		sockets: newSockets(),
	}
	if _, err := os.Stat(o.Proc); err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	if t.root == "" {
		t.root = t.proc.cgroups()
	}
	if t.root == "" {
		o.Log.Debug("cgroups tell no processes", "because", "cgroup version 2 is not mounted")
		return t, nil
	}
	w, err := openWatch()
	if err != nil {
		o.Log.Debug("new processes are found when they are asked for", "because", err)
	}
	t.watch = w
	t.mu.Lock()
	t.walk()
	t.mu.Unlock()
	if w != nil {
		t.ends.Go(t.follow)
	}
	return t, nil
}

// Android tells whether cgroups tell processes, as on Android: there is a directory uid_U/pid_P for each. It becomes
// true when the first of them is seen.
func (t *Table) Android() bool { return t.android.Load() }

// Close ends the watch. Nobody may ask any more.
func (t *Table) Close() error {
	var err error
	if t.watch != nil {
		err = t.watch.file.Close()
	}
	t.sockets.closed.Store(true)
	t.ends.Wait()
	if err != nil {
		return fmt.Errorf("close the watch of cgroups: %w", err)
	}
	return nil
}
