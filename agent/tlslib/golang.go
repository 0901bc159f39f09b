// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"droidtap/agent/pclntab"
)

// What Go's crypto/tls, and what descends from it (utls, the qtls of older versions of quic-go), names
//
//	func (c *Config) writeKeyLog(label string, clientRandom, secret []byte) error
//	func keysFromMasterSecret(version uint16, suite *cipherSuite, masterSecret, clientRandom, serverRandom []byte, ...)
//
// The first is called for each secret, also where there is no KeyLogWriter, and has been the same since Go 1.8; but for a TLS 1.2
// connection that resumes a session it is not called. The second is, for all connections up to TLS 1.2 (src/crypto/tls/common.go,
// prf.go, handshake_{client,server}{,_tls13}.go).
var (
	goKeyLog = []string{".(*Config).writeKeyLog", ".(*config).writeKeyLog"}
	goMaster = ".keysFromMasterSecret"
)

// goArguments are the registers of the arguments that are integers, in their order: a string is its address and its bytes, and a
// slice its address, length and capacity (src/cmd/compile/abi-internal.md).
var goArguments = map[elf.Machine][9]Register{
	elf.EM_X86_64:  {10, 5, 11, 14, 13, 9, 8, 7, 6}, // rax rbx rcx rdi rsi r8 r9 r10 r11
	elf.EM_AARCH64: {0, 1, 2, 3, 4, 5, 6, 7, 8},
}

// findGo finds the functions of a Go binary: both of each copy of crypto/tls. A function may be seen to be called twice, as it begins
// again once its stack has grown. The error wraps ErrNone for what is no Go
// binary, and for one that has nothing of TLS in it.
func findGo(r io.ReaderAt, size int64) ([]Function, error) {
	t, err := pclntab.Open(r, size)
	if errors.Is(err, pclntab.ErrNone) {
		return nil, fmt.Errorf("%w: %v", ErrNone, err)
	}
	if err != nil {
		return nil, err
	}
	some, err := t.Mentions(goKeyLog...)
	if err != nil {
		return nil, err
	}
	if !some {
		return nil, fmt.Errorf("%w: crypto/tls is not linked into this Go binary, %v", ErrNone, t)
	}
	if t.Since < 16 || t.Since < 18 && t.Machine == elf.EM_AARCH64 {
		return nil, fmt.Errorf("Go binary, %v: %w", t, errOldGo)
	}
	found, err := t.Lookup(append(slices.Clone(goKeyLog), goMaster)...)
	if err != nil {
		return nil, fmt.Errorf("Go binary, %v: %w", t, err)
	}
	var fns []Function
	var errs []error
	for _, f := range found {
		if err := checkGo(t, f); err != nil {
			errs = append(errs, err)
			continue
		}
		fns = append(fns, goFunction(t, f))
	}
	switch {
	case len(fns) > 0:
		return fns, nil
	case len(errs) > 0:
		return nil, fmt.Errorf("Go binary, %v: %w", t, errs[0])
	}
	return nil, fmt.Errorf("Go binary, %v: it has no function writeKeyLog that is not inlined", t)
}

// errOldGo says why nothing can be had of what older versions have built: a Function's arguments are in registers.
var errOldGo = errors.New("functions are handed their arguments in registers only since Go 1.17 (x86_64) and 1.18 (arm64)")

func goFunction(t *pclntab.Table, f pclntab.Function) Function {
	arg := goArguments[t.Machine]
	fn := Function{Library: "Go", Machine: t.Machine, Offset: f.Offset, Path: []uint32{0},
		Label: arg[1], LabelSize: arg[2], Random: arg[3], Secret: arg[6], Size: arg[7],
		Why: fmt.Sprintf("%s, %v", f.Name, t)}
	if strings.HasSuffix(f.Name, goMaster) {
		fn.Label, fn.LabelSize, fn.Fixed = NoRegister, NoRegister, "CLIENT_RANDOM"
		fn.Secret, fn.Size, fn.Random = arg[2], arg[3], arg[5]
	}
	// What descends from crypto/tls could have changed the arguments.
	fn.Guess = !strings.HasPrefix(f.Name, "crypto/tls.")
	return fn
}

// checkGo makes sure that a function begins as one does that looks whether its stack must grow
// (src/cmd/internal/obj/{x86/obj6,arm64/obj7}.go), and that it is called with its arguments in registers: a probe within an instruction
// would crash the process.
func checkGo(t *pclntab.Table, f pclntab.Function) error {
	var b [12]byte
	if err := t.Code(f, b[:]); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	code := string(b[:])
	const look = "\x4d\x3b\x66\x10" // cmp 0x10(%r14), %r12
	switch {
	case t.Machine == elf.EM_AARCH64 && strings.HasPrefix(code, "\x90\x0b\x40\xf9"): // ldr x16, [x28, #16]
		return nil
	case t.Machine == elf.EM_AARCH64:
	case strings.HasPrefix(code, "\x49\x3b\x66\x10"), // cmp 0x10(%r14), %rsp
		strings.HasPrefix(code, "\x4c\x8d\x64\x24") && code[5:9] == look, // lea of 8 bits(%rsp), %r12
		strings.HasPrefix(code, "\x4c\x8d\xa4\x24") && code[8:] == look:  // of 32 bits
		return nil
	case strings.Contains(code, "\x64\x48\x8b"): // mov %fs:..., %rcx: r14 is not the goroutine yet
		return errOldGo
	}
	return fmt.Errorf("%s begins with %x, which is not understood", f.Name, b)
}
