// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"debug/elf"
	"os"
	"testing"

	"droidtap/agent/tlslib"
)

func TestStartPassesOverHints(t *testing.T) {
	const (
		endbr   = "\xf3\x0f\x1e\xfa"
		push    = "\x55\x48\x89\xe5"
		bti     = "\x5f\x24\x03\xd5"
		sub     = "\xff\x03\x02\xd1"
		paciasp = "\x3f\x23\x03\xd5"
		stp     = "\xfd\x7b\xbd\xa9"
		mrs     = "\x48\xd0\x3b\xd5"
	)
	for _, c := range []struct {
		rule    string
		machine elf.Machine
		code    string
		want    uint64
	}{
		{"endbr64", elf.EM_X86_64, endbr + push, 4},
		{"none of x86", elf.EM_X86_64, push + endbr, 0},
		{"paciasp", elf.EM_AARCH64, paciasp + stp, 4},
		{"bti, paciasp", elf.EM_AARCH64, bti + paciasp + stp, 8},
		{"paciasp, sub", elf.EM_AARCH64, paciasp + sub, 4},
		{"none ahead of sub", elf.EM_AARCH64, sub, 0},
		{"no more than two", elf.EM_AARCH64, bti + paciasp + bti + stp, 8},
		{"none of arm64", elf.EM_AARCH64, stp + paciasp, 0},
		{"a system register", elf.EM_AARCH64, mrs + stp, 0},
		{"endbr64 to arm64", elf.EM_AARCH64, endbr + stp, 0},
	} {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("part" + "head" + c.code); err != nil {
			t.Fatal(err)
		}
		if at, err := start(f, 4, tlslib.Function{Machine: c.machine, Offset: 4}); at != 8+c.want || err != nil {
			t.Errorf("%s: it is at %d, %v, want %d", c.rule, at, err, 8+c.want)
		}
	}
}
