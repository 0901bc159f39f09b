// SPDX-License-Identifier: Apache-2.0

package android

import (
	"errors"
	"testing"
)

func TestCheckNamespace(t *testing.T) {
	const loopback = 1 // LOOPBACK_IFINDEX of include/net/flow.h
	tests := map[string]struct {
		of   []Interface
		want error
	}{
		"known":                  {of: []Interface{{Index: loopback, Name: "lo"}}},
		"known behind another":   {of: []Interface{{Index: 1 << 30, Name: "wlan0"}, {Index: loopback, Name: "lo"}}},
		"an index under another": {of: []Interface{{Index: loopback, Name: "wlan0"}}, want: ErrOtherNamespace},
		"a name under another":   {of: []Interface{{Index: 1 << 30, Name: "lo"}}, want: ErrOtherNamespace},
		"none":                   {want: ErrOtherNamespace},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := CheckNamespace(test.of); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}
