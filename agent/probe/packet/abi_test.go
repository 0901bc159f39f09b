// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"strings"
	"testing"

	"droidtap/bpf"
	"droidtap/bpf/abitest"
)

// TestABI holds Go structs against the BTF of every object.
func TestABI(t *testing.T) {
	for _, name := range bpf.Names() {
		part := strings.Split(name, ".")
		if part[0] != "packet" {
			continue
		}
		spec, err := bpf.Open(part[0], part[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, mirror := range []struct {
			name string
			v    any
		}{
			{"event", event{}},
			{"settings", settings{}},
			{"counts", counts{}},
			{"verdicts", verdicts{}},
		} {
			t.Run(name+" struct "+mirror.name, func(t *testing.T) {
				abitest.Mirrors(t, spec, mirror.name, mirror.v)
			})
		}
	}
}

func TestEventSize(t *testing.T) {
	if n := binary.Size(event{}); n != eventSize {
		t.Errorf("eventSize is %d, and the struct has %d bytes", eventSize, n)
	}
}
