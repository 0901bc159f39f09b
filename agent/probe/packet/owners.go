// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"droidtap/agent/sockdiag"
	"droidtap/android"
)

// owners tells whose the packets of one packet socket are, by asking the kernel for the socket of their flow. One goroutine
// uses it, but for unknown.
type owners struct {
	wanted   []uint32 // sorted
	l2       bool
	loopback bool
	ifindex  uint32
	conn     *sockdiag.Conn
	table    *sockdiag.Table
	missing  atomic.Uint64
	now      func() time.Time
	log      *slog.Logger
}

// newOwners is called in the network namespace of the capture.
func newOwners(uids []uint32, ifc android.Interface, log *slog.Logger) (*owners, error) {
	conn, err := sockdiag.Open()
	if err != nil {
		return nil, fmt.Errorf("find the owners of packets on %s: %w", ifc.Name, err)
	}
	o := &owners{
		wanted:   slices.Sorted(slices.Values(uids)),
		l2:       ifc.Framing() == android.L2,
		loopback: ifc.Loopback,
		ifindex:  uint32(ifc.Index),
		conn:     conn,
		table:    sockdiag.NewTable(conn),
		now:      time.Now,
		log:      log,
	}
	if err := conn.Missing(); err != nil {
		log.Warn(fmt.Sprintf("find the owners of packets on %s: %v: those packets are left out and counted", ifc.Name, err))
	}
	return o, nil
}

// admits tells whether a packet is of one of the uids, and notes which. On the loopback interface a packet is seen
// once and has two owners: a wanted one wins.
func (o *owners) admits(e *event, packet []byte) bool {
	uid, known := o.owner(packet, e.Direction == recordEgress)
	if o.loopback && !o.wants(uid, known) {
		if other, too := o.owner(packet, e.Direction != recordEgress); o.wants(other, too) || !known {
			uid, known = other, too
		}
	}
	if !known {
		o.missing.Add(1)
		return false
	}
	e.UID = uid
	return o.wants(uid, known)
}

func (o *owners) wants(uid uint32, known bool) bool {
	_, wanted := slices.BinarySearch(o.wanted, uid)
	return known && wanted
}

func (o *owners) owner(packet []byte, outgoing bool) (uid uint32, known bool) {
	flow, syn, ok := sockdiag.ParseFlow(packet, o.l2, outgoing)
	if !ok {
		return 0, false
	}
	flow.Ifindex = o.ifindex
	return o.table.Owner(flow, o.now(), syn)
}

// unknown returns how many packets were left out because their owner is not known.
func (o *owners) unknown() uint64 {
	if o == nil {
		return 0
	}
	return o.missing.Load()
}

// Close is called when nobody asks any more.
func (o *owners) Close() error {
	if o == nil {
		return nil
	}
	if times, first := o.table.Failures(); times > 0 {
		o.log.Warn(fmt.Sprintf("the kernel did not tell %d times whose packets are: %v", times, first))
	}
	return o.conn.Close()
}
