// SPDX-License-Identifier: Apache-2.0

package packet

// recent keeps values by the hashes of their keys that were used last: at least most of them, at most twice as many, and those that
// were used since turn was called the last but one time. A value knows its key: whoever gets another's, which must be rare, puts his
// own in its place. It is not safe for concurrent use.
type recent[V any] struct {
	most       int
	young, old index[V] // what is used is young; when there are most of these, they are old and those are forgotten
}

func newRecent[V any](most int) recent[V] {
	return recent[V]{most: most, young: newIndex[V](leastSlots), old: newIndex[V](leastSlots)}
}

// get returns the value of a hash, nil if there is none.
func (r *recent[V]) get(hash uint64) *V {
	if v := r.young.find(hash).value; v != nil {
		return v
	}
	v := r.old.find(hash).value
	if v != nil {
		r.put(hash, v)
	}
	return v
}

func (r *recent[V]) put(hash uint64, v *V) {
	if r.young.used >= r.most {
		r.turn()
	}
	r.young.put(hash, v)
}

// turn makes old what is young.
func (r *recent[V]) turn() { r.old, r.young = r.young, newIndex[V](leastSlots) }

// index finds values by hashes. A value's slot is the first free one from that on which its hash tells.
type index[V any] struct {
	slots []slot[V] // their number is a power of 2, and some are free
	used  int
}

// slot has a value, or is free.
type slot[V any] struct {
	hash  uint64
	value *V
}

// leastSlots is how many an index has at first.
const leastSlots = 1 << 6

func newIndex[V any](slots int) index[V] { return index[V]{slots: make([]slot[V], slots)} }

// find returns the slot of a hash, or the free one that would be its.
func (x *index[V]) find(hash uint64) *slot[V] {
	mask := uint64(len(x.slots) - 1)
	for i := hash; ; i++ {
		if p := &x.slots[i&mask]; p.hash == hash || p.value == nil {
			return p
		}
	}
}

// put puts in a value, in the slot of another of the hash if there is one.
func (x *index[V]) put(hash uint64, v *V) {
	if x.used >= len(x.slots)/5*4 { // searches become long
		larger := newIndex[V](2 * len(x.slots))
		for _, p := range x.slots {
			if p.value != nil {
				larger.put(p.hash, p.value)
			}
		}
		*x = larger
	}
	p := x.find(hash)
	if p.value == nil {
		x.used++
	}
	*p = slot[V]{hash, v}
}
