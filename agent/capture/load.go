// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"

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

// load loads a probe's object in the first variant that the kernel takes.
func load(probe Probe, t plugin.Target, buffer int) (*ebpf.Collection, error) {
	var errs []error
	for _, variant := range t.Plan.Variants {
		coll, err := loadVariant(probe, variant, t, buffer)
		if err == nil {
			t.Log.Info("loaded", "probe", probe.Name, "object", variant)
			return coll, nil
		}
		if plugin.IsUsage(err) {
			return nil, err
		}
		err = fmt.Errorf("load object %s of probe %s: %w", variant, probe.Name, err)
		if errors.Is(err, os.ErrPermission) && !verifier(err) {
			return nil, err
		}
		t.Log.Info("next variant", "because", err)
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w", ErrKernel, errors.Join(errs...))
}

func loadVariant(probe Probe, variant plan.Variant, t plugin.Target, buffer int) (*ebpf.Collection, error) {
	spec, err := bpf.Open(probe.Name, string(variant))
	if err != nil {
		return nil, err
	}
	if t.Plan.Clock == plan.Monotonic {
		useMonotonic(spec)
	}
	if m := spec.Maps[events]; m.Type == ebpf.RingBuf {
		m.MaxEntries = uint32(buffer)
	}
	if err := probe.Source.Prepare(spec, t); err != nil {
		return nil, usageIfFilter(err)
	}
	coll, err := ebpf.NewCollection(spec)
	if errors.Is(err, unix.E2BIG) {
		// Before 5.2 a program has at most 4,096 instructions, and the log is empty.
		err = usageIfFilter(fmt.Errorf("%w for this kernel, give a shorter expression: %w", filter.ErrTooLarge, err))
	}
	return coll, err
}

// usageIfFilter makes a usage error of one that a shorter or simpler expression cures.
func usageIfFilter(err error) error {
	if errors.Is(err, filter.ErrTooLarge) || errors.Is(err, filter.ErrUnsupported) {
		return plugin.Usagef("%w", err)
	}
	return err
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
	for _, p := range spec.Programs {
		for i, in := range p.Instructions {
			if in.IsBuiltinCall() && asm.BuiltinFunc(in.Constant) == asm.FnKtimeGetBootNs {
				p.Instructions[i].Constant = int64(asm.FnKtimeGetNs)
			}
		}
	}
}
