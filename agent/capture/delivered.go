// SPDX-License-Identifier: Apache-2.0

package capture

// delivered counts the packets in a file by interface, for its statistics: those that are queued, too, until the output fails.
type delivered struct {
	of     map[int]uint64
	queued []int  // the interfaces of packets that are on their way to the output, in their order
	before uint64 // packets that have reached an output, without them
}

// add counts a packet that is about to be queued.
func (d *delivered) add(index int) {
	d.of[index]++
	d.queued = append(d.queued, index)
}

// drop takes back the last one, which is not queued after all.
func (d *delivered) drop() {
	last := len(d.queued) - 1
	d.of[d.queued[last]]--
	d.queued = d.queued[:last]
}

// arrived is told that nothing is queued any more, and how many packets have reached an output in all.
func (d *delivered) arrived(packets uint64) { d.queued, d.before = d.queued[:0], packets }

// failed takes back those of the queued packets that have not reached the output.
func (d *delivered) failed(packets uint64) {
	for _, index := range d.queued[min(packets-d.before, uint64(len(d.queued))):] {
		d.of[index]--
	}
	d.arrived(packets)
}

// reset begins another file. Nothing is queued.
func (d *delivered) reset() { clear(d.of) }
