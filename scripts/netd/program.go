// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

//go:embed netd.o
var object []byte

var parsed = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	return ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
})

// Count is what a program saw. C: struct count.
type Count struct {
	Packets uint64 // calls: for a classifier packets, at the cgroup's other hooks calls of the system
	Taken   uint64 // of those: redirected, so that no later filter saw them
}

// program is one of netd.bpf.c, in the kernel, with its own count.
type program struct {
	*ebpf.Program
	id     ebpf.ProgramID
	counts *ebpf.Map
	mark   Count
}

// load loads a program by name, with these variables and with what it shares with others.
func load(name string, variables map[string]any, shared map[string]*ebpf.Map) (*program, error) {
	p, err := loadProgram(name, variables, shared)
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	return p, nil
}

func loadProgram(name string, variables map[string]any, shared map[string]*ebpf.Map) (*program, error) {
	all, err := parsed()
	if err != nil {
		return nil, err
	}
	spec := all.Copy()
	keepOnly(spec, name)
	for v, value := range variables {
		if err := spec.Variables[v].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", v, err)
		}
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	p := &program{Program: coll.DetachProgram(name), counts: coll.DetachMap("counts")}
	info, err := p.Info()
	if err == nil {
		p.id, _ = info.ID()
		return p, nil
	}
	return nil, errors.Join(err, p.close())
}

// keepOnly drops what the program has no use for: a cgroup's program needs no map of offloads.
func keepOnly(spec *ebpf.CollectionSpec, name string) {
	spec.Programs = map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}
	used := map[string]bool{}
	for _, ins := range spec.Programs[name].Instructions {
		if ins.IsLoadFromMap() {
			used[ins.Reference()] = true
		}
	}
	for m := range spec.Maps {
		if !used[m] {
			delete(spec.Maps, m)
		}
	}
	for v, s := range spec.Variables {
		if !used[s.SectionName] {
			delete(spec.Variables, v)
		}
	}
}

func (p *program) close() error {
	return errors.Join(p.Program.Close(), p.counts.Close())
}

func (p *program) count() (c Count, err error) {
	if err = p.counts.Lookup(uint32(0), &c); err != nil {
		err = fmt.Errorf("read count: %w", err)
	}
	return c, err
}

// describe returns the name and the tag of a program in the kernel.
func describe(id ebpf.ProgramID) string {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return fmt.Sprintf("program %d (%v)", id, err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return fmt.Sprintf("program %d (%v)", id, err)
	}
	return fmt.Sprintf("%s tag %s", info.Name, info.Tag)
}
