// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"encoding/binary"
	"errors"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
)

var ne = binary.NativeEndian

// learnt is struct owner of bpf/src/owner.h, in a map shared with the programs.
type learnt struct {
	uid    uint32
	cgroup uint64
	seen   int64 // ns by the clock of the programs
	born   int64 // when a SYN that left began it, the same; 0: not known
}

// ports is struct ports: what a first fragment has.
type ports struct {
	src, dst uint16
	protocol uint8
	kind     uint8 // of ICMP: 1 for an echo request, 2 for a reply
	seen     int64
}

// shared are the maps of the programs; those that are nil hold nothing.
type shared struct{ flows, fragments, closed *ebpf.Map }

func flowKey(f sockdiag.Flow) (key [40]byte) {
	local, remote := f.Local.Addr().As16(), f.Remote.Addr().As16()
	copy(key[:], local[:])
	copy(key[16:], remote[:])
	be.PutUint16(key[32:], f.Local.Port())
	be.PutUint16(key[34:], f.Remote.Port())
	key[36] = f.Protocol
	return key
}

// learnt returns what the programs, or we, have learnt of a flow.
func (s shared) learnt(f sockdiag.Flow) (l learnt, found bool, err error) {
	if s.flows == nil {
		return learnt{}, false, nil
	}
	var value [32]byte
	if found, err = look(s.flows, flowKey(f), &value); !found {
		return learnt{}, false, err
	}
	return learnt{
		uid:    ne.Uint32(value[:]),
		cgroup: ne.Uint64(value[8:]),
		seen:   int64(ne.Uint64(value[16:])),
		born:   int64(ne.Uint64(value[24:])),
	}, true, nil
}

// learn tells the programs of a flow; with unlessKnown only if they have not learnt it yet.
func (s shared) learn(f sockdiag.Flow, l learnt, unlessKnown bool) error {
	if s.flows == nil {
		return nil
	}
	var value [32]byte
	ne.PutUint32(value[:], l.uid)
	ne.PutUint64(value[8:], l.cgroup)
	ne.PutUint64(value[16:], uint64(l.seen))
	ne.PutUint64(value[24:], uint64(l.born))
	flags := ebpf.UpdateAny
	if unlessKnown {
		flags = ebpf.UpdateNoExist
	}
	err := s.flows.Update(flowKey(f), value, flags)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return err
}

// first returns what the programs have kept of the first fragment.
func (s shared) first(of fragment) (p ports, found bool, err error) {
	if s.fragments == nil {
		return ports{}, false, nil
	}
	var key [40]byte
	src, dst := of.src.As16(), of.dst.As16()
	copy(key[:], src[:])
	copy(key[16:], dst[:])
	be.PutUint32(key[32:], of.id)
	key[36], key[37] = of.protocol, 6
	if of.src.Is4() {
		key[37] = 4
	}
	var value [16]byte
	if found, err = look(s.fragments, key, &value); !found {
		return ports{}, false, err
	}
	return ports{
		src:      be.Uint16(value[:]),
		dst:      be.Uint16(value[2:]),
		protocol: value[4],
		kind:     value[5],
		seen:     int64(ne.Uint64(value[8:])),
	}, true, nil
}

// look reads a map without a word about what is not in it.
func look(m *ebpf.Map, key, value any) (found bool, err error) {
	err = m.Lookup(key, value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}

// close tells the programs that a UDP socket was closed at a time.
func (s shared) close(socket sockdiag.Socket, now int64) error {
	if s.closed == nil {
		return nil
	}
	err := s.closed.Update(uint32(socket.Local.Port()), uint64(now), ebpf.UpdateAny)
	if s.flows != nil && socket.Remote.Port() != 0 {
		// It is of no use any more; most sockets are connected.
		f := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: socket.Local, Remote: socket.Remote}
		if e := s.flows.Delete(flowKey(f)); !errors.Is(e, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// forgetUDP removes all UDP flows: which of them have changed hands is not known.
func (s shared) forgetUDP() error {
	if s.flows == nil {
		return nil
	}
	for again := 0; ; again++ {
		var udp [][40]byte
		var key [40]byte
		var value [32]byte
		all := s.flows.Iterate()
		for all.Next(&key, &value) {
			if key[36] == unix.IPPROTO_UDP {
				udp = append(udp, key)
			}
		}
		for _, k := range udp {
			if err := s.flows.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return err
			}
		}
		// A map that changes while it is read may begin anew each time.
		if err := all.Err(); err == nil || again == 3 {
			return err
		}
	}
}
