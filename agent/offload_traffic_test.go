// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// segmentSize is the payload of the datagrams that the kernel makes of one write.
const segmentSize = 1200

// receiveUDP returns a socket that takes datagrams on a port: with gro 1 several in one, where they come so.
func receiveUDP(t *testing.T, s nettest.Space, port, gro int) (fd int) {
	t.Helper()
	s.Must(t, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { must(t, unix.Close(fd)) })
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, gro),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(nettest.Patience.Seconds())}),
			unix.Bind(fd, &unix.SockaddrInet6{Port: port}))
	})
	return fd
}

// sendSegments writes packets of up to 53 datagrams to a host, of which fd receives all before the next is sent.
func sendSegments(host string, port, fd int) error {
	c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, segmentSize)
	}); err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	b := []byte(strings.Repeat("droidtap", 8192))
	for _, size := range []int{1, segmentSize, segmentSize + 1, 10*segmentSize + 7, 53 * segmentSize} {
		if _, err := c.Write(b[:size]); err != nil {
			// Before Linux 6.11 a device must do the checksums (10154dbded6d).
			if errors.Is(err, unix.EIO) && size > segmentSize {
				return nil
			}
			return err
		}
		for got := 0; got < size; {
			n, err := unix.Read(fd, make([]byte, len(b)))
			if err != nil {
				return fmt.Errorf("%d of %d bytes of datagrams: %w", got, size, err)
			}
			got += n
		}
	}
	return nil
}

// exchangeBulk sends TCP and UDP both ways.
func exchangeBulk(t *testing.T, near, far nettest.Space) {
	t.Helper()
	for _, way := range []struct {
		from, to nettest.Space
		hosts    []string
	}{{near, far, []string{nettest.Far4, nettest.Far6}}, {far, near, []string{nettest.Near4, nettest.Near6}}} {
		sockets := []int{receiveUDP(t, way.to, 7100, 0), receiveUDP(t, way.to, 7101, 1)}
		way.from.Must(t, func() error {
			for _, host := range way.hosts {
				if _, err := talk("tcp", host, 1200000, 200000); err != nil {
					return fmt.Errorf("tcp %s: %w", host, err)
				}
				for i, fd := range sockets {
					if err := sendSegments(host, 7100+i, fd); err != nil {
						return fmt.Errorf("udp %s: %w", host, err)
					}
				}
			}
			return nil
		})
	}
}

// sendGSO sends a TCP or UDP packet out of an interface as a driver gets it from the stack: longer than the MTU, to be cut
// at segmentSize, and with a partial checksum. Linux include/uapi/linux/virtio_net.h, struct virtio_net_hdr.
func sendGSO(ifname string, frame []byte) error {
	h, ok := nettest.ParseEthernet(string(frame))
	if !ok {
		return fmt.Errorf("no TCP or UDP packet: %x", frame[:min(len(frame), 60)])
	}
	packet := h.Segment(string(frame), len(frame), false)[0]
	ifc, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	const needsChecksum, gsoTCPv4, gsoTCPv6, gsoUDP = 1, 1, 4, 5
	gso := byte(gsoTCPv4)
	switch {
	case h.Protocol == unix.IPPROTO_UDP:
		gso = gsoUDP
	case packet[h.IP]>>4 == 6:
		gso = gsoTCPv6
	}
	b := []byte{needsChecksum, gso}
	for _, field := range []int{h.Payload, segmentSize, h.Header, h.At - h.Header} {
		b = binary.NativeEndian.AppendUint16(b, uint16(field))
	}
	if err := unix.Sendto(fd, append(b, packet...), 0, &unix.SockaddrLinklayer{Ifindex: ifc.Index}); err != nil {
		return fmt.Errorf("send %d bytes on %s: %w", len(packet), ifname, err)
	}
	return nil
}

// foreign4 is an address at which near is not: what is sent there comes in, and nobody answers it.
const foreign4, foreign6 = "10.97.0.1", "fd00:97::1"

// exchangeForeign sends long packets from far to near that are for somebody else: as for what is forwarded, there is no
// socket that would tell the kernel how to put them together. With tags others leave near, with the tag beside them: see
// feed.
func exchangeForeign(t *testing.T, far nettest.Space, tags ...[2]uint16) {
	t.Helper()
	payload := []byte(strings.Repeat("droidtap", 2000))
	ack := nettest.Reset(5, serverPort, payload)
	ack[13] = 0x10 // nothing puts resets together
	far.Must(t, func() error {
		for _, way := range []struct{ ifname, dst, src, src4, src6 string }{
			{"veth0", nettest.NearMAC, nettest.FarMAC, nettest.Far4, nettest.Far6},
			{"feed0", nettest.FarMAC, nettest.NearMAC, nettest.Near4, nettest.Near6},
		} {
			if way.ifname == "feed0" && tags == nil {
				continue
			}
			for protocol, l4 := range map[byte][]byte{unix.IPPROTO_TCP: ack, unix.IPPROTO_UDP: nettest.UDP(5, 9, payload)} {
				v4, v6 := nettest.IPv4(way.src4, foreign4, protocol, 0x4000, nil, l4), nettest.IPv6(way.src6, foreign6, protocol, l4)
				if err := errors.Join(
					sendGSO(way.ifname, nettest.Ethernet(way.dst, way.src, nettest.TypeIPv4, v4, tags...)),
					sendGSO(way.ifname, nettest.Ethernet(way.dst, way.src, nettest.TypeIPv6, v6, tags...)),
				); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
