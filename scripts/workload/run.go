// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Main is the command; self is how it is called. Its processes are called alike, with the words below. It is for root, at the near
// end:
//
//	run [-lab] [-far NETNS] [-behind NETNS] [-rounds N] [-pause DURATION] [-cgroups DIR]
//
// It says on standard error "workload: process UID PID COMM" of each process at the near end, itself first, and "workload: prepared"
// when what precedes the capture is done, waits for SIGUSR1, says "workload: round N" behind each, ends with "workload: done", and waits for
// SIGTERM, with the processes.
func Main(self, args []string) error {
	if len(args) == 0 {
		return errors.New("wants a word: run")
	}
	word, args := args[0], args[1:]
	fs := flag.NewFlagSet(word, flag.ExitOnError)
	lab := fs.Bool("lab", false, "the addresses of the emulated phone")
	farSpace := fs.String("far", "far", "network namespace of the far end")
	behindSpace := fs.String("behind", "behind", "network namespace behind the near end")
	rounds := fs.Int("rounds", 9, "how often, 33 at most")
	pause := fs.Duration("pause", 200*time.Millisecond, "how long a port that changes hands is nobody's")
	cgroups := fs.String("cgroups", "", "folder of a cgroup2 where each process gets its own, as on Android")
	user := fs.Int("user", 0, "number of the user, of a worker")
	controls := fs.Int("controls", 0, "number of sockets, of an end that answers")
	_ = fs.Parse(args)
	net := Host()
	if *lab {
		net = Lab()
	}
	switch word {
	case "run":
		r := &run{self: self, args: args, rounds: *rounds, cgroups: *cgroups}
		return r.run(*farSpace, *behindSpace)
	case "worker":
		return work(&worker{net: net, user: *user, far: 3, broker: 4}, Comm(UIDs[*user]), *rounds)
	case "rest":
		return work(&rest{net, 3, 4, *pause}, ReuseComm, *rounds)
	case "far", "behind":
		fds := make([]int, *controls)
		for i := range fds {
			fds[i] = 3 + i
		}
		if word == "far" {
			return serveFar(fds)
		}
		return serveBehind(fds)
	}
	return fmt.Errorf("no word %q", word)
}

// rounder is a worker or the rest.
type rounder interface {
	prepare() error
	round(n int) error
	finish() error
	end() error
}

// work obeys the words on standard input and answers each with "ok" or an error on standard output.
func work(r rounder, comm string, rounds int) error {
	if err := os.WriteFile("/proc/self/comm", []byte(comm), 0); err != nil {
		return err
	}
	for words := bufio.NewScanner(os.Stdin); words.Scan(); {
		var err error
		switch word := words.Text(); {
		case strings.HasPrefix(word, "round "):
			n, _ := strconv.Atoi(word[6:])
			if err = r.round(n); err == nil && n == rounds-1 {
				err = r.finish()
			}
		case word == "prepare":
			err = r.prepare()
		case word == "end":
			err = r.end()
		}
		if err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", "; "))
		} else {
			fmt.Println("ok")
		}
	}
	return nil
}

// run is the process that starts the others.
type run struct {
	self, args []string
	rounds     int
	cgroups    string
	children   []*child
	groups     []string // of theirs
}

// child is one that obeys words.
type child struct {
	comm string
	in   io.WriteCloser
	out  *bufio.Scanner
	cmd  *exec.Cmd
}

func (r *run) run(farSpace, behindSpace string) (err error) {
	start, end := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(start, unix.SIGUSR1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	defer func() { err = errors.Join(err, r.close()) }()
	if err := os.WriteFile("/proc/self/comm", []byte(RunComm), 0); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "workload: process 0 %d %s\n", os.Getpid(), RunComm)
	if err := r.startAll(farSpace, behindSpace); err != nil {
		return err
	}
	if err := r.tell("prepare"); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "workload: prepared")
	select {
	case <-start:
	case <-end:
		return nil
	}
	for n := range r.rounds {
		if err := r.tell(fmt.Sprintf("round %d", n)); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "workload: round %d\n", n)
	}
	if err := r.tell("end"); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "workload: done")
	<-end
	return nil
}

// pair makes two connected sockets that keep messages apart, as files for a child.
func pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far"), nil
}

func (r *run) startAll(farSpace, behindSpace string) error {
	var orders, asked []*os.File // one for each user, the rest's, and the rest's to what is behind
	for range len(UIDs) + 2 {
		a, b, err := pair()
		if err != nil {
			return err
		}
		defer a.Close()
		defer b.Close()
		orders, asked = append(orders, a), append(asked, b)
	}
	if err := tune(); err != nil {
		return err
	}
	users := len(UIDs)
	for _, e := range []struct {
		word, space string
		controls    []*os.File
	}{{"far", farSpace, asked[:users+1]}, {"behind", behindSpace, asked[users+1:]}} {
		cmd := r.command(e.word, "-controls", strconv.Itoa(len(e.controls)))
		cmd.ExtraFiles = e.controls
		if err := inSpace(e.space, func() error { return errors.Join(tune(), cmd.Start()) }); err != nil {
			return fmt.Errorf("start %s: %w", e.word, err)
		}
		go func() { _ = cmd.Wait() }()
	}
	for i, uid := range UIDs {
		a, b, err := pair()
		if err != nil {
			return err
		}
		defer a.Close()
		via, err := unix.Dup(int(b.Fd()))
		if err = errors.Join(err, b.Close()); err != nil {
			return err
		}
		unix.CloseOnExec(via)
		go serveBroker(via)
		cmd := r.command("worker", "-user", strconv.Itoa(i))
		cmd.ExtraFiles = []*os.File{orders[i], a}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)},
			// Of an app of a VPN or of a ping: raw sockets and IPv6 options.
			AmbientCaps: []uintptr{unix.CAP_NET_RAW},
		}
		if err := r.child(cmd, uid, Comm(uid)); err != nil {
			return err
		}
	}
	cmd := r.command("rest")
	cmd.ExtraFiles = orders[users:]
	return r.child(cmd, 0, ReuseComm)
}

// command is one of ours with the arguments of this process.
func (r *run) command(word string, more ...string) *exec.Cmd {
	argv := append(append(append([]string(nil), r.self...), word), r.args...)
	return &exec.Cmd{Path: "/proc/self/exe", Args: append(argv, more...), Stderr: os.Stderr}
}

// child starts a process at the near end, in a cgroup of its own.
func (r *run) child(cmd *exec.Cmd, uid int, comm string) error {
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", comm, err)
	}
	r.children = append(r.children, &child{comm, in, bufio.NewScanner(out), cmd})
	fmt.Fprintf(os.Stderr, "workload: process %d %d %s\n", uid, cmd.Process.Pid, comm)
	if r.cgroups == "" {
		return nil
	}
	dir := filepath.Join(r.cgroups, fmt.Sprintf("uid_%d", uid), fmt.Sprintf("pid_%d", cmd.Process.Pid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.groups = append(r.groups, dir)
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0)
}

// tell says a word to all processes at once and waits for each answer.
func (r *run) tell(word string) error {
	errs := make([]error, len(r.children))
	var all sync.WaitGroup
	for i, c := range r.children {
		all.Go(func() {
			if _, errs[i] = fmt.Fprintln(c.in, word); errs[i] != nil {
				return
			}
			if !c.out.Scan() {
				errs[i] = fmt.Errorf("%s ended: %w", c.comm, c.out.Err())
			} else if s := c.out.Text(); s != "ok" {
				errs[i] = fmt.Errorf("%s: %s: %s", c.comm, word, s)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (r *run) close() (err error) {
	for _, c := range r.children {
		err = errors.Join(err, c.in.Close(), c.cmd.Wait())
	}
	for _, dir := range r.groups {
		err = errors.Join(err, os.Remove(dir))
		_ = os.Remove(filepath.Dir(dir)) // that of the user goes with the last process
	}
	return err
}

// tune lets everybody make ICMP sockets in the thread's network namespace, and has it answer every packet with its ICMP error.
func tune() error {
	for _, setting := range [][2]string{
		{"ipv4/ping_group_range", "0 2147483647"}, {"ipv4/icmp_ratelimit", "0"}, {"ipv6/icmp/ratelimit", "0"},
	} {
		if err := os.WriteFile("/proc/sys/net/"+setting[0], []byte(setting[1]), 0); err != nil {
			return err
		}
	}
	return nil
}

// inSpace runs f on a thread of its own in a network namespace of ip netns.
func inSpace(name string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		fd, err := unix.Open(filepath.Join("/run/netns", name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}
