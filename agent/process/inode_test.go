// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestOfInodeInFakeTree(t *testing.T) {
	f := fake(t.TempDir())
	for pid, comm := range map[int]string{1: "init", 30: "third", 20: "second"} {
		f.process(t, pid, 1, comm, comm+"\x00", "/")
	}
	f.hold(t, 30, 3, "socket:[500]")
	f.hold(t, 30, 4, "socket:[500]")
	f.hold(t, 20, 7, "socket:[500]")
	f.hold(t, 20, 8, "socket:[4294967296]")
	f.hold(t, 20, 9, "socket:[12")
	f.hold(t, 20, 10, "pipe:[501]")
	f.hold(t, 20, 11, "anon_inode:[eventpoll]")
	table, clock := open(t, Options{Proc: string(f)})
	second, third := Process{20, "second", "second"}, Process{30, "third", "third"}
	equal(t, "two have it", []Process{second, third}, table.OfInode(500))
	for _, inode := range []uint32{0, 12, 501} {
		equal(t, fmt.Sprint(inode), []Process(nil), table.OfInode(inode))
	}

	// Found at the start, closed, and its process gone: it keeps its name.
	f.remove(t, 30)
	f.process(t, 40, 1, "fourth", "fourth\x00", "/")
	f.hold(t, 40, 3, "socket:[600]")
	equal(t, "too soon", []Process(nil), table.OfInode(600))
	clock.pass(patience)
	equal(t, "after a while", []Process{{40, "fourth", "fourth"}}, table.OfInode(600))
	equal(t, "found elsewhere by a later look", []Process{second}, table.OfInode(500))
	f.remove(t, 40)
	f.process(t, 50, 1, "fifth", "fifth\x00", "/")
	f.hold(t, 50, 3, "socket:[700]")
	clock.pass(patience)
	equal(t, "a third look", []Process{{50, "fifth", "fifth"}}, table.OfInode(700))
	equal(t, "gone", []Process{{40, "fourth", "fourth"}}, table.OfInode(600))

	// The inode is used again, and seen when somebody asks for another one.
	f.hold(t, 50, 4, "socket:[600]")
	f.hold(t, 50, 5, "socket:[800]")
	clock.pass(patience)
	equal(t, "a fourth look", []Process{{50, "fifth", "fifth"}}, table.OfInode(800))
	equal(t, "used again", []Process{{50, "fifth", "fifth"}}, table.OfInode(600))
}

// What nobody has is not looked for again for a second.
func TestMissed(t *testing.T) {
	f := fake(t.TempDir())
	f.process(t, 20, 1, "app", "app\x00", "/")
	table, clock := open(t, Options{Proc: string(f)})
	equal(t, "nobody has it", []Process(nil), table.OfInode(500))
	f.hold(t, 20, 3, "socket:[500]")
	clock.pass(doubt - 1)
	equal(t, "within a second", []Process(nil), table.OfInode(500))
	clock.pass(1)
	equal(t, "after a second", []Process{{20, "app", "app"}}, table.OfInode(500))
}

// Between looks at all processes those that are new are looked at, and their names read: they may be gone when asked for.
func TestYoungProcesses(t *testing.T) {
	f := fake(t.TempDir())
	f.process(t, 20, 1, "old", "old\x00", "/")
	table, clock := open(t, Options{Proc: string(f)})
	equal(t, "nobody has it", []Process(nil), table.OfInode(500))
	f.hold(t, 20, 3, "socket:[501]")
	f.process(t, 30, 1<<62, "young", "young\x00", "/")
	f.hold(t, 30, 3, "socket:[502]")
	f.hold(t, 30, 4, "socket:[503]")
	equal(t, "too soon even for young ones", []Process(nil), table.OfInode(502))
	clock.pass(breath)
	equal(t, "of an old one", []Process(nil), table.OfInode(501))
	f.remove(t, 30)
	clock.pass(breath)
	equal(t, "of a young one that is gone", []Process{{30, "young", "young"}}, table.OfInode(502))
	equal(t, "another one of it", []Process{{30, "young", "young"}}, table.OfInode(503))
	clock.pass(patience)
	equal(t, "of the old one, later", []Process{{20, "old", "old"}}, table.OfInode(501))
}

// A process whose sockets are asked for opens others: it is looked at between looks at all processes, too.
func TestBusyProcesses(t *testing.T) {
	f := fake(t.TempDir())
	f.process(t, 20, 1, "idle", "idle\x00", "/")
	f.process(t, 30, 1, "busy", "busy\x00", "/")
	f.hold(t, 30, 3, "socket:[500]")
	table, clock := open(t, Options{Proc: string(f)})
	it := []Process{{30, "busy", "busy"}}
	equal(t, "the first", it, table.OfInode(500))
	f.hold(t, 20, 3, "socket:[501]")
	f.hold(t, 30, 4, "socket:[502]")
	clock.pass(breath)
	equal(t, "one of the idle one", []Process(nil), table.OfInode(501))
	equal(t, "another one", it, table.OfInode(502))
	clock.pass(busy)
	equal(t, "when all are looked at", []Process{{20, "idle", "idle"}}, table.OfInode(501))
	f.hold(t, 30, 5, "socket:[503]")
	clock.pass(breath)
	equal(t, "when it was idle, too", []Process(nil), table.OfInode(503))
}

// A child has its parent's sockets, also those that were asked for before it was there.
func TestHeir(t *testing.T) {
	f := fake(t.TempDir())
	f.process(t, 20, 1, "old", "old\x00", "/")
	f.hold(t, 20, 3, "socket:[500]")
	table, clock := open(t, Options{Proc: string(f)})
	old := Process{20, "old", "old"}
	equal(t, "one has it", []Process{old}, table.OfInode(500))
	f.process(t, 30, 1<<62, "young", "young\x00", "/")
	f.hold(t, 30, 3, "socket:[500]")
	clock.pass(breath)
	equal(t, "nobody has it", []Process(nil), table.OfInode(501))
	equal(t, "two have it", []Process{old, {30, "young", "young"}}, table.OfInode(500))
}

// A later process of the same pid is another one.
func TestPidIsUsedAgain(t *testing.T) {
	f := fake(t.TempDir())
	f.process(t, 20, 1, "first", "first\x00", "/")
	f.hold(t, 20, 3, "socket:[500]")
	f.hold(t, 20, 4, "socket:[501]")
	table, clock := open(t, Options{Proc: string(f)})
	first, second := []Process{{20, "first", "first"}}, []Process{{20, "second", "second"}}
	equal(t, "first", first, table.OfInode(500))
	equal(t, "shared", first, table.OfInode(501))
	f.remove(t, 20)
	f.process(t, 20, 2, "second", "second\x00", "/")
	f.hold(t, 20, 3, "socket:[501]")
	f.hold(t, 20, 4, "socket:[502]")
	clock.pass(seldom)
	equal(t, "second", second, table.OfInode(502))
	equal(t, "of the first", first, table.OfInode(500))
	equal(t, "has passed to the second", second, table.OfInode(501))
}

func TestOfInode(t *testing.T) {
	table, clock := open(t, Options{})
	ours, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	shared, err := ours.File()
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(shared.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	heir, p := birth(t, "heir", shared), birth(t, "com.example")
	heir.rename(t, "heir") // it runs
	socket := p.socket(t)
	p.rename(t, "le")

	equal(t, "a child's", []Process{{p.pid, "le", "com.example"}}, table.OfInode(socket))
	holders := table.OfInode(uint32(st.Ino))
	if len(holders) != 2 || holders[0].PID != min(heir.pid, os.Getpid()) || holders[1].PID != max(heir.pid, os.Getpid()) {
		t.Errorf("%+v, want ourselves, %d, and our heir, %d", holders, os.Getpid(), heir.pid)
	}
	p.die()
	clock.pass(seldom)
	equal(t, "gone", []Process{{p.pid, "le", "com.example"}}, table.OfInode(socket))
}

// A look that takes longer than a caller may wait goes on behind him.
func TestLongLook(t *testing.T) {
	f := fake(t.TempDir())
	f.process(t, 20, 1, "app", "app\x00", "/")
	f.hold(t, 20, 3, "socket:[500]")
	table, _ := open(t, Options{Proc: string(f)})
	table.sockets.wait = 0
	table.sockets.mu.Lock()
	run := &scan{all: true, done: make(chan struct{})}
	table.sockets.scan = run
	table.sockets.mu.Unlock()
	equal(t, "while it runs", []Process(nil), table.OfInode(500))
	table.look(run, table.now())
	equal(t, "when it has ended", []Process{{20, "app", "app"}}, table.OfInode(500))
}

// Many may ask at once, for what is there and what is not.
func TestTogether(t *testing.T) {
	root, f := t.TempDir(), fake(t.TempDir())
	number := inode(t, root+"/uid_1/pid_20")
	f.process(t, 20, 1, "app", "app\x00", "/uid_1/pid_20")
	f.hold(t, 20, 3, "socket:[500]")
	table, err := Open(Options{Cgroups: root, Proc: string(f)})
	if err != nil {
		t.Fatal(err)
	}
	table.sockets.wait = time.Hour
	want := Process{20, "app", "app"}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for i := range 50 {
				if got, ok := table.OfCgroup(number); !ok || got != want {
					t.Errorf("cgroup: %v, %v", got, ok)
				}
				for _, got := range table.OfInode(500) {
					if got != want {
						t.Errorf("inode: %v", got)
					}
				}
				table.OfInode(uint32(1000 + n*i))
				table.OfCgroup(uint64(1<<40 + n*i))
			}
		})
	}
	wg.Wait()
	equal(t, "at last", []Process{want}, table.OfInode(500))
	if err := table.Close(); err != nil {
		t.Error(err)
	}
}
