// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"testing"

	"droidtap/agent/pcapng"
)

// BenchmarkDecode has a packet of 96 bytes in the cache.
func BenchmarkDecode(b *testing.B) {
	d := testDecoder(96)
	record := raw(event{Time: 5, Ifindex: ethernetIndex, Len: 1400, Caplen: 96, UID: 10123, Direction: recordIngress}, string(make([]byte, 128)))
	packets := make([]pcapng.Packet, 512)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if ok, err := d.decode(record, &packets[n%len(packets)]); !ok {
			b.Fatal(err)
		}
	}
}
