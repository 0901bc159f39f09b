// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// kernel is a version, 4.19 as 4_19.
type kernel int

func (k kernel) String() string { return fmt.Sprintf("%d.%d", k/100, k%100) }

// lines are the kernels that a variant must load on. None of those of legacy is in the lab.
var lines = map[string][]kernel{
	"legacy": {4_19, 5_04},
	"ring":   {5_08, 5_10},
}

// feature is the kernel that brought something, and where that is written: a commit of the kernel
// that is in that version, or a file. bcc is docs/kernel-versions.md of iovisor/bcc, filter.c is
// net/core/filter.c and verifier.c is kernel/bpf/verifier.c.
type feature struct {
	since  kernel
	source string
}

// missing tells why a kernel has no such thing. The zero feature is one that no table knows.
func (f feature) missing(what string, line kernel) string {
	switch {
	case f.since == 0:
		return what + " is in no table"
	case f.since > line:
		return fmt.Sprintf("%s is of %v (%s)", what, f.since, f.source)
	}
	return ""
}

var (
	globalData      = feature{5_02, "d8eca5bbb2be; the loader freezes constants, 87df15de441b"}
	longPrograms    = feature{5_02, "c04c0d2b968a"}
	loops           = feature{5_03, "2589726d12a1"}
	narrowInside    = feature{5_00, "46f53a65d2de"}
	absInFunctions  = feature{5_10, "09b28d76eac4"}
	tailInFunctions = feature{6_00, "d4609a5d8c70, arm64; x86 is e411901c0b77, 5.10"}
	kernelBTF       = feature{5_10, "341dfcf8d78e, 5.4; of Android's kernels none before 5.10 is built with it"}
)

const (
	legacyInsns = 4096 // BPF_MAXINSNS of include/uapi/linux/bpf_common.h, the limit up to 5.1
	maxStack    = 512  // MAX_BPF_STACK of include/linux/filter.h
	maxFrames   = 8    // MAX_CALL_FRAMES of include/linux/bpf_verifier.h
)

// programType is what a kernel offers to programs of a type. The helpers of 4.19 are those of
// filter.c there, as read: tc_cls_act_func_proto, sk_filter_func_proto, bpf_base_func_proto.
type programType struct {
	feature
	helpers map[asm.BuiltinFunc]feature
}

var programTypes = map[ebpf.ProgramType]programType{
	ebpf.SchedCLS: {feature{4_01, "e2e9b6541dd4, bcc"}, map[asm.BuiltinFunc]feature{
		asm.FnMapLookupElem:   {4_01, "d0003ec01c66, 3.19, bcc; classifiers are of 4.1"},
		asm.FnMapUpdateElem:   {4_01, "d0003ec01c66, 3.19, bcc; classifiers are of 4.1"},
		asm.FnMapDeleteElem:   {4_01, "d0003ec01c66, 3.19, bcc; classifiers are of 4.1"},
		asm.FnKtimeGetNs:      {4_01, "d9847d310ab4, bcc"},
		asm.FnSkbLoadBytes:    {4_05, "05c74e5e53f6, bcc"},
		asm.FnPerfEventOutput: {4_08, "555c8a8623a3, with the skb's bytes; without a43eec304259, 4.4, bcc"},
		asm.FnGetSocketUid:    {4_12, "6acc5c291068, bcc"},
		// 71d19214776e, 5.8. Where the kernel has none, agent/capture/load.go puts bpf_ktime_get_ns in its place.
		asm.FnKtimeGetBootNs: {4_19, "bpf_ktime_get_ns of bpf_base_func_proto in filter.c of 4.19"},
		// Without CONFIG_SOCK_CGROUP_DATA there is none: withoutCgroup of agent/capture/load.go.
		asm.FnSkbCgroupId:     {4_18, "cb20b08ead40, bcc"},
		asm.FnFibLookup:       {4_18, "87f5fc7e48dd, bcc"},
		asm.FnSkLookupTcp:     {4_20, "6acc9b432e67, bcc"},
		asm.FnSkLookupUdp:     {4_20, "6acc9b432e67, bcc"},
		asm.FnSkRelease:       {4_20, "6acc9b432e67, bcc"},
		asm.FnJiffies64:       {5_05, "5576b991e9c1, bcc"},
		asm.FnSkFullsock:      {5_01, "46f8bc92758c, bcc"},
		asm.FnProbeReadKernel: {5_08, "bpf_base_func_proto, in 5.10 as read; for tracing it is of 5.5, 6ae08ae3dea2"},
		asm.FnRingbufReserve:  {5_08, "457f44363a88"},
		asm.FnRingbufSubmit:   {5_08, "457f44363a88"},
		asm.FnRingbufDiscard:  {5_08, "457f44363a88"},
		asm.FnRingbufQuery:    {5_08, "457f44363a88"},
	}},
	// Socket filters have half of the classifiers' helpers, and some of those later.
	ebpf.SocketFilter: {feature{3_19, "89aa075832b0, bcc"}, map[asm.BuiltinFunc]feature{
		asm.FnMapLookupElem:   {3_19, "d0003ec01c66, bcc"},
		asm.FnSkbLoadBytes:    {4_11, "2492d3b86704"},
		asm.FnPerfEventOutput: {5_04, "7c4b90d79d0f; sk_filter_func_proto of filter.c in 4.19 has none"},
	}},
	// Uprobes, too: bpf_tracing_func_proto of kernel/trace/bpf_trace.c.
	ebpf.Kprobe: {feature{4_01, "2541517c32be, bcc"}, map[asm.BuiltinFunc]feature{
		asm.FnMapLookupElem:     {4_01, "2541517c32be"},
		asm.FnGetCurrentPidTgid: {4_02, "ffeedafbf023, bcc"},
		asm.FnGetCurrentUidGid:  {4_02, "ffeedafbf023, bcc"},
		asm.FnProbeReadUser:     {5_05, "6ae08ae3dea2, bcc"},
		asm.FnKtimeGetBootNs:    {5_08, "71d19214776e, bcc"},
		asm.FnRingbufOutput:     {5_08, "457f44363a88"},
	}},
}

var mapTypes = map[ebpf.MapType]feature{
	ebpf.Array:          {3_19, "28fbcfa08d8e, bcc"},
	ebpf.Hash:           {3_19, "0f8e4bd8a1fc, bcc"},
	ebpf.PerfEventArray: {4_03, "ea317b267e9d, bcc"},
	ebpf.PerCPUHash:     {4_06, "824bd0ce6c7c, bcc"},
	ebpf.PerCPUArray:    {4_06, "a10423b87a7e, bcc"},
	ebpf.LRUHash:        {4_10, "29ba732acbee, bcc"},
	ebpf.ArrayOfMaps:    {4_12, "56f668dfe00d, bcc"},
	ebpf.HashOfMaps:     {4_12, "bcc6b1b7ebf8, bcc"},
	ebpf.RingBuf:        {5_08, "457f44363a88"},
}

var mapFlags = map[uint32]feature{
	unix.BPF_F_NO_PREALLOC: {4_06, "6c9059817432, bcc"},
	unix.BPF_F_RDONLY_PROG: {5_02, "591fe9888d78"},
	unix.BPF_F_MMAPABLE:    {5_05, "fc9702273e2e"},
}

// ptRegs is the size of struct pt_regs on x86_64; on arm64 it is larger.
const ptRegs = 21 * 8

// How much of a field of struct __sk_buff one load may take: bpf_skb_is_valid_access of filter.c.
const (
	partly = iota // some of it, or all
	wholly        // all of it and no less
	across        // up to eight bytes, of more elements than one
)

// field is a part of struct __sk_buff of include/uapi/linux/bpf.h from an offset to another, as
// elements of size bytes.
type field struct {
	name           string
	from, to, size int
	access         int
	socket         bool // for socket filters, too: sk_filter_is_valid_access of filter.c
	feature
}

// fields are what classifiers may read: tc_cls_act_is_valid_access of filter.c. Neither they nor
// socket filters have what is between napi_id and data_meta, nor flow_keys.
var fields = []field{
	{"len, pkt_type, mark and queue_mapping", 0, 16, 4, partly, true, feature{4_01, "9bac3d6d548e"}},
	{"protocol, vlan_present and vlan_tci", 16, 28, 4, partly, true, feature{4_01, "c24973957975"}},
	{"vlan_proto", 28, 32, 4, partly, true, feature{4_01, "27cd54524769"}},
	{"priority", 32, 36, 4, partly, true, feature{4_01, "bcad57182425"}},
	{"ingress_ifindex and ifindex", 36, 44, 4, partly, true, feature{4_02, "37e82c2f974b"}},
	{"tc_index", 44, 48, 4, partly, true, feature{4_02, "d691f9e8d440"}},
	{"cb", 48, 68, 4, across, true, feature{4_02, "d691f9e8d440"}},
	{"hash", 68, 72, 4, partly, true, feature{4_03, "ba7591d8b28b"}},
	{"tc_classid", 72, 76, 4, partly, false, feature{4_04, "045efa82ff56, bcc"}},
	{"data and data_end", 76, 84, 4, wholly, false, feature{4_07, "969bf05eb3ce, bcc"}},
	{"napi_id", 84, 88, 4, partly, true, feature{4_12, "b1d9fc41aab1"}},
	{"data_meta", 140, 144, 4, wholly, false, feature{4_15, "de8f3a83b0a0"}},
	{"tstamp", 152, 160, 8, wholly, false, feature{5_00, "f11216b24219"}},
	{"wire_len", 160, 164, 4, partly, false, feature{5_00, "e3da08d05700"}},
	{"gso_segs", 164, 168, 4, partly, true, feature{5_01, "d9ff286a0f59"}},
	{"sk", 168, 176, 8, wholly, true, feature{5_01, "46f8bc92758c, bcc"}},
	{"gso_size", 176, 180, 4, partly, true, feature{5_07, "cf62089b0edd"}},
}

// rule is a kind of instruction that kernels have not had from the start.
type rule struct {
	name string
	is   func(in asm.Instruction, op asm.OpCode) bool
	feature
}

var rules = []rule{
	{"a jump if less", func(_ asm.Instruction, op asm.OpCode) bool {
		return slices.Contains([]asm.JumpOp{asm.JLT, asm.JLE, asm.JSLT, asm.JSLE}, op.JumpOp())
	}, feature{4_14, "92b31a9af73b"}},
	{"a call of a function", func(in asm.Instruction, _ asm.OpCode) bool {
		return in.IsFunctionCall()
	}, feature{4_16, "cc8b0b92a169, bcc; arm64 db496944fdaa"}},
	{"an arithmetic shift of 32 bits", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.Class() == asm.ALUClass && op.ALUOp() == asm.ArSh
	}, feature{5_00, "check_alu_op of verifier.c said before: BPF_ARSH not supported for 32 bit ALU"}},
	{"a 32-bit jump", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.Class() == asm.Jump32Class && op.JumpOp() != asm.Ja
	}, feature{5_01, "092ed0968bb6"}},
	{"an address in a map", func(in asm.Instruction, op asm.OpCode) bool {
		return op.IsDWordLoad() && in.Src == asm.PseudoMapValue
	}, globalData},
	{"a kernel variable", func(in asm.Instruction, op asm.OpCode) bool {
		return op.IsDWordLoad() && in.Src == asm.R3 // BPF_PSEUDO_BTF_ID
	}, feature{5_10, "4976b718c355"}},
	{"an atomic that is no plain addition", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.Class() == asm.StXClass && op.Mode() == asm.AtomicMode && op.AtomicOp() != asm.AddAtomic
	}, feature{5_12, "5ca419f2864a"}},
	{"a callback", func(in asm.Instruction, _ asm.OpCode) bool {
		return in.IsLoadOfFunctionPointer()
	}, feature{5_13, "69c087ba6225"}},
	{"a kfunc", func(in asm.Instruction, _ asm.OpCode) bool {
		return in.IsKfuncCall()
	}, feature{5_13, "e6ac2450d6de"}},
	{"a map by its index", func(in asm.Instruction, op asm.OpCode) bool {
		return op.IsDWordLoad() && (in.Src == asm.R5 || in.Src == asm.R6) // BPF_PSEUDO_MAP_IDX and _IDX_VALUE
	}, feature{5_14, "387544bfa291"}},
	{"a far jump", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.Class() == asm.Jump32Class && op.JumpOp() == asm.Ja
	}, feature{6_06, "4cd58e9af8b9"}},
	{"a signed division", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.ALUOp() == asm.SDiv || op.ALUOp() == asm.SMod
	}, feature{6_06, "ec0e2da95f72"}},
	{"a move with sign extension", func(_ asm.Instruction, op asm.OpCode) bool {
		return slices.Contains([]asm.ALUOp{asm.MovSX8, asm.MovSX16, asm.MovSX32}, op.ALUOp())
	}, feature{6_06, "8100928c8814"}},
	{"a load with sign extension", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.Class().IsLoad() && op.Mode() == asm.MemSXMode
	}, feature{6_06, "1f9a1ea821ff"}},
	{"a byte swap on every machine", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.Class() == asm.ALU64Class && op.ALUOp() == asm.Swap
	}, feature{6_06, "0845c3db7bf5"}},
	{"a cast of an arena's address", func(in asm.Instruction, op asm.OpCode) bool {
		return op.ALUOp() == asm.Mov && in.Offset != 0
	}, feature{6_09, "6082b6c328b5"}},
	{"may_goto", func(_ asm.Instruction, op asm.OpCode) bool {
		return op.JumpOp() == asm.JCOND
	}, feature{6_09, "011832b97b31"}},
}
