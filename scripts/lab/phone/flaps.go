// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netns"

	"droidtap/scripts/flap"
)

// flapped is the interface that is flapped. It is made for it.
const flapped = "flap0"

// flaps prints how soon an agent is back where its filter or its interface was taken away.
func flaps(args []string) error {
	flags := flag.NewFlagSet("flaps", flag.ContinueOnError)
	binary := flags.String("agent", "/data/local/tmp/agent", "the agent")
	n := flags.Int("n", 1000, "how often clsact is deleted")
	returns := flags.Int("returns", 300, "how often the interface goes and comes back")
	hooks := flags.String("hooks", "tcx,tc,packet", "by which hooks it does")
	if err := flags.Parse(args); err != nil {
		return err
	}
	f, err := flap.Open(netns.None())
	if err != nil {
		return err
	}
	defer f.Close()
	if *n > 0 {
		fmt.Println("clsact deleted -> filters back, tc:")
		if err := measure(f, *binary, "tc", func(index int) (int, []time.Duration, error) { return deletions(f, index, *n) }); err != nil {
			return err
		}
	}
	for hook := range strings.SplitSeq(*hooks, ",") {
		if *returns == 0 {
			break
		}
		fmt.Printf("interface made and up -> attached, %s:\n", hook)
		if err := measure(f, *binary, hook, func(index int) (int, []time.Duration, error) { return comebacks(f, index, hook, *returns) }); err != nil {
			return err
		}
	}
	return nil
}

// measure runs flaps under an agent and prints how long they took, and what the agent says of them. The flaps are handed the
// interface's index and return its last one.
func measure(f *flap.Flapper, binary, hook string, run func(index int) (int, []time.Duration, error)) (err error) {
	index, err := f.Make(flapped)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Delete(index)) }()
	dir, err := os.MkdirTemp("", "flaps")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	agent := exec.Command(binary, "-i", flapped, "--backend", hook, "-w", filepath.Join(dir, "flaps.pcapng"))
	pipe, err := agent.StderrPipe()
	if err != nil {
		return err
	}
	if err := agent.Start(); err != nil {
		return err
	}
	defer agent.Process.Kill()
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			fmt.Printf("  not here: %s\n", strings.TrimSpace(line))
			return agent.Wait()
		}
		if strings.HasPrefix(line, "capturing on") {
			break
		}
		fmt.Print("  ", line)
		if strings.HasPrefix(line, "agent: ") && strings.Contains(line, "before kernel") {
			_ = agent.Wait()
			return nil
		}
	}
	rest := make(chan string)
	go func() {
		all, _ := io.ReadAll(lines)
		rest <- string(all)
	}()
	before := processor(agent.Process.Pid)
	var took []time.Duration
	if index, took, err = run(index); err != nil {
		return err
	}
	spent := processor(agent.Process.Pid) - before
	if err := agent.Process.Signal(syscall.SIGINT); err != nil {
		return err
	}
	said := <-rest
	if err := agent.Wait(); err != nil {
		return fmt.Errorf("agent: %w: %s", err, said)
	}
	show(took, spent, said)
	return nil
}

// show prints the figures of one measurement.
func show(took []time.Duration, spent time.Duration, said string) {
	slices.Sort(took)
	at := func(percent int) time.Duration {
		return took[min(len(took)*percent/100, len(took)-1)].Round(10 * time.Microsecond)
	}
	fmt.Printf("  %d times: min %v, median %v, p99 %v, max %v; %v of processor time each\n",
		len(took), at(0), at(50), at(99), at(100), (spent / time.Duration(len(took))).Round(10*time.Microsecond))
	for line := range strings.Lines(said) {
		if strings.Contains(line, " gaps on ") {
			fmt.Print("  the agent: ", line)
		}
	}
}

// deletions deletes clsact n times.
func deletions(f *flap.Flapper, index, n int) (int, []time.Duration, error) {
	var took []time.Duration
	for range n {
		d, err := f.Clsact(index)
		if err != nil {
			return index, nil, err
		}
		took = append(took, d)
	}
	return index, took, nil
}

// comebacks deletes the interface and makes it again n times.
func comebacks(f *flap.Flapper, index int, hook string, n int) (int, []time.Duration, error) {
	var took []time.Duration
	for range n {
		if err := f.Delete(index); err != nil {
			return index, nil, err
		}
		if err := gone(hook, index); err != nil {
			return index, nil, err
		}
		next, err := f.Make(flapped)
		if err != nil {
			return index, nil, err
		}
		index = next
		if hook == "tc" {
			err = f.AwaitFilters(index)
		} else {
			err = poll(func() (bool, error) { return attached(hook, index) })
		}
		if err != nil {
			return index, nil, err
		}
		took = append(took, time.Since(f.Made))
	}
	return index, took, nil
}

// gone waits until a packet socket is off an interface that was deleted; nothing else can be left there.
func gone(hook string, index int) error {
	if hook != "packet" {
		return nil
	}
	return poll(func() (bool, error) {
		there, err := attached(hook, index)
		return !there, err
	})
}

// poll asks every 200 microseconds: the kernel sends no message of TCX or of packet sockets.
func poll(yes func() (bool, error)) error {
	for begun := time.Now(); ; time.Sleep(200 * time.Microsecond) {
		if done, err := yes(); done || err != nil {
			return err
		}
		if time.Since(begun) > flap.Patience {
			return errors.New("nothing is attached")
		}
	}
}

// attached tells whether something is at both directions of an interface.
func attached(hook string, index int) (bool, error) {
	if hook == "packet" {
		all, err := os.ReadFile("/proc/net/packet")
		for line := range strings.Lines(string(all)) {
			fields := strings.Fields(line) // sk RefCnt Type Proto Iface R Rmem User Inode
			if len(fields) > 5 && fields[4] == strconv.Itoa(index) && fields[5] == "1" {
				return true, err
			}
		}
		return false, err
	}
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		q, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
		if err != nil || len(q.Programs) == 0 {
			return false, err
		}
	}
	return true, nil
}

// processor returns what a process has used of processors.
func processor(pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks int
	for _, field := range fields[11:13] { // utime and stime
		n, _ := strconv.Atoi(field)
		ticks += n
	}
	const tick = 10 * time.Millisecond // USER_HZ
	return time.Duration(ticks) * tick
}
