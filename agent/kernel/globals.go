// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// haveGlobals returns nil where a classifier may have global functions that take its context, which the verifier looks at once: from 5.6
// on, and not without CONFIG_DEBUG_INFO_BTF, since only the kernel's own types tell what a context is (btf_get_prog_ctx_type of
// kernel/bpf/btf.c).
func haveGlobals() error {
	function := func(name string, linkage btf.FuncLinkage) *btf.Func {
		context := &btf.Pointer{Target: &btf.Struct{Name: "__sk_buff"}}
		number := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
		return &btf.Func{Name: name, Linkage: linkage, Type: &btf.FuncProto{Return: number, Params: []btf.FuncParam{{Name: "skb", Type: context}}}}
	}
	begin := func(in asm.Instruction, f *btf.Func) asm.Instruction {
		return btf.WithFuncMetadata(in.WithSymbol(f.Name), f)
	}
	p, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Name: trialName, Type: ebpf.SchedCLS, License: "Apache-2.0",
		Instructions: asm.Instructions{
			begin(asm.Call.Label("global"), function("globals", btf.StaticFunc)),
			asm.Return(),
			begin(asm.LoadMem(asm.R0, asm.R1, 0, asm.Word), function("global", btf.GlobalFunc)), // skb->len
			asm.Return(),
		},
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return fmt.Errorf("global functions: %w", err)
	}
	return p.Close()
}
