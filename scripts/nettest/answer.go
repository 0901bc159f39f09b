// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Answer sends back what comes by UDP and TCP to an address of the space, which it returns with its port, for as long as the test runs.
func Answer(t testing.TB, s Space, addr string) netip.AddrPort {
	t.Helper()
	var u net.PacketConn
	var l net.Listener
	s.Must(t, func() (err error) {
		if u, err = net.ListenPacket("udp", net.JoinHostPort(addr, "0")); err != nil {
			return err
		}
		l, err = net.Listen("tcp", u.LocalAddr().String())
		return err
	})
	t.Cleanup(func() { _ = u.Close(); _ = l.Close() })
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(b[:n], from)
		}
	}()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return netip.MustParseAddrPort(u.LocalAddr().String())
}

// Ask sends a text from the space and waits until it is back.
func Ask(s Space, network string, to netip.AddrPort, text string) error {
	return s.Do(0, func() error {
		c, err := net.DialTimeout(network, to.String(), Patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(Patience)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("%s to %s: %w", network, to, err)
		}
		if string(got) != text {
			return fmt.Errorf("%s to %s: %q came back", network, to, got)
		}
		return nil
	})
}
