// SPDX-License-Identifier: Apache-2.0

package capture

import "droidtap/agent/pcapng"

const (
	// slabSize is how many packets make a batch: enough that handing it on costs a packet nothing, and few enough that they
	// are in the cache when the writer comes to them.
	slabSize = 512
	// arenaSize is how many bytes of copied records make a batch; a larger record has its own memory.
	arenaSize = 256 << 10
	// fullSize is how many of them are enough.
	fullSize = arenaSize - arenaSize/4
	// spare is how many batches are kept for readers to use again: those that can be on their way at a time.
	spare = 16
)

// batch is some blocks on their way from a reader to the writer. What they are made of belongs to whoever holds the batch, and
// is the reader's again when it was recycled: nobody keeps a packet, or its bytes, beyond that.
type batch struct {
	blocks  []pcapng.Block
	packets []pcapng.Packet // to which blocks points; its capacity is all that there are. nil: this is no reader's batch
	arena   []byte          // where copies of records lie; nil: there was none yet
	used    int             // bytes of arena
	bytes   int             // of all records
	settled int             // of blocks
	more    bool            // records were behind its last one in the ring

	ring lender // in which records lie; nil: none does
	loan uint64 // by its number there
}

// lender is a ring in which records are left while they are written.
type lender interface {
	// free gives the place of the records of a loan back to the kernel, once those before them are free, too.
	free(loan uint64)
}

func newBatch() *batch {
	return &batch{packets: make([]pcapng.Packet, 0, slabSize), blocks: make([]pcapng.Block, 0, slabSize)}
}

// add puts the block that a record has become behind the others.
func (b *batch) add(block pcapng.Block, record []byte) {
	if p, ok := block.(*pcapng.Packet); ok && p == b.fresh() {
		b.packets = b.packets[:len(b.packets)+1]
	}
	b.blocks = append(b.blocks, block)
	if len(record) <= len(b.arena)-b.used { // else it has its own memory, or lies in the ring
		b.used += len(record)
	}
}

// fresh returns the packet that comes next. There is one until the batch is full.
func (b *batch) fresh() *pcapng.Packet { return &b.packets[:len(b.packets)+1][len(b.packets)] }

// full tells whether the batch is to be handed on.
func (b *batch) full() bool { return b.bytes > fullSize || len(b.blocks) == cap(b.blocks) }

// compact takes out the blocks that are nil. As a rule there are none.
func (b *batch) compact() {
	n := 0
	for ; n < len(b.blocks) && b.blocks[n] != nil; n++ {
	}
	for _, block := range b.blocks[n:] {
		if block != nil {
			b.blocks[n] = block
			n++
		}
	}
	clear(b.blocks[n:])
	b.blocks = b.blocks[:n]
}

// release gives what lies in a ring back to it: nothing of it may be used any more.
func (b *batch) release() {
	if b.ring != nil {
		b.ring.free(b.loan)
		b.ring = nil
	}
}

func (b *batch) reset() *batch {
	clear(b.blocks)
	b.blocks, b.packets = b.blocks[:0], b.packets[:0]
	b.used, b.bytes, b.settled, b.more = 0, 0, 0, false
	return b
}

// keep returns a batch of its own memory, no more than it needs, for one that has to wait. Blocks that are nil are left out. One that
// was kept before is returned as it is.
func (b *batch) keep() *batch {
	if b.packets == nil {
		return b
	}
	n, size := 0, 0
	for _, block := range b.blocks {
		if p, ok := block.(*pcapng.Packet); ok {
			n++
			size += cap(p.Data)
		}
	}
	kept := &batch{bytes: b.bytes, more: b.more}
	packets, arena := make([]pcapng.Packet, 0, n), make([]byte, 0, size)
	for i, block := range b.blocks {
		if block == nil {
			continue
		}
		if p, ok := block.(*pcapng.Packet); ok {
			packets = append(packets, *p)
			copied := &packets[len(packets)-1]
			at := len(arena)
			arena = append(arena, p.Data[:cap(p.Data)]...)
			copied.Data = arena[at : at+len(p.Data) : len(arena)]
			block = copied
		}
		kept.blocks = append(kept.blocks, block)
		if i < b.settled {
			kept.settled++
		}
	}
	return kept
}

// pool has the batches that readers may use again.
type pool chan *batch

func newPool() pool { return make(pool, spare) }

// get returns an empty batch, with an arena if records are to be copied.
func (p pool) get(copies bool) *batch {
	var b *batch
	select {
	case b = <-p:
	default:
		b = newBatch()
	}
	if copies && b.arena == nil {
		b.arena = make([]byte, arenaSize)
	}
	return b
}

// recycle gives a batch back when nobody needs what is in it.
func (p pool) recycle(b *batch) {
	b.release()
	if b.packets == nil {
		return
	}
	select {
	case p <- b.reset():
	default:
	}
}
