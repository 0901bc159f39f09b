// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"droidtap/scripts/nettest"
)

const (
	device        = "cap" // cap0, cap1 and so on: the interfaces of both ends
	nearAddress   = "10.99.0.1"
	farAddress    = "10.99.0.3"
	nobodyAddress = "10.99.0.2" // has a neighbour's entry, and nobody
	nearMAC       = "02:00:00:00:01:00"
	farMAC        = "02:00:00:00:02:00"
	nobodyMAC     = "02:ff:00:00:00:ff"
	manyPrefix    = "10.64.0.0/14" // by way of nobody
)

// network is two namespaces that are joined by several veths. The first one has addresses.
type network struct {
	near, far nettest.Space
	made      []string
}

// purpose is what a network is for.
type purpose string

const (
	watched   purpose = "watched"
	unwatched purpose = "unwatched" // nobody captures there
)

// newNetwork makes one. What was made must be closed where there is an error, too.
func newNetwork(links int, of purpose) (*network, error) {
	name := func(end string) nettest.Space {
		return nettest.Space{Name: fmt.Sprintf("droidtap-bench-%d-%s-%d-%s", os.Getpid(), of, links, end)}
	}
	n := &network{near: name("near"), far: name("far")}
	for _, s := range []nettest.Space{n.near, n.far} {
		if err := ip("", "netns", "add", s.Name); err != nil {
			return n, err
		}
		n.made = append(n.made, s.Name)
		// No solicitations and reports of the kernel's own.
		if err := run(s.Command("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"), ""); err != nil {
			return n, err
		}
	}
	var join, near, far strings.Builder
	for i := range links {
		fmt.Fprintf(&join, "link add %s%d netns %s address 02:00:00:00:01:%02x type veth peer name %s%d netns %s address 02:00:00:00:02:%02x\n",
			device, i, n.near.Name, i, device, i, n.far.Name, i)
		fmt.Fprintf(&near, "link set %s%d up\n", device, i)
		fmt.Fprintf(&far, "link set %s%d up\n", device, i)
	}
	for _, line := range []string{
		"address add " + nearAddress + "/24 dev cap0",
		"neighbour add " + nobodyAddress + " lladdr " + nobodyMAC + " dev cap0",
		"neighbour add " + farAddress + " lladdr " + farMAC + " dev cap0",
		"route add " + manyPrefix + " via " + nobodyAddress,
	} {
		fmt.Fprintln(&near, line)
	}
	for _, line := range []string{
		"address add " + farAddress + "/24 dev cap0",
		"neighbour add " + nearAddress + " lladdr " + nearMAC + " dev cap0",
	} {
		fmt.Fprintln(&far, line)
	}
	return n, errors.Join(
		ip(join.String(), "-batch", "-"),
		ip(near.String(), "-n", n.near.Name, "-batch", "-"),
		ip(far.String(), "-n", n.far.Name, "-batch", "-"))
}

func (n *network) close() error {
	var errs []error
	for _, name := range n.made {
		errs = append(errs, ip("", "netns", "del", name))
	}
	return errors.Join(errs...)
}

func (n *network) ends() [2]string { return [2]string{n.near.Name, n.far.Name} }

// end is where the traffic is captured.
func (n *network) end(t traffic) nettest.Space {
	if t.Near {
		return n.near
	}
	return n.far
}

// packets is how many have passed that end so far, by the interfaces' own counters.
func (n *network) packets(s nettest.Space) (count uint64, err error) {
	err = s.Do(0, func() error {
		dev, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		count, err = passed(string(dev), device)
		return err
	})
	return count, err
}

func ip(input string, argv ...string) error { return run(exec.Command("ip", argv...), input) }

// run runs a command that must succeed, out of reach of the terminal's Ctrl-C: what was made must be removed all the same.
func run(cmd *exec.Cmd, input string) error {
	cmd.Stdin = strings.NewReader(input)
	apart(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
