// SPDX-License-Identifier: Apache-2.0

package packet

// recent is a map of bounded size that keeps the keys that were used last: at least most of them, at most twice as many. It is
// not safe for concurrent use.
type recent[K comparable, V any] struct {
	most       int
	young, old map[K]V // what is used is young; when there are most of these, they are old and those are forgotten
}

func (r *recent[K, V]) get(key K) (v V, known bool) {
	if v, known = r.young[key]; known {
		return v, true
	}
	if v, known = r.old[key]; known {
		r.put(key, v)
	}
	return v, known
}

func (r *recent[K, V]) put(key K, v V) {
	if len(r.young) >= r.most || r.young == nil {
		r.old, r.young = r.young, make(map[K]V)
	}
	r.young[key] = v
}
