// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// probe is a program that reads kernel memory once, in the thread that runs it, and the bytes that it leaves. The
// program has its context in R8, the bytes in R6, and in R7 the address that the next read starts from.
type probe struct {
	kind  ebpf.ProgramType
	bytes *ebpf.Map // one value, which is left as [room]byte
	used  int
	body  asm.Instructions
	left  []byte // by run
}

const (
	room = 128
	ran  = 0 // where a program that got to its end leaves a 1, and until then an address on its way to be a number
)

// reading is a member that a probe reads: where it is, and where the helper's answer and the member are left.
type reading struct {
	offset               uint32
	size, answer, member int
}

// newProbe makes the map first: it is what the kernel refuses to whoever may not use bpf(2).
func newProbe(kind ebpf.ProgramType) (*probe, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: room, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("map for what is read: %w", err)
	}
	return &probe{kind: kind, bytes: m, used: ran + 8}, nil
}

func (p *probe) Close() error { return p.bytes.Close() }

// take returns where the next n bytes are left, whole words.
func (p *probe) take(n int) int {
	at := p.used
	p.used += (n + 7) &^ 7
	return at
}

func (p *probe) add(insns ...asm.Instruction) { p.body = append(p.body, insns...) }

// read adds a read at R7 + offset, none where the offset is not known.
func (p *probe) read(offset uint32, size int) reading {
	r := reading{offset: offset, size: size, answer: p.take(8), member: p.take(size)}
	if offset == 0 {
		return r
	}
	p.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Add.Imm(asm.R1, int32(r.member)),
		asm.Mov.Imm(asm.R2, int32(size)),
		asm.LoadImm(asm.R3, int64(offset), asm.DWord),
		asm.Add.Reg(asm.R3, asm.R7),
		asm.FnProbeReadKernel.Call(),
		asm.StoreMem(asm.R6, int16(r.answer), asm.R0, asm.DWord))
	return r
}

// follow adds a read of an address, which the next read starts from.
func (p *probe) follow(offset uint32) reading {
	r := p.read(offset, 8)
	p.add(asm.LoadMem(asm.R7, asm.R6, int16(r.member), asm.DWord))
	return r
}

// call adds a call of a helper without arguments and returns where its answer is left.
func (p *probe) call(helper asm.BuiltinFunc) int {
	at := p.take(8)
	p.add(helper.Call(), asm.StoreMem(asm.R6, int16(at), asm.R0, asm.DWord))
	return at
}

const commSize = 16 // TASK_COMM_LEN

// callComm adds a call of bpf_get_current_comm and returns where the name is left.
func (p *probe) callComm() int {
	at := p.take(commSize)
	p.add(
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Add.Imm(asm.R1, int32(at)),
		asm.Mov.Imm(asm.R2, commSize),
		asm.FnGetCurrentComm.Call())
	return at
}

// task lets the next read start from the thread's task_struct.
func (p *probe) task() {
	p.add(asm.FnGetCurrentTask.Call(), asm.Mov.Reg(asm.R7, asm.R0))
}

// remote is another address of TEST-NET-1, that a packet to the socket would be from.
var remote = [4]byte{192, 0, 2, 2}

// runOn runs the program, one for tc, with what has been added between a look-up of the socket and its release. The
// pointer that the look-up gives may be neither added to nor read through; as a number it may. It becomes one in a map,
// which the verifier allows to whoever may see addresses (kernel/bpf/verifier.c is_pointer_value).
func (p *probe) runOn(s socket) error {
	const tuple = -24 // struct bpf_sock_tuple of a received packet, IPv4: 12 bytes on the stack
	word := func(b [4]byte) int64 { return int64(int32(binary.NativeEndian.Uint32(b[:]))) }
	port := func(n uint16) int64 { return int64(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))) }
	before := asm.Instructions{
		asm.StoreImm(asm.R10, tuple, word(remote), asm.Word),
		asm.StoreImm(asm.R10, tuple+4, word(address), asm.Word),
		asm.StoreImm(asm.R10, tuple+8, port(1), asm.Half),
		asm.StoreImm(asm.R10, tuple+10, port(s.port), asm.Half),
		asm.Mov.Reg(asm.R1, asm.R8),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, tuple),
		asm.Mov.Imm(asm.R3, 12),
		asm.Mov.Imm(asm.R4, -1), // BPF_F_CURRENT_NETNS
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkLookupUdp.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.StoreMem(asm.R6, ran, asm.R9, asm.DWord),
		asm.LoadMem(asm.R7, asm.R6, ran, asm.DWord),
	}
	p.body = append(before, p.body...)
	p.add(asm.Mov.Reg(asm.R1, asm.R9), asm.FnSkRelease.Call())
	return p.run()
}

// run loads the program and runs it once, attached to nothing.
func (p *probe) run() error {
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R8, asm.R1),
		asm.StoreImm(asm.R10, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, p.bytes.FD()),
		asm.Mov.Reg(asm.R2, asm.R10),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Reg(asm.R6, asm.R0),
	}
	insns = append(insns, p.body...)
	insns = append(insns,
		asm.Mov.Imm(asm.R0, 1),
		asm.StoreMem(asm.R6, ran, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return())
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: p.kind, Instructions: insns, License: "GPL"})
	if err != nil {
		return refusedProgram(p.kind, err)
	}
	defer prog.Close()
	var opts ebpf.RunOptions
	if p.kind == ebpf.SchedCLS {
		// Newer kernels refuse a packet that has nothing behind the Ethernet header (fd1894224407).
		opts.Data = make([]byte, 64)
	}
	if _, err := prog.Run(&opts); err != nil {
		return fmt.Errorf("%s program: %w", p.kind, err)
	}
	if p.left, err = p.bytes.LookupBytes(uint32(0)); err != nil {
		return fmt.Errorf("look at what was read: %w", err)
	}
	if p.number(ran) != 1 {
		return fmt.Errorf("%s program does not find what it has to read: %w", p.kind, ebpf.ErrNotSupported)
	}
	return nil
}

// refusedProgram tells apart why one of our programs, which are right, was not loaded. The verifier says EACCES and EPERM
// as well, but never without a log.
func refusedProgram(kind ebpf.ProgramType, err error) error {
	var v *ebpf.VerifierError
	switch {
	case errors.Is(err, os.ErrPermission) && !(errors.As(err, &v) && len(v.Log) > 0):
		return err
	case errors.Is(tryRead(kind), unix.EINVAL):
		return fmt.Errorf("%w (%v)", ErrNoKernelRead, err)
	case errors.As(err, &v):
		return fmt.Errorf("%s program: %w (%v)", kind, ebpf.ErrNotSupported, err)
	}
	return err
}

// tryRead loads a program that reads nothing else than kernel memory, as the verifier names one reason only.
// features.HaveProgramHelper does not tell: where cilium/ebpf finds no bpf_probe_read_kernel it puts bpf_probe_read in its
// place, and then does not know the answer for its own.
func tryRead(kind ebpf.ProgramType) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: kind,
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R10),
			asm.Add.Imm(asm.R1, -8),
			asm.Mov.Imm(asm.R2, 8),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnProbeReadKernel.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
		License: "GPL",
	})
	if err != nil {
		return err
	}
	return prog.Close()
}

// number returns the 8 bytes that were left there.
func (p *probe) number(at int) uint64 { return binary.NativeEndian.Uint64(p.left[at:]) }

// refusal says why there is nothing to compare; nil where the member was read.
func (p *probe) refusal(name string, r reading) error {
	switch errno := syscall.Errno(-int64(p.number(r.answer))); errno {
	case 0:
		return nil
	case unix.EPERM:
		// Until 5.13 (ff40e51043af) a lockdown lets the program be loaded and refuses each read.
		return fmt.Errorf("read %s: %w", name, ErrNoKernelRead)
	default:
		return fmt.Errorf("%s at %d: %w: nothing can be read there (%w)", name, r.offset, ErrMismatch, errno)
	}
}

// compare tells whether the member is what it should be. One that is not known is not compared.
func (p *probe) compare(name string, r reading, want []byte) error {
	if r.offset == 0 {
		return nil
	}
	if err := p.refusal(name, r); err != nil {
		return err
	}
	if got := p.left[r.member:][:r.size]; !bytes.Equal(got, want) {
		return fmt.Errorf("%s at %d: %w: read %s, expected %s", name, r.offset, ErrMismatch, show(got), show(want))
	}
	return nil
}

// show writes a number as a number and a name as a name.
func show(b []byte) string {
	switch len(b) {
	case 4:
		return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(b)), 10)
	case 8:
		return strconv.FormatUint(binary.NativeEndian.Uint64(b), 10)
	}
	return strconv.Quote(unix.ByteSliceToString(b))
}
