// SPDX-License-Identifier: Apache-2.0

// Package workload makes traffic of which each packet's owner is known, and says whose a packet is. One process for each user
// speaks at the near end, which is captured, with one at the far end; what is asked of the far end goes by socket pairs and not by
// the network. The near port of a flow, or the id of an echo, says the user and the case.
package workload

import "net/netip"

// UIDs are those of the near end's processes.
var UIDs = []int{10123, 10124, 10125, 0}

// None is the uid of a packet that has no owner.
const None = -1

// Case is a way in which packets come to be.
type Case int

// The cases of one user.
const (
	TCP          Case = iota
	TCPOld            // connected before the capture
	TCPAbort          // reset by either end
	TCPLate           // data for a socket that is closed
	TCPTimeWait       // a segment for a connection in TIME_WAIT
	TCPServer         // listening before the capture
	TCPServerNew      // and since a moment
	TCPRefused
	TCPLoss // retransmissions, both ways
	UDP
	UDPUnconnected
	UDPServer
	UDPServerNew
	UDPRefused // answered by an ICMP error
	Fragments  // 4 KB of UDP, both ways
	Extensions // IPv6 destination options and hop-by-hop options
	Handed     // used by another process than the one that made the socket
	Chowned    // made by root and given to the user by fchown, as netd does
	Ping       // an ICMP socket
	PingRaw
	End   // the last packets
	cases // how many

	// Ports that are not one user's.
	UDPReuse    // a port that several users have one after the other, a moment apart
	UDPReuseNow // and at once
	TCPReuse
	Closed    // nobody's port
	Echoed    // the kernel answers the far end's echo requests
	Forwarded // neither end is the near one
	Kernel    // ARP, neighbour discovery, multicast reports
	others
)

var names = [others]string{
	TCP: "tcp", TCPOld: "tcp old", TCPAbort: "tcp abort", TCPLate: "tcp late data", TCPTimeWait: "tcp time-wait", TCPServer: "tcp server",
	TCPServerNew: "tcp new server", TCPRefused: "tcp refused", TCPLoss: "tcp loss", UDP: "udp", UDPUnconnected: "udp unconnected",
	UDPServer: "udp server", UDPServerNew: "udp new server", UDPRefused: "udp refused", Fragments: "fragments", Extensions: "extension headers",
	Handed: "handed", Chowned: "fchown", Ping: "ping", PingRaw: "raw ping", End: "end", UDPReuse: "udp port reused",
	UDPReuseNow: "udp port reused at once", TCPReuse: "tcp port reused", Closed: "closed port", Echoed: "echo answered",
	Forwarded: "forwarded", Kernel: "kernel",
}

// Cases are all of which there are packets.
func Cases() (all []Case) {
	for c := range others {
		if c != cases && c != Kernel { // ARP and neighbour discovery may have been before
			all = append(all, c)
		}
	}
	return all
}

func (c Case) String() string { return names[c] }

const (
	firstPort = 20000
	perCase   = 100
	perUser   = int(cases) * perCase
)

// port is the n-th near port of a user's case.
func port(user int, c Case, n int) int { return firstPort + user*perUser + int(c)*perCase + n%perCase }

// sharedPort is the near port of a case that is not one user's.
func sharedPort(c Case) int { return firstPort + len(UIDs)*perUser + int(c-cases)*perCase }

// caseOf returns whose near port it is, None where it is nobody's or not one user's.
func caseOf(port int) (uid int, c Case, known bool) {
	port -= firstPort
	switch user := port / perUser; {
	case port < 0:
		return None, 0, false
	case user < len(UIDs):
		return UIDs[user], Case(port % perUser / perCase), true
	default:
		c = cases + Case((port-len(UIDs)*perUser)/perCase)
		return None, c, c > cases && c < others
	}
}

// The far end's ports.
const (
	echoPort   = 7001 // UDP and TCP
	latePort   = 7002 // sends when the near end has closed
	abortPort  = 7003 // resets instead of an answer
	lossPort   = 7004 // loses segments that come
	optionPort = 7005 // sends destination options
	closedPort = 7009
)

// EndLength is the length of the payload of the packets of End: no other is as long.
const EndLength = 1357

// Net are the addresses of the ends; behind the near one is another, for which it forwards.
type Net struct {
	Near4, Near6, Far4, Far6, Behind4, Behind6 netip.Addr
}

// Host is the pair of nettest with a third namespace behind it.
func Host() Net {
	a := netip.MustParseAddr
	return Net{a("10.99.0.1"), a("fd00:99::1"), a("10.99.0.2"), a("fd00:99::2"), a("10.98.0.2"), a("fd00:98::2")}
}

// Lab is the phone's wlan0.
func Lab() Net {
	a := netip.MustParseAddr
	return Net{a("192.168.49.1"), a("fd00:99::1"), a("192.168.49.2"), a("fd00:99::2"), a("10.98.0.2"), a("fd00:98::2")}
}

// Comm is the name of the process of a user.
func Comm(uid int) string {
	return map[int]string{10123: "w alice", 10124: "w bob", 10125: "w carol", 0: "w root"}[uid]
}

const (
	// ReuseComm is the name of the process whose sockets have several owners.
	ReuseComm = "w reuse"
	// RunComm is that of root's process that starts the others, uses sockets of theirs, and makes some for them.
	RunComm = "w run"
)
