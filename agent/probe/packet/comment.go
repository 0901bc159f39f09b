// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"droidtap/agent/pcapng"
	"droidtap/agent/process"
)

// ownerText is the comment on a packet, one line of printable UTF-8:
//
//	uid=10123 app=com.example,com.example.two pid=4242 comm=Thread 7
//
// The parts stand in this order, and a part that is not known is left out: app for a uid that no app has, pid and comm where the
// process is not known. app has several names, joined by commas, where they share the uid. comm comes last, since it may have spaces:
// it goes to the end of the line. A whole comment of "uid=unknown" is that of a packet with an owner that could not be found out;
// one that has no owner has no comment.
//
// In a name, what is not printable, and a backslash, is written as \xNN for each of its bytes; so are spaces and commas in app.
func ownerText(uid uint32, names []string, of *process.Process) string {
	if uid == pcapng.UIDUnknown {
		return "uid=unknown"
	}
	b := strconv.AppendUint([]byte("uid="), uint64(uid), 10)
	for i, name := range names {
		sep := ","
		if i == 0 {
			sep = " app="
		}
		b = appendName(append(b, sep...), name, " ,")
	}
	if of != nil {
		b = strconv.AppendInt(append(b, " pid="...), int64(of.PID), 10)
		if of.Comm != "" {
			b = appendName(append(b, " comm="...), of.Comm, "")
		}
	}
	return string(b)
}

// appendName appends a name that somebody chose, without what may not stand in it.
func appendName(b []byte, name, not string) []byte {
	for len(name) > 0 {
		r, size := utf8.DecodeRuneInString(name)
		if r == utf8.RuneError && size == 1 || !unicode.IsPrint(r) || r == '\\' || strings.ContainsRune(not, r) {
			for _, c := range []byte(name[:size]) {
				b = fmt.Appendf(b, `\x%02x`, c)
			}
		} else {
			b = append(b, name[:size]...)
		}
		name = name[size:]
	}
	return b
}
