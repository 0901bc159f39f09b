// SPDX-License-Identifier: Apache-2.0

package packet

// The keys and values of the maps of bpf/src/owner.h, which programs and agent share. TestABI holds them to it. A key of a
// hash map must have no holes: what lies in them would be a part of it.

// flowKey mirrors struct flow: the key of shared_flows. IPv4 addresses are v4-mapped. Of an ICMP echo the local port is the
// identifier and the remote one 0.
type flowKey struct {
	Local, Remote         [16]byte
	LocalPort, RemotePort [2]byte // big endian
	Protocol              uint8
	Pad                   [3]uint8
}

// flowOwner mirrors struct owner: a value of shared_flows.
type flowOwner struct {
	UID     uint32
	Jiffies uint32 // the programs' own; 0: unknown, which is what user space writes
	Cgroup  uint64 // 0: unknown
	Seen    uint64 // when it was learnt last, ns of CLOCK_MONOTONIC
}

// fragmentKey mirrors struct fragment: the key of shared_fragments.
type fragmentKey struct {
	Src, Dst [16]byte
	ID       [4]byte // big endian; IPv4's 16 bits are the lower ones
	Protocol uint8   // IPv4's; 0 for IPv6
	Version  uint8   // 4 or 6
	Pad      [2]uint8
}

// firstPorts mirrors struct ports: what the first fragment has, a value of shared_fragments.
type firstPorts struct {
	Src, Dst [2]byte // big endian, as in flowKey with the source as the local end
	Protocol uint8
	Kind     uint8 // of an ICMP message: 1 for an echo request, 2 for a reply
	Pad      [2]uint8
	Seen     uint64 // ns of CLOCK_MONOTONIC
}

// localPort mirrors struct port: the key of shared_closed. The value is when a UDP socket of the port was closed, ns of
// CLOCK_MONOTONIC in a uint64.
type localPort struct {
	Protocol uint8
	Pad      uint8
	Port     [2]byte // big endian
}
