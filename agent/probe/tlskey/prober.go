// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"io"

	"droidtap/agent/plugin"
)

// probing is a prober that is open.
type probing interface {
	prober
	io.Closer
}

// newProber returns the prober of the variant that runs.
func newProber(t plugin.Target) (probing, error) {
	return &programs{load: t.Load}, nil
}

// Close does nothing: each probe is closed by itself.
func (p *programs) Close() error { return nil }
