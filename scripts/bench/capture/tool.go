// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// kind is a tool.
type kind string

const (
	tcpdump kind = "tcpdump"
	dumpcap kind = "dumpcap"
	agent   kind = "agent"
)

// ready is what it says when it captures.
func (k kind) ready() string {
	switch k {
	case dumpcap:
		return "File: "
	case agent:
		return "capturing on "
	default:
		return "listening on "
	}
}

// keeps is how long it may leave packets in the kernel, or in memory, until it reads and writes them: the time-out that it gives
// libpcap (tcpdump.c, dumpcap.c CAP_READ_TIMEOUT), and what the agent waits when packets are few.
func (k kind) keeps() time.Duration {
	if k == dumpcap {
		return 350 * time.Millisecond
	}
	return 1100 * time.Millisecond
}

// tool is one with its options.
type tool struct {
	Kind     kind
	Expr     string
	Comments string // of the agent; "" is first
	UIDs     int    // how many the agent has a list of, app among them; 0 is no list
}

func (t tool) String() string {
	name := string(t.Kind)
	if t.Comments != "" {
		name += " --comments " + t.Comments
	}
	if t.UIDs > 0 {
		name += fmt.Sprintf(" --uid, %d of them", t.UIDs)
	}
	return strings.TrimSpace(name + " " + t.Expr)
}

// appPorts matches the packets that are of app's sockets.
var appPorts = fmt.Sprintf("portrange %d-%d", firstPort, firstPort+socketCount/2-1)

// setting is what all tools have in common in a capture.
type setting struct {
	Device  string
	Snaplen int // 0 is whole packets
	Buffer  int // MiB
	Dir     string
	Rotated bool // a file a second
	AtOnce  bool // each packet is written at once
}

// command is the tool's in that setting; path is the agent's.
func (t tool) command(path string, s setting) []string {
	argv := []string{string(t.Kind), "-i", s.Device, "-s", strconv.Itoa(s.Snaplen)}
	file, buffer := "capture.pcap", s.Buffer<<10
	switch t.Kind {
	case tcpdump:
		argv = append(argv, "-n", "-Z", "root")
	case dumpcap:
		argv = append(argv, "-q")
		file, buffer = "capture.pcapng", s.Buffer
		if s.Snaplen == 0 {
			argv[4] = "262144" // its 0 is that, too, but not in all versions
		}
	case agent:
		argv[0] = path
		file = "capture.pcapng"
		argv = append(argv, "--comments", t.comments())
		if t.UIDs > 0 {
			argv = append(argv, "--uid", t.uids())
		}
	}
	argv = append(argv, "-B", strconv.Itoa(buffer))
	if s.Rotated {
		file = "%s-" + file
		argv = append(argv, "-G", "1")
	}
	if s.AtOnce && t.Kind != dumpcap { // which has no choice
		argv = append(argv, "-U")
	}
	argv = append(argv, "-w", filepath.Join(s.Dir, file))
	if t.Expr != "" {
		argv = append(argv, t.Expr)
	}
	return argv
}

func (t tool) comments() string {
	if t.Comments == "" {
		return "first"
	}
	return t.Comments
}

// uids is the list: app, and others that nobody here has.
func (t tool) uids() string {
	list := []string{strconv.Itoa(app)}
	for n := 1; n < t.UIDs; n++ {
		list = append(list, strconv.Itoa(app+n))
	}
	return strings.Join(list, ",")
}
