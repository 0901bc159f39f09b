// SPDX-License-Identifier: Apache-2.0

package mapped

import (
	"bytes"
	"encoding/binary"
	"math"
	"strings"
)

// parseMmap2 reads what follows the header of a PERF_RECORD_MMAP2 (include/uapi/linux/perf_event.h) without a build id, and returns false
// for what is none. It keeps nothing of b.
func parseMmap2(b []byte) (m Mapping, ok bool) {
	const names = 64
	if len(b) < names {
		return Mapping{}, false
	}
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	length := u64(b[16:])
	m = Mapping{
		PID:   int(int32(u32(b))), // what follows is the thread
		Start: u64(b[8:]), End: u64(b[8:]) + length, Offset: u64(b[24:]),
		Major: u32(b[32:]), Minor: u32(b[36:]), Inode: u64(b[40:]), Generation: u64(b[48:]),
	}
	// The rest is the protection and the flags, and the name with zeros up to a multiple of 8.
	end := bytes.IndexByte(b[names:], 0)
	if m.PID <= 0 || length == 0 || m.End < m.Start || length > math.MaxUint64-m.Offset || end < 0 {
		return Mapping{}, false
	}
	m.Name, m.Deleted = strings.CutSuffix(string(b[names:names+end]), gone)
	return m, true
}

// parseComm reads what follows the header of a PERF_RECORD_COMM, and returns false for one of a thread that is not its process's first.
func parseComm(b []byte) (pid int, ok bool) {
	if len(b) < 8 {
		return 0, false
	}
	pid = int(int32(binary.NativeEndian.Uint32(b)))
	return pid, pid > 0 && pid == int(int32(binary.NativeEndian.Uint32(b[4:])))
}
