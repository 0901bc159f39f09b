// SPDX-License-Identifier: Apache-2.0

package tlskey

import "encoding/binary"

// random is a client random: it names a connection in a key log.
type random [32]byte

// Content types of TLS records (RFC 8446, 5.1).
const (
	handshake       = 22
	applicationData = 23
)

// clientHello returns the random of the ClientHello that a segment of a TCP stream begins with, or false.
func clientHello(payload []byte) (r random, is bool) {
	// A record's head: type, legacy_record_version, length. A message's: msg_type, length of 24 bits (RFC 8446, 4 and 5.1).
	const head, message, version = 5, 4, 2
	if len(payload) < head+message+version+len(r) || payload[0] != handshake || payload[1] != 3 || payload[head] != 1 {
		return r, false
	}
	return random(payload[head+message+version:]), true
}

// encrypted tells whether a segment of a TCP stream begins like a record that nobody reads without secrets.
func encrypted(payload []byte) bool {
	const longest = 1<<14 + 2048 // of TLS 1.2 (RFC 5246, 6.2.3); that of 1.3 is shorter
	if len(payload) < 5 || payload[0] != applicationData || payload[1] != 3 || payload[2] > 4 {
		return false
	}
	n := binary.BigEndian.Uint16(payload[3:])
	return n > 0 && n <= longest
}
