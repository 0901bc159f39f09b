// SPDX-License-Identifier: Apache-2.0

package main

// traffic is what the sender sends.
type traffic struct {
	Name   string `json:"name"`
	Kind   way    `json:"kind"`
	Length int    `json:"length"` // of a frame, in bytes; of frames only
	Count  int    `json:"count"`  // packets; of a stream bytes
	Rate   int    `json:"rate"`   // packets, of a stream bytes, a second; 0 is as many as it can
	Flows  int    `json:"flows"`
	Links  int    `json:"links"` // interfaces that it takes in turns
	// Near: the capture is at the sender's end, where sockets have owners.
	Near bool `json:"near"`
}

// way is how packets are made.
type way string

const (
	// frames are UDP datagrams to nobody: the far end has them captured and drops them. One in rarity is to port.
	frames way = "frames"
	// sockets are datagrams of connected UDP sockets, and as many to them. Half of the sockets belong to app, the others to others.
	sockets way = "sockets"
	// flows are datagrams of one socket of app to many addresses.
	flows way = "flows"
	// stream is one TCP connection, in packets of up to 64 kB.
	stream way = "stream"
)

const (
	rarity = 100
	rare   = 443 // the port of one packet in rarity
	never  = 9   // the port of none

	socketCount = 100
	burst       = 32 // packets of one system call
	// firstPort is the local one of the first socket. Those of app are the first half of socketCount.
	firstPort = 40000
	app       = 10001
	other     = 20001
	// cycle is a burst of each socket and a burst to each.
	cycle = socketCount * burst * 2
)

var (
	flood      = traffic{Name: "64 B flood", Kind: frames, Length: 64, Count: 200_000, Flows: 256, Links: 1}
	paced      = traffic{Name: "64 B at 20k pps", Kind: frames, Length: 64, Count: 30_000, Rate: 20_000, Flows: 256, Links: 1}
	largeFlood = traffic{Name: "1,400 B flood", Kind: frames, Length: 1400, Count: 100_000, Flows: 256, Links: 1}
	largePaced = traffic{Name: "1,400 B at 20k pps", Kind: frames, Length: 1400, Count: 30_000, Rate: 20_000, Flows: 256, Links: 1}
	bulk       = traffic{Name: "TCP with GSO", Kind: stream, Count: 160 << 20, Rate: 400 << 20, Links: 1}
	spreadOut  = traffic{Name: "20 interfaces", Kind: frames, Length: 64, Count: 200_000, Flows: 256, Links: 20}
	talk       = traffic{Name: "sockets", Kind: sockets, Count: 30 * cycle, Links: 1, Near: true}
	long       = traffic{Name: "64 B at 50k pps", Kind: frames, Length: 64, Count: 80_000, Rate: 50_000, Flows: 256, Links: 1}
)

// brief is a quarter of a stream, which is enough to see what it costs without a capture.
func (t traffic) brief() traffic {
	t.Count /= 4
	return t
}

// load is a capture of some traffic, by several tools.
type load struct {
	Name    string
	Of      traffic
	Snaplen int // 0 is whole packets
	Buffer  int // MiB; 0 is bufferMiB
	Rotated bool
	Any     bool // by -i any, on one interface, too
	// Expected is how many of the sent packets match.
	Expected func(sent uint64) uint64
	// Tools: the first is what the others are compared with.
	Tools []tool
}

func all(sent uint64) uint64  { return sent }
func half(sent uint64) uint64 { return sent / 2 }
func some(sent uint64) uint64 { return (sent + rarity - 1) / rarity }
func none(uint64) uint64      { return 0 }

// Names of loads that targets and the chart ask for.
const (
	floodLoad      = "64 B, snaplen 96, flood"
	pacedLoad      = "64 B, snaplen 96, 20k pps"
	largeFloodLoad = "1,400 B, flood"
	largePacedLoad = "1,400 B, 20k pps"
	bulkLoad       = "TCP with GSO"
	manyLoad       = "-i any, 20 interfaces"
	rotatedLoad    = "a file a second, 50k pps"
)

func loads() []load {
	three := []tool{{Kind: tcpdump}, {Kind: dumpcap}, {Kind: agent}}
	two := []tool{{Kind: tcpdump}, {Kind: agent}}
	matching := func(expr string) []tool { return []tool{{Kind: tcpdump, Expr: expr}, {Kind: agent, Expr: expr}} }
	return []load{
		{Name: floodLoad, Of: flood, Snaplen: 96, Expected: all, Tools: append(three, tool{Kind: agent, Comments: "none"})},
		{Name: "1 % match, flood", Of: flood, Snaplen: 96, Expected: some, Tools: matching("port 443")},
		{Name: "no match, flood", Of: flood, Snaplen: 96, Expected: none, Tools: matching("port 9")},
		{Name: pacedLoad, Of: paced, Snaplen: 96, Expected: all, Tools: append(three, tool{Kind: agent, Comments: "none"})},
		{Name: largeFloodLoad, Of: largeFlood, Expected: all, Tools: three},
		{Name: largePacedLoad, Of: largePaced, Expected: all, Tools: three},
		{Name: bulkLoad, Of: bulk, Expected: all, Tools: two},
		{Name: manyLoad, Of: spreadOut, Snaplen: 96, Expected: all, Tools: two},
		{Name: "sockets of two apps, in and out", Of: talk, Snaplen: 96, Expected: all, Tools: []tool{
			{Kind: tcpdump}, {Kind: agent}, {Kind: agent, Comments: "all"}}},
		{Name: "the half of one app", Of: talk, Snaplen: 96, Expected: half, Tools: []tool{
			{Kind: tcpdump, Expr: appPorts}, {Kind: agent, UIDs: 1}, {Kind: agent, UIDs: 1000}}},
		{Name: rotatedLoad, Of: long, Snaplen: 96, Rotated: true, Expected: all, Tools: two},
	}
}
