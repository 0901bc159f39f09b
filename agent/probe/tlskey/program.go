// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/cilium/ebpf"

	"droidtap/agent/plugin"
	"droidtap/agent/tlslib"
	"droidtap/agent/uprobe"
)

// prober has the calls of functions recorded.
type prober interface {
	// probe records the calls of a function in a file, whose ELF header is at base, until what it returns is closed. f may be
	// closed before. number is in the records. It may be called from any goroutine.
	probe(f *os.File, base int64, fn tlslib.Function, number uint16) (io.Closer, error)
}

// ringSize is how many bytes of records may wait: those of 500 handshakes.
const ringSize = 1 << 19

// settings mirrors struct settings of bpf/src/tlskey.bpf.c. The first five are words of 8 bytes of struct pt_regs.
type settings struct {
	Label, LabelSize, Random, Secret, Size uint32
	Steps                                  uint32 // of Path
	Path                                   [4]uint32
	Number                                 uint32
}

// words is how many of struct pt_regs the program can read.
const words = 21

// machines are those whose programs run here.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// settingsOf says where the arguments of a function are.
func settingsOf(fn tlslib.Function) (settings, error) {
	if fn.Machine != machines[runtime.GOARCH] {
		return settings{}, fmt.Errorf("it is for %v", fn.Machine)
	}
	for _, r := range []tlslib.Register{fn.Random, fn.Secret, fn.Size} {
		if r >= words {
			return settings{}, fmt.Errorf("an argument is in word %d of the registers, and only %d can be read", r, words)
		}
	}
	for _, r := range []tlslib.Register{fn.Label, fn.LabelSize} {
		if r >= words && r != tlslib.NoRegister {
			return settings{}, fmt.Errorf("the label is in word %d of the registers, and only %d can be read", r, words)
		}
	}
	s := settings{
		Label:     uint32(fn.Label),
		LabelSize: uint32(fn.LabelSize),
		Random:    uint32(fn.Random),
		Secret:    uint32(fn.Secret),
		Size:      uint32(fn.Size),
		Steps:     uint32(len(fn.Path)),
	}
	if len(fn.Path) == 0 || len(fn.Path) > len(s.Path) {
		return settings{}, fmt.Errorf("the way to the client random has %d steps, not 1 to %d", len(fn.Path), len(s.Path))
	}
	copy(s.Path[:], fn.Path)
	return s, nil
}

// prepare makes the object of the source ready. Its program says whether the kernel takes such a one, and is not attached.
func prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	if t.Attempt > 0 {
		return plugin.ErrSmallest
	}
	spec.Maps["events"].MaxEntries = ringSize // before it was as large as for packets
	return nil
}

// lostOf returns how many secrets found no room in the ring of an object.
func lostOf(coll *ebpf.Collection) (n uint64, err error) {
	if m := coll.Maps["lost"]; m != nil {
		err = m.Lookup(uint32(0), &n)
	}
	if err != nil {
		return 0, fmt.Errorf("read how many secrets were lost: %w", err)
	}
	return n, nil
}

// programs probes by programs, one for each function. Their records come through the ring of the source's object.
//
// The programs do not sleep, though from 6.0 on they could, and then read what is not in memory: a process whose memory never comes
// (userfaultfd(2), FUSE) would keep the kernel from taking the probe off, and up to 6.11 all others from calling the function meanwhile.
type programs struct {
	load func(plugin.Preparer) (map[string]*ebpf.Program, error) // as Target.Load
}

func (p *programs) probe(f *os.File, base int64, fn tlslib.Function, number uint16) (_ io.Closer, err error) {
	set, err := settingsOf(fn)
	if err != nil {
		return nil, err
	}
	set.Number = uint32(number)
	offset, err := start(f, base, fn)
	if err != nil {
		return nil, err
	}
	loaded, err := p.load(loading(set))
	if err != nil {
		return nil, err
	}
	defer func() { // what is attached keeps it
		for _, prog := range loaded {
			err = errors.Join(err, prog.Close())
		}
	}()
	u, err := uprobe.Attach(f, offset, loaded["secret"])
	if err != nil {
		return nil, err
	}
	return u, nil
}

// loading prepares the program for one function.
type loading settings

func (l loading) Prepare(spec *ebpf.CollectionSpec, t plugin.Target) error {
	if err := prepare(spec, t); err != nil {
		return err
	}
	if err := spec.Variables["settings"].Set(settings(l)); err != nil {
		return fmt.Errorf("set settings: %w", err)
	}
	return nil
}

// start returns the offset in a file of the first instruction of a function that does something. A hint to the processor at the
// start (bti, paciasp; endbr64) leaves the arguments as they are. Kernels before 5.10 cannot probe those of arm64
// (arch/arm64/kernel/probes/decode-insn.c), and others step over them slowly.
func start(f *os.File, base int64, fn tlslib.Function) (uint64, error) {
	at := base + int64(fn.Offset)
	if base < 0 || at < base {
		return 0, fmt.Errorf("no offset in a file: %#x behind %#x", fn.Offset, base)
	}
	var insn [4]byte
	for range 2 { // bti, and paciasp
		if _, err := f.ReadAt(insn[:], at); err != nil {
			return 0, fmt.Errorf("read the instruction at %#x: %w", at, err)
		}
		if !isHint(fn.Machine, insn) {
			break
		}
		at += int64(len(insn))
	}
	return uint64(at), nil
}

// isHint tells whether an instruction is one of those hints.
func isHint(m elf.Machine, insn [4]byte) bool {
	if m == elf.EM_X86_64 {
		return insn == [4]byte{0xf3, 0x0f, 0x1e, 0xfa}
	}
	// HINT #imm7 of the Arm ARM, C6.2: bti and paciasp among them.
	return insn[0]&0x1f == 0x1f && insn[1]&0xf0 == 0x20 && insn[2] == 0x03 && insn[3] == 0xd5
}
