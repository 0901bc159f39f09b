// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"droidtap/scripts/nettest"
)

// install writes a list of packages as Android does: beside it, and then in its place.
func install(t *testing.T, list string, packages map[string]int) {
	t.Helper()
	var b strings.Builder
	for name, uid := range packages {
		fmt.Fprintf(&b, "%s %d 0 /data/user/0/%s default:targetSdkVersion=33 3003 0 1\n", name, uid, name)
	}
	must(t, os.WriteFile(list+".tmp", []byte(b.String()), 0o640))
	must(t, os.Rename(list+".tmp", list))
}

// TestAppFollowed captures an app from its installation on, follows it to another user id, and names it.
func TestAppFollowed(t *testing.T) {
	nettest.Require(t, "agent")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, _ := nettest.Pair(t)
		dir := t.TempDir()
		file, list := filepath.Join(dir, "app.pcapng"), filepath.Join(dir, "packages.list")
		install(t, list, map[string]int{"com.other": 10124})
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "veth0", "--comments", "all", "--packages", list, "--app", "com.example", "--uid", "10999"}, variant...), "udp port 9")...)
		p.Await(t, "com.example is not installed")
		size := 100
		send := func(uids ...int) {
			for _, uid := range uids {
				must(t, near.Do(uid, func() error { size++; return holdUDP(t, nettest.Far4, size) }))
			}
		}
		send(10123, 10124, 10999)
		sent := func() { nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 14+28+size }) }
		sent() // behind the kernel it is decided a little later
		install(t, list, map[string]int{"com.other": 10124, "com.example": 10123})
		p.Await(t, "filtered by 3 user and app ids from now on") // and its sandbox's
		send(10123, 10124, 1010123, 20123)
		sent()
		install(t, list, map[string]int{"com.other": 10124, "com.example": 10130})
		p.AwaitTimes(t, "app ids from now on", 2)
		send(10123, 10124, 10130)
		sent()
		p.Stop(t, syscall.SIGINT)
		f, err := nettest.Read(file)
		must(t, err)
		var got []string
		for _, p := range f.Packets {
			comment, _, _ := strings.Cut(p.Comment, " pid=")
			got = append(got, fmt.Sprintf("%d %s", p.Length-14-28, comment))
		}
		want := []string{"103 uid=10999", "104 uid=10123 app=com.example", "106 uid=1010123 app=com.example", "107 uid=20123 app=com.example", "110 uid=10130 app=com.example"}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q:\n%s", got, want, p.Stderr())
		}
	})
}
