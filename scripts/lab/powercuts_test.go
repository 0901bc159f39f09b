// SPDX-License-Identifier: Apache-2.0

//go:build bench

package lab

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestPowerCuts is make bench-powercut: DROIDTAP_POWERCUTS cuts of a phone that captures in every way.
func TestPowerCuts(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("DROIDTAP_POWERCUTS"))
	if err != nil {
		t.Fatal(err)
	}
	p := bootDisk(t, "bookworm", "ext4", "")
	p.push(t, os.Getenv("DROIDTAP_AGENT"), agent)
	p.root(t, "sync")
	p.do(t, "reboot")
	c := powerCuts{seed: uint64(time.Now().UnixNano())}
	for _, capture := range []struct{ name, flags string }{
		{"default", "-w F/c.pcapng"},
		{"U", "-U -w F/c.pcapng"},
		{"rotated", "-b filesize:200 -w F/c.pcapng"},
		{"zstd", "-w F/c.pcapng.zst"},
	} {
		folder := "/local/tmp/cut/" + capture.name
		p.root(t, "mkdir -p /data"+folder)
		a := p.start(t, "shell", "su -c '"+agent+" -i wlan0 "+strings.ReplaceAll(capture.flags, "F", "/data"+folder)+" "+streamExpr+"'")
		a.until(t, readyLine)
		c.folders = append(c.folders, folder)
	}
	p.shell(t, streamLine(12_000, 1))
	c.log = p.readLog(t, thisBoot)
	p.root(t, "pkill -INT -x agent")
	c.run(t, n)
	c.show(t, mostBehind)
}
