// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestUnattached puts a qdisc without egress in the place of clsact: what is missing until the end is counted.
func TestUnattached(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	file := filepath.Join(t.TempDir(), "unattached.pcapng")
	p := startAgent(t, near, file, "-i", "veth0", "--backend", "tc", "udp")
	near.Must(t, func() error {
		l, err := netlink.LinkByName("veth0")
		if err != nil {
			return err
		}
		at := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		for {
			err := netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: at, QdiscType: "clsact"})
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // those: there is none at the moment
				return err
			}
			if netlink.QdiscAdd(&netlink.Ingress{QdiscAttrs: at}) == nil { // else the agent was faster
				return nil
			}
		}
	})
	p.Await(t, "an ingress qdisc is in its place")
	p.Stop(t, syscall.SIGINT)
	f, err := nettest.Read(file)
	must(t, err)
	const says = "gap: veth0 could not be captured any more, and packets of the last "
	if !slices.ContainsFunc(f.Interfaces[0].Comments, func(c string) bool { return strings.HasPrefix(c, says) }) || !gapLine.MatchString(p.Stderr()) {
		t.Errorf("it is not told: %q\n%s", f.Interfaces[0].Comments, p.Stderr())
	}
}
