// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestKeysDiffer in all that a flow has, for Is and Hash, and each end of a flow has the same EitherWay.
func TestKeysDiffer(t *testing.T) {
	seed := [4]uint64{1, 2, 3, 4}
	keys := []Key{
		keyOf(flow(unix.IPPROTO_TCP, a4+":1", b4+":2")), keyOf(flow(unix.IPPROTO_UDP, a4+":1", b4+":2")),
		keyOf(flow(unix.IPPROTO_TCP, a4+":3", b4+":2")), keyOf(flow(unix.IPPROTO_TCP, a4+":1", b4+":3")),
		keyOf(flow(unix.IPPROTO_TCP, b4+":1", b4+":2")), keyOf(flow(unix.IPPROTO_TCP, a4+":1", a4+":2")),
		keyOf(flow(unix.IPPROTO_TCP, "["+a6+"]:1", "["+b6+"]:2")), keyOf(flow(unix.IPPROTO_TCP, "["+a6+"]:1", "[fd00:0:0:1::1]:2")),
		keyOf(flow(unix.IPPROTO_TCP, "["+a6+"]:1", "[fd00::2]:2")), keyOf(flow(unix.IPPROTO_TCP, "[fd01::1]:1", "["+b6+"]:2")),
	}
	for i := range keys {
		for j := range keys {
			if same := keys[i].Is(&keys[j]); same != (i == j) || same != (keys[i].Hash(&seed) == keys[j].Hash(&seed)) {
				t.Errorf("%x and %x: the same %v, hashes %x and %x", keys[i], keys[j], same, keys[i].Hash(&seed), keys[j].Hash(&seed))
			}
		}
	}
	for _, ends := range [][2]string{{a4 + ":1", b4 + ":2"}, {a4 + ":1", a4 + ":2"}, {"[" + a6 + "]:1", "[" + b6 + "]:1"}, {"[fd00::1]:1", "[fd00::2]:1"}} {
		k, other := keyOf(flow(unix.IPPROTO_TCP, ends[0], ends[1])), keyOf(flow(unix.IPPROTO_TCP, ends[1], ends[0]))
		if either := k.EitherWay(); either != other.EitherWay() || either != k && either != other {
			t.Errorf("%v: %x and %x", ends, either, other.EitherWay())
		}
	}
}
