// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"errors"
	"fmt"

	"golang.org/x/net/bpf"
)

// ErrUnsupported is wrapped by the error for an expression that libpcap compiles
// but that cannot run in a bpf program.
var ErrUnsupported = errors.New("not possible in a bpf program")

// unsupported says what of a classic program cbpfc would refuse, in the words of
// the expression, or returns nil.
func unsupported(cbpf []bpf.Instruction) error {
	for _, in := range cbpf {
		switch in := in.(type) {
		case bpf.LoadExtension:
			switch in.Num {
			case bpf.ExtLen:
			case bpf.ExtType:
				return fmt.Errorf("inbound and outbound are %w: use -Q in or -Q out", ErrUnsupported)
			case bpf.ExtInterfaceIndex:
				return fmt.Errorf("ifindex is %w: name the interface with -i", ErrUnsupported)
			default:
				return fmt.Errorf("an offset before the packet is %w", ErrUnsupported)
			}
		case bpf.Jump:
			if in.Skip > uint32(len(cbpf)) { // a backward jump: libpcap loops over the headers
				return fmt.Errorf("protochain is %w, since it loops: use proto for the first header behind IP", ErrUnsupported)
			}
		case bpf.LoadAbsolute:
			if in.Off > 1<<31-1 {
				return fmt.Errorf("an offset before the packet is %w", ErrUnsupported)
			}
		}
	}
	return nil
}
