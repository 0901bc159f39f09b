// SPDX-License-Identifier: Apache-2.0

// Package tlslib finds the function of a TLS library that is handed each secret, in the library's file: by what its code looks
// like, with no table of versions.
package tlslib

import (
	"debug/elf"
	"errors"
)

// Register is a register as an index of the 8-byte words of struct pt_regs, in which a program of a uprobe finds it: of arm64 x0 to
// x30 are 0 to 30 (struct user_pt_regs, arch/arm64/include/uapi/asm/ptrace.h), of x86_64 r15 is 0 and rdi 14
// (arch/x86/include/uapi/asm/ptrace.h).
type Register uint8

// NoRegister is in the place of one that there is not.
const NoRegister Register = 255

// Function is one that is called with every secret of every connection, at the moment at which it is derived and whether or not
// anybody logs it.
type Function struct {
	Library string      // "BoringSSL", "OpenSSL", "GnuTLS" or "Go"
	Machine elf.Machine // EM_AARCH64 or EM_X86_64
	Offset  uint64      // of its first instruction, in bytes from the start of the file

	Label     Register // points to the label of NSS's key log, "CLIENT_RANDOM" for one
	LabelSize Register // the bytes of it; NoRegister: it ends with a zero
	Fixed     string   // the label, where Label is NoRegister as the function has secrets of one kind only
	Secret    Register // points to the secret
	Size      Register // the bytes of it
	// Random is where the way to the 32 bytes of the client random begins: to what it holds Path[0] is added, and where there is
	// more of the path, what is read there is a pointer, to which the next of it is added. It is 1 to 4 long.
	Random Register
	Path   []uint32
	// Guess says that the path is what it is in libraries of this kind: nothing in the file tells it.
	Guess bool
	Why   string // how it was found, for people: "called with 7 labels, its code reads the random"
}

// ErrNone is wrapped by the error for a file that has nothing of TLS in it, or is no program or library.
var ErrNone = errors.New("there is no TLS library in it")
