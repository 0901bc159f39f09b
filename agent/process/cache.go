// SPDX-License-Identifier: Apache-2.0

package process

import "container/list"

// cache holds so many values, and lets that go which was used the longest ago.
type cache[K comparable, V any] struct {
	most  int
	order *list.List // of *slot[K, V], the last used first
	slots map[K]*list.Element
}

type slot[K comparable, V any] struct {
	key   K
	value V
}

func newCache[K comparable, V any](most int) *cache[K, V] {
	return &cache[K, V]{most: most, order: list.New(), slots: make(map[K]*list.Element)}
}

// get returns a value, and counts as a use of it.
func (c *cache[K, V]) get(key K) (V, bool) {
	e := c.slots[key]
	if e == nil {
		var none V
		return none, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*slot[K, V]).value, true
}

func (c *cache[K, V]) put(key K, value V) {
	if e := c.slots[key]; e != nil {
		e.Value.(*slot[K, V]).value = value
		c.order.MoveToFront(e)
		return
	}
	if len(c.slots) >= c.most {
		c.remove(c.order.Back().Value.(*slot[K, V]).key)
	}
	c.slots[key] = c.order.PushFront(&slot[K, V]{key, value})
}

func (c *cache[K, V]) remove(key K) {
	if e := c.slots[key]; e != nil {
		c.order.Remove(e)
		delete(c.slots, key)
	}
}

// each calls f with each key and value; f may remove it.
func (c *cache[K, V]) each(f func(K, V)) {
	for e := c.order.Front(); e != nil; {
		s := e.Value.(*slot[K, V])
		e = e.Next()
		f(s.key, s.value)
	}
}
