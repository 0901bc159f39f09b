// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const (
	serverPort = 7000
	otherMAC   = "02:ff:00:00:00:ff" // nobody's: what is sent there passes every hook and is answered by nobody
)

// serve answers on TCP and UDP with what it gets, for as long as the test runs.
func serve(t *testing.T, s nettest.Space, uid int) {
	t.Helper()
	// One after the other, so that packets of two connections have an order.
	serveBy(t, s, uid, func(connection func()) { connection() })
}

func serveBy(t *testing.T, s nettest.Space, uid int, run func(connection func())) {
	t.Helper()
	for _, host := range []string{"0.0.0.0", "::"} {
		tcp, udp := "tcp4", "udp4"
		if host == "::" {
			tcp, udp = "tcp6", "udp6"
		}
		address := net.JoinHostPort(host, fmt.Sprint(serverPort))
		listening := make(chan error, 1)
		var l net.Listener
		go func() {
			_ = s.Do(uid, func() (err error) {
				l, err = net.Listen(tcp, address)
				listening <- err
				if err != nil {
					return err
				}
				for {
					c, err := l.Accept()
					if err != nil {
						return err
					}
					run(func() {
						_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // no splice
						_ = c.Close()
					})
				}
			})
		}()
		must(t, <-listening)
		t.Cleanup(func() { _ = l.Close() })

		var u net.PacketConn
		go func() {
			_ = s.Do(uid, func() (err error) {
				u, err = net.ListenPacket(udp, address)
				listening <- err
				if err != nil {
					return err
				}
				b := make([]byte, 64<<10)
				for {
					n, from, err := u.ReadFrom(b)
					if err != nil {
						return err
					}
					if _, err := u.WriteTo(b[:n], from); err != nil {
						return err
					}
				}
			})
		}()
		must(t, <-listening)
		t.Cleanup(func() { _ = u.Close() })
	}
}

// talk sends size bytes to a server and reads them back, in exchanges of at most chunk bytes. It returns its port,
// with the connection closed at both ends.
func talk(network, host string, size, chunk int) (port int, err error) {
	c, port, err := hold(network, host, size, chunk)
	if c == nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if tcp, ok := c.(*net.TCPConn); ok && err == nil {
		if err := tcp.CloseWrite(); err != nil {
			return port, err
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			return port, fmt.Errorf("read at the end: %w", err)
		}
	}
	return port, err
}

// hold does the same and leaves the connection open; it is returned with an error, too, where there is one.
func hold(network, host string, size, chunk int) (c net.Conn, port int, err error) {
	c, err = net.Dial(network, net.JoinHostPort(host, fmt.Sprint(serverPort)))
	if err != nil {
		return nil, 0, err
	}
	if err := c.SetDeadline(time.Now().Add(nettest.Patience)); err != nil {
		return c, 0, err
	}
	switch a := c.LocalAddr().(type) {
	case *net.TCPAddr:
		port = a.Port
	case *net.UDPAddr:
		port = a.Port
	}
	b := bytes.Repeat([]byte("droidtap"), chunk/8+1)[:chunk]
	for sent := 0; sent < size; sent += chunk {
		if _, err := c.Write(b); err != nil {
			return c, port, err
		}
		if _, err := io.ReadFull(c, make([]byte, chunk)); err != nil {
			return c, port, err
		}
	}
	return c, port, nil
}

// talkAll is TCP with small and with GSO packets, and UDP with small and with fragmented packets, by IPv4 and IPv6.
func talkAll(v4, v6 string) error {
	for _, host := range []string{v4, v6} {
		for _, round := range []struct {
			network     string
			size, chunk int
		}{{"tcp", 600, 200}, {"tcp", 400000, 200000}, {"udp", 300, 100}, {"udp", 4000, 4000}} {
			if _, err := talk(round.network, host, round.size, round.chunk); err != nil {
				return fmt.Errorf("%s %s: %w", round.network, host, err)
			}
		}
	}
	return nil
}

// ping sends an ICMP echo request from a raw socket and waits for the answer.
func ping(host string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return err
	}
	to := &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(host).To4())}
	if err := unix.Sendto(fd, nettest.Echo([]byte("echo")), 0, to); err != nil {
		return err
	}
	_, err = unix.Read(fd, make([]byte, 1500))
	return err
}

// oddFrames are frames that no socket sends, from one end of the pair to the other.
func oddFrames(src, dst, src4, dst4, src6, dst6 string) [][]byte {
	udp := nettest.UDP(1234, 9, []byte("odd"))
	v4 := nettest.IPv4(src4, dst4, unix.IPPROTO_UDP, 0, nil, udp)
	v6 := nettest.IPv6(src6, dst6, unix.IPPROTO_UDP, udp)
	long := nettest.IPv4(src4, dst4, unix.IPPROTO_UDP, 0, nil, nettest.UDP(1234, 9, make([]byte, 1200)))
	frames := [][]byte{
		nettest.Ethernet(dst, src, nettest.TypeARP, nettest.ARP(src, src4, dst4)),
		nettest.Ethernet(dst, src, nettest.TypeIPv4, v4, [2]uint16{nettest.TypeVLAN, 0x6042}),
		nettest.Ethernet(dst, src, nettest.TypeIPv6, v6, [2]uint16{nettest.TypeVLAN, 42}),
		nettest.Ethernet(dst, src, nettest.TypeIPv4, long, [2]uint16{nettest.TypeVLAN, 0}),
		nettest.Ethernet(dst, src, nettest.TypeIPv4, v4, [2]uint16{nettest.TypeQinQ, 100}, [2]uint16{nettest.TypeVLAN, 42}),
		nettest.Ethernet(dst, src, nettest.TypeARP, nettest.ARP(src, src4, dst4), [2]uint16{nettest.TypeVLAN, 7}),
		// Router alert and padding.
		nettest.Ethernet(dst, src, nettest.TypeIPv4, nettest.IPv4(src4, dst4, unix.IPPROTO_UDP, 0, []byte{148, 4, 0, 0, 1, 1, 1, 0}, udp)),
		// The first and the last of three fragments: nobody can put them together.
		nettest.Ethernet(dst, src, nettest.TypeIPv4, nettest.IPv4(src4, dst4, unix.IPPROTO_UDP, 0x2000, nil, append(udp, 1, 2, 3, 4, 5))),
		nettest.Ethernet(dst, src, nettest.TypeIPv4, nettest.IPv4(src4, dst4, unix.IPPROTO_UDP, 4, nil, udp)),
		nettest.Ethernet(dst, src, nettest.TypeLocal, make([]byte, 1486)),
	}
	// Shorter than the headers that they announce.
	for n := 14; n <= 20; n++ {
		frames = append(frames, nettest.Ethernet(dst, src, nettest.TypeIPv4, v4)[:n])
		frames = append(frames, nettest.Ethernet(dst, src, nettest.TypeIPv6, v6)[:n])
	}
	return append(frames, nettest.Ethernet(dst, src, nettest.TypeIPv4, v4[:27]), nettest.Ethernet(dst, src, nettest.TypeLocal, nil))
}

// Lengths of marker frames. No other packet is as long.
const (
	startOut = 1411 + iota
	startIn
	endOut
	endIn
)

// markers are frames of that length, one for each protocol that a test filters by.
func markers(length int) [][]byte {
	const src4, dst4, src6, dst6 = "10.97.0.1", "10.97.0.2", "fd00:97::1", "fd00:97::2"
	fill := func(headers int) []byte { return make([]byte, length-headers) }
	return [][]byte{
		nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeARP, append(nettest.ARP(nettest.FarMAC, src4, dst4), fill(42)...)),
		nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeIPv4,
			nettest.IPv4(src4, dst4, unix.IPPROTO_UDP, 0, nil, nettest.UDP(5, 9, fill(42)))),
		nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeIPv4,
			nettest.IPv4(src4, dst4, unix.IPPROTO_ICMP, 0, nil, nettest.Echo(fill(42)))),
		nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeIPv6,
			nettest.IPv6(src6, dst6, unix.IPPROTO_UDP, nettest.UDP(5, 9, fill(62)))),
		nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeIPv4,
			nettest.IPv4(src4, dst4, unix.IPPROTO_TCP, 0, nil, nettest.Reset(5, serverPort, fill(54)))),
	}
}

// mark sends markers out of near and into it.
func mark(t *testing.T, near, far nettest.Space, out, in int) {
	t.Helper()
	near.Must(t, func() error { return nettest.Send("veth0", markers(out)...) })
	far.Must(t, func() error { return nettest.Send("veth0", markers(in)...) })
}

// between is cut of a file.
func between(t *testing.T, path string) []nettest.Packet {
	t.Helper()
	f, err := nettest.Read(path)
	must(t, err)
	return cut(f.Packets)
}

// cut returns the packets between the last marker of the start and the first one of the end.
func cut(packets []nettest.Packet) []nettest.Packet {
	first, last := 0, len(packets)
	for i, p := range packets {
		switch p.Length {
		case startOut, startIn:
			first = i + 1
		case endOut, endIn:
			last = min(last, i)
		}
	}
	return packets[first:max(first, last)]
}

// exchangeAll makes every kind of traffic, both ways.
func exchangeAll(t *testing.T, near, far nettest.Space) {
	t.Helper()
	near.Must(t, func() error {
		if err := talkAll(nettest.Far4, nettest.Far6); err != nil {
			return err
		}
		return errors.Join(ping(nettest.Far4), nettest.Send("veth0",
			oddFrames(nettest.NearMAC, nettest.FarMAC, nettest.Near4, nettest.Far4, nettest.Near6, nettest.Far6)...))
	})
	far.Must(t, func() error {
		if err := talkAll(nettest.Near4, nettest.Near6); err != nil {
			return err
		}
		return errors.Join(ping(nettest.Near4), nettest.Send("veth0",
			oddFrames(nettest.FarMAC, nettest.NearMAC, nettest.Far4, nettest.Near4, nettest.Far6, nettest.Near6)...))
	})
}

// describe prints packets one on a line: length, captured length, and the first bytes.
func describe(packets []nettest.Packet) []string {
	lines := make([]string, len(packets))
	for i, p := range packets {
		lines[i] = fmt.Sprintf("%d/%d %x", p.Length, len(p.Data), p.Data)
	}
	return lines
}

// abbreviate shortens the lines of a diff.
func abbreviate(diff string) string {
	lines := strings.Split(diff, "\n")
	for i, l := range lines {
		lines[i] = l[:min(len(l), 160)]
	}
	return strings.Join(lines[:min(len(lines), 60)], "\n")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
