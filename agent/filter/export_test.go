// SPDX-License-Identifier: Apache-2.0

package filter

import "droidtap/agent/pcapng"

// Simplified is Compile without libpcap's optimiser: every expression is handled as a long one is.
func Simplified(expr string, l pcapng.LinkType) (Filter, error) {
	f := Filter{expr: expr, linkType: l}
	var err error
	if f.raw, err = compile(expr, l, 0, false); err != nil {
		return f, err
	}
	if f.program, err = parse(f.raw); err != nil {
		return f, err
	}
	f.program = simplify(f.program)
	return f, nil
}

// Endless tells whether the program would run for ever over a whole packet, as libpcap's interpreter then does.
func Endless(f Filter, packet []byte) bool {
	_, ends := f.run(packet, Meta{Length: uint32(len(packet))})
	return !ends
}
