// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/bpf"
)

// ErrKernel is wrapped by the error of Run when the kernel lacks what the capture needs.
var ErrKernel = errors.New("this kernel cannot run the capture")

// events is the map of every probe's object through which records come.
const events = "events"

// settings is the map of a program's own, if it is no data section: others are shared with the programs that
// take its place.
const settings = "settings"

// load loads a probe's object in the first variant that the kernel takes. One in which there is no object needs nothing of it.
func load(probe Probe, t plugin.Target, buffer int) (*ebpf.Collection, plan.Variant, error) {
	var errs []error
	for _, variant := range t.Plan.Variants {
		coll, err := loadVariant(object{name: probe.Name, variant: variant, buffer: buffer}, probe.Source, t)
		if err == nil {
			t.Log.Info("loaded", "probe", probe.Name, "object", variant)
			return coll, variant, nil
		}
		if errors.Is(err, fs.ErrNotExist) {
			return &ebpf.Collection{}, variant, nil
		}
		if plugin.IsUsage(err) {
			return nil, "", err
		}
		if errors.Is(err, os.ErrPermission) && !verifier(err) {
			return nil, "", err
		}
		t.Log.Info("next variant", "because", err)
		errs = append(errs, err)
	}
	return nil, "", fmt.Errorf("%w: %w", ErrKernel, errors.Join(errs...))
}

// Loads tells whether the kernel takes a probe's object in a variant, with nothing injected, and lets its ring be read.
// Nothing is attached. Call rlimit.RemoveMemlock before. The error wraps os.ErrPermission or ErrKernel.
func Loads(probe string, v plan.Variant, p plan.Plan) error {
	const buffer = 1 << 19 // bytes
	o := object{name: probe, variant: v, buffer: buffer}
	coll, err := loadVariant(o, asItIs{}, plugin.Target{Plan: p, Log: slog.New(slog.DiscardHandler)})
	switch {
	case errors.Is(err, os.ErrPermission) && !verifier(err):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	defer coll.Close()
	if coll.Maps[events] == nil {
		return nil
	}
	r, err := openRing(coll.Maps[events], ringOptions{buffer: buffer, wakeup: buffer / 4, most: latency}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return r.Close()
}

// asItIs changes nothing.
type asItIs struct{}

func (asItIs) Prepare(_ *ebpf.CollectionSpec, t plugin.Target) error {
	if t.Attempt > 0 {
		return plugin.ErrSmallest
	}
	return nil
}

// shareable returns the maps of a collection that other programs may use, too.
func shareable(coll *ebpf.Collection) map[string]*ebpf.Map {
	shared := map[string]*ebpf.Map{}
	for name, m := range coll.Maps {
		if name != settings && !strings.HasPrefix(name, ".") { // those are the programs' own
			shared[name] = m
		}
	}
	return shared
}

// object is what is loaded of a probe: its programs as p prepares them, and maps to use in place of new ones.
type object struct {
	name    string
	variant plan.Variant
	buffer  int
	shared  map[string]*ebpf.Map
}

// loadVariant loads a variant of a probe's object, with smaller programs as long as the kernel refuses them.
func loadVariant(o object, p plugin.Preparer, t plugin.Target) (*ebpf.Collection, error) {
	var refused error
	for t.Attempt = 0; ; t.Attempt++ {
		// Without the verifier's log, for which it would do all its work again, and for a large program keep a gigabyte.
		coll, err := try(o, p, t, true)
		if err == nil {
			return coll, nil
		}
		if errors.Is(err, plugin.ErrSmallest) && refused != nil {
			t.Attempt--
			if coll, err = try(o, p, t, false); err == nil {
				return coll, nil
			}
		} else if tooMuch(err) {
			t.Log.Info("the kernel refuses the program, next comes one that asks less of it", "because", err)
			refused = err
			continue
		}
		return nil, fmt.Errorf("load object %s: %w", o.variant, err)
	}
}

func try(o object, p plugin.Preparer, t plugin.Target, quiet bool) (*ebpf.Collection, error) {
	spec, err := bpf.Open(o.name, string(o.variant))
	if err != nil {
		return nil, err
	}
	if t.Plan.Globals {
		if err := bpf.TellFunctions(spec); err != nil {
			return nil, err
		}
	}
	if t.Plan.Clock == plan.Monotonic {
		useMonotonic(spec)
	}
	if t.Plan.NoCgroup {
		withoutCgroup(spec)
	}
	if m := spec.Maps[events]; m != nil && m.Type == ebpf.RingBuf {
		m.MaxEntries = uint32(o.buffer)
	}
	if err := p.Prepare(spec, t); err != nil {
		return nil, err
	}
	shared := maps.Clone(o.shared)
	maps.DeleteFunc(shared, func(name string, _ *ebpf.Map) bool { return spec.Maps[name] == nil })
	return newCollection(spec, shared, ebpf.ProgramOptions{LogDisabled: quiet})
}

// tooMuch tells whether a smaller program might do. Before 5.2 one has at most 4,096 instructions, and a longer one
// is E2BIG with an empty log; EFAULT is a program with too many branches.
func tooMuch(err error) bool {
	return verifier(err) || errors.Is(err, filter.ErrTooLarge) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.EFAULT)
}

// verifier tells whether err is the verifier's answer: it says EACCES and EPERM of
// programs, too.
func verifier(err error) bool {
	var v *ebpf.VerifierError
	return errors.As(err, &v)
}

// useMonotonic replaces the boot clock's helper, which the kernel lacks, by the
// monotonic clock's.
func useMonotonic(spec *ebpf.CollectionSpec) {
	replaceCalls(spec, asm.FnKtimeGetBootNs, asm.FnKtimeGetNs.Call())
}

// withoutCgroup puts 0, which is no cgroup's id, in the place of the helper that tells it, which the kernel lacks.
func withoutCgroup(spec *ebpf.CollectionSpec) {
	replaceCalls(spec, asm.FnSkbCgroupId, asm.Mov.Imm(asm.R0, 0))
}

// replaceCalls puts an instruction in the place of each call of a helper.
func replaceCalls(spec *ebpf.CollectionSpec, of asm.BuiltinFunc, by asm.Instruction) {
	for _, p := range spec.Programs {
		for i, in := range p.Instructions {
			if in.IsBuiltinCall() && asm.BuiltinFunc(in.Constant) == of {
				p.Instructions[i] = by.WithMetadata(in.Metadata)
			}
		}
	}
}
