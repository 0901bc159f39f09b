// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
	"droidtap/android"
)

// port is an interface as the file knows it. It outlives the kernel's interface, which may come back under another index.
type port struct {
	portKey
	number       int           // of its block
	loopback     bool          // it is the loopback interface
	index        atomic.Uint32 // by which it is, or was last
	refused      atomic.Uint64 // packets that the filter, or their owner, left out here
	unattributed atomic.Uint64 // packets whose owner was not found out here
	// What follows is guarded by source.mu.
	hardware uint16         // ARPHRD_*, as it is, or was last
	gone     counts         // of indexes and rings that are not there any more
	rings    map[*ring]bool // of packet sockets, being read
	gap      plugin.Gap
	// instead says what it is captured by, and why not by what comes first in the plan; "" where it is.
	instead string
}

type portKey struct {
	name     string
	linkType pcapng.LinkType
}

func keyOf(ifc android.Interface) portKey { return portKey{ifc.Name, linkTypes[ifc.Framing()]} }

// ports are all interfaces that were captured. The zero value is ready to use.
type ports struct {
	known   map[portKey]*port
	byIndex atomic.Pointer[map[uint32]*port] // for readers, who take no lock
	order   atomic.Pointer[[]*port]          // all of them by their numbers, for the same
	left    map[uint32]departure             // indexes whose interface is not captured any more
}

// departure is the end of an index.
type departure struct {
	at     time.Duration // by the boot clock
	gone   bool          // its interface is, so that no packet comes there any more
	folded bool          // what was counted of it is kept elsewhere
}

// add makes an index that of an interface, and tells whether the file does not know it yet, or not so.
func (p *ports) add(ifc android.Interface) (of *port, fresh bool) {
	key := keyOf(ifc)
	of = p.known[key]
	if of == nil {
		of = &port{portKey: key, number: len(p.known), loopback: ifc.Loopback, rings: map[*ring]bool{}, gap: plugin.Gap{Name: ifc.Name}}
		if p.known == nil {
			p.known = map[portKey]*port{}
		}
		p.known[key] = of
		order := append(slices.Clip(p.all()), of)
		p.order.Store(&order)
	}
	fresh = of.index.Swap(uint32(ifc.Index)) != uint32(ifc.Index) || of.hardware != ifc.Type
	of.hardware = ifc.Type
	p.change(func(byIndex map[uint32]*port) { byIndex[uint32(ifc.Index)] = of })
	delete(p.left, uint32(ifc.Index))
	return of, fresh
}

// mostLeft is how many indexes that left are remembered. What comes of others, from a reader who is behind that many, is
// counted as records that could not be read.
const mostLeft = 256

// leave notes that an index is not captured any more, gone if its interface is. Records of it may still be on their way.
func (p *ports) leave(index int, now time.Duration, gone bool) {
	if p.left == nil {
		p.left = map[uint32]departure{}
	}
	p.left[uint32(index)] = departure{at: now, gone: gone}
}

// stale returns the indexes of which nothing is on its way any more.
func (p *ports) stale(now time.Duration) []uint32 {
	var folded []uint32
	for index, left := range p.left {
		if left.folded {
			folded = append(folded, index)
		}
	}
	slices.SortFunc(folded, func(a, b uint32) int { return cmp.Compare(p.left[b].at, p.left[a].at) })
	// The readers may be behind for as long as nobody takes what they write: they know the index for that long.
	n := 0
	for n < min(len(folded), mostLeft) && now-p.left[folded[n]].at < longest {
		n++
	}
	return folded[n:]
}

// forget drops indexes.
func (p *ports) forget(indexes []uint32) {
	p.change(func(byIndex map[uint32]*port) {
		for _, index := range indexes {
			delete(p.left, index)
			delete(byIndex, index)
		}
	})
}

func (p *ports) change(f func(map[uint32]*port)) {
	next := map[uint32]*port{}
	if now := p.byIndex.Load(); now != nil {
		maps.Copy(next, *now)
	}
	f(next)
	p.byIndex.Store(&next)
}

// of returns the interface of an index, or nil.
func (p *ports) of(index uint32) *port {
	now := p.byIndex.Load()
	if now == nil {
		return nil
	}
	return (*now)[index]
}

// numbered returns the interface of a block's number, which one of the packets has.
func (p *ports) numbered(number int) *port { return p.all()[number] }

// all returns the interfaces in the order of their blocks. The result must not be changed.
func (p *ports) all() []*port {
	order := p.order.Load()
	if order == nil {
		return nil
	}
	return *order
}

// describe is the block of an interface.
func (s *source) describe(p *port) *pcapng.Interface {
	return &pcapng.Interface{
		Index:    p.number,
		Name:     p.name,
		LinkType: p.linkType,
		Snaplen:  s.snaplen,
		Filter:   s.classifiers.filters.expr,
		Kernel:   p.index.Load(),
		Hardware: p.hardware,
	}
}
