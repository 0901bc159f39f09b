// SPDX-License-Identifier: Apache-2.0

package tlskey

import "hash/maphash"

// mostRecent is how many lines are remembered at least, and half of how many at most: 300 KB or so.
const mostRecent = 8192

// recentLines is the lines that were added last, by hashes that nobody outside can foresee. The zero value is ready to use.
type recentLines struct {
	seed       maphash.Seed
	young, old map[uint64]struct{} // young becomes old when it is full
}

// add remembers a line, and tells whether it is new.
func (r *recentLines) add(line []byte) bool {
	if r.young == nil {
		r.seed, r.young = maphash.MakeSeed(), map[uint64]struct{}{}
	}
	h := maphash.Bytes(r.seed, line)
	_, young := r.young[h]
	_, old := r.old[h]
	if young || old {
		return false
	}
	if len(r.young) == mostRecent {
		r.old, r.young = r.young, map[uint64]struct{}{}
	}
	r.young[h] = struct{}{}
	return true
}

// forget has a line that was added be new again.
func (r *recentLines) forget(line []byte) {
	h := maphash.Bytes(r.seed, line)
	delete(r.young, h)
	delete(r.old, h)
}
