// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
)

// newCollection is ebpf.NewCollectionWithOptions for programs that the kernel verifies at the same time, which is most of the time until
// a capture is ready. shared are maps to use in place of new ones. spec is the callee's.
func newCollection(spec *ebpf.CollectionSpec, shared map[string]*ebpf.Map, opts ebpf.ProgramOptions) (*ebpf.Collection, error) {
	specs := spec.Programs
	spec.Programs = nil
	for _, m := range spec.Maps {
		m.Key, m.Value = nil, nil // the kernel would be told the types of each map, and of a ring refuses them when it has made it
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, err
	}
	names := slices.Sorted(maps.Keys(specs))
	programs, errs := make([]*ebpf.Program, len(names)), make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { programs[i], errs[i] = newProgram(specs[name], coll.Maps, opts) })
	}
	all.Wait()
	coll.Programs = map[string]*ebpf.Program{}
	for i, name := range names {
		if programs[i] != nil {
			coll.Programs[name] = programs[i]
		}
		if errs[i] != nil && err == nil {
			err = fmt.Errorf("program %s: %w", name, errs[i])
		}
	}
	if err != nil {
		coll.Close()
		return nil, err
	}
	return coll, nil
}

// newProgram loads a program that uses maps by their names.
func newProgram(spec *ebpf.ProgramSpec, by map[string]*ebpf.Map, opts ebpf.ProgramOptions) (*ebpf.Program, error) {
	for i := range spec.Instructions {
		in := &spec.Instructions[i]
		if !in.IsLoadFromMap() {
			continue
		}
		m := by[in.Reference()]
		if m == nil {
			return nil, fmt.Errorf("no map %s", in.Reference())
		}
		if err := in.AssociateMap(m); err != nil {
			return nil, fmt.Errorf("map %s: %w", in.Reference(), err)
		}
	}
	return ebpf.NewProgramWithOptions(spec, opts)
}
