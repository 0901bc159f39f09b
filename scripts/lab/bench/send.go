// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const (
	flows = 256
	batch = 16 // frames that are sent by one call
)

// frames returns one of each flow: datagrams from the far end to nobody.
func frames(size int) [][]byte {
	const nobody = "02:ff:00:00:00:ff"
	const headers = 14 + 20 + 8
	payload := make([]byte, size-headers)
	var all [][]byte
	for n := range flows {
		datagram := nettest.UDP(uint16(20000+n), other, payload)
		packet := nettest.IPv4(nettest.Far4, nettest.Near4, unix.IPPROTO_UDP, 0, nil, datagram)
		all = append(all, nettest.Ethernet(nobody, nettest.FarMAC, nettest.TypeIPv4, packet))
	}
	return all
}

// send sends a load out of the device of the namespace that the thread is in, past its queue.
func send(t traffic) error {
	fd, err := nettest.PacketSocket(device)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := nettest.PassQueue(fd); err != nil {
		return err
	}
	all := nettest.NewBurst(frames(t.size))
	for sent, start := 0, time.Now(); sent < t.packets; {
		if t.second > 0 {
			due := start.Add(time.Duration(sent) * time.Second / time.Duration(t.second))
			pause := unix.NsecToTimespec(max(0, int64(time.Until(due))))
			_ = unix.Nanosleep(&pause, nil) // the runtime's signals may cut it short
		}
		at := sent % flows
		n := min(batch, t.packets-sent, flows-at)
		if err := all.Send(fd, at, n); err != nil {
			return err
		}
		sent += n
	}
	return nil
}
