// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bufio"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"droidtap/agent/tlslib"
)

// session is what leads to a client random, as SSL does: base is behind a pointer, and random behind an offset.
type session struct {
	_    [5]uint64
	base *base
}

type base struct {
	_      [3]uint64
	random [32]byte
}

// logSecret is the function that is probed, in place of a library's. Nothing is ahead of its first instruction, which makes room on the
// stack for a call, as a library's does: the kernel need not have the processor step over that.
//
//go:noinline
//go:nosplit
func logSecret(s *session, label *byte, secret *byte, size, labelSize uint64) uint64 {
	return nothing(s, label, secret) + size + labelSize
}

//go:noinline
//go:nosplit
func nothing(*session, *byte, *byte) uint64 { return 0 }

// calls is where Go's internal ABI has the five arguments.
var calls = map[string][5]tlslib.Register{
	"amd64": {10, 5, 11, 14, 13}, // rax, rbx, rcx, rdi, rsi
	"arm64": {0, 1, 2, 3, 4},
}

// target returns logSecret in the file of this program, as a finder would.
func target(t testing.TB, sized bool) (*os.File, tlslib.Function) {
	t.Helper()
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	reg := calls[runtime.GOARCH]
	fn := tlslib.Function{
		Library: "test", Machine: machines[runtime.GOARCH], Offset: offsetOf(t, reflect.ValueOf(logSecret).Pointer()),
		Random: reg[0], Label: reg[1], Secret: reg[2], Size: reg[3], LabelSize: tlslib.NoRegister,
		Path: []uint32{uint32(reflect.TypeFor[session]().Field(1).Offset), uint32(reflect.TypeFor[base]().Field(1).Offset)},
	}
	if sized {
		fn.LabelSize = reg[4]
	}
	return f, fn
}

// offsetOf returns where in its file an instruction of this process is.
func offsetOf(t testing.TB, pc uintptr) uint64 {
	t.Helper()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to, offset uint64
		var mode string
		if n, err := fmt.Sscanf(lines.Text(), "%x-%x %s %x", &from, &to, &mode, &offset); n != 4 || err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		if strings.Contains(mode, "x") && from <= uint64(pc) && uint64(pc) < to {
			return uint64(pc) - from + offset
		}
	}
	t.Fatalf("%#x is not mapped to execute", pc)
	return 0
}
