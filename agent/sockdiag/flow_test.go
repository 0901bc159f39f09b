// SPDX-License-Identifier: Apache-2.0

package sockdiag

import "net/netip"

const (
	a4, b4 = "10.1.0.1", "192.0.2.7"
	b6     = "2001:db8::7"
)

func flow(protocol uint8, local, remote string) Flow {
	return Flow{Protocol: protocol, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}
