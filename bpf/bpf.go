// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the prebuilt bpf objects, one for each probe and variant.
package bpf

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

//go:embed obj/*.o
var objects embed.FS

// Open parses the object of a probe ("packet") in a variant ("ring"). The spec
// is the caller's own. The error wraps fs.ErrNotExist where there is no such object.
func Open(probe, variant string) (*ebpf.CollectionSpec, error) {
	name := "obj/" + probe + "." + variant + ".o"
	raw, err := fs.ReadFile(objects, name)
	if err != nil {
		return nil, fmt.Errorf("bpf object of probe %s, variant %s: %w", probe, variant, err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse bpf object %s: %w", name, err)
	}
	return spec, nil
}

// TellFunctions has the kernel told what functions programs have where some of them are global ("GLOBAL" of src/agent.h), which not every
// kernel takes. An object does not say so by itself, since that stands between the lines of its sources (see the Makefile). It is called
// before a filter is injected.
func TellFunctions(spec *ebpf.CollectionSpec) error {
	for _, p := range spec.Programs {
		global := false
		functions := map[int]*btf.Func{} // by the number of their first instruction
		for i, in := range p.Instructions {
			if in.Symbol() == "" {
				continue
			}
			var f *btf.Func
			if err := spec.Types.TypeByName(in.Symbol(), &f); err != nil {
				return fmt.Errorf("type of function %s: %w", in.Symbol(), err)
			}
			functions[i] = f
			global = global || i > 0 && f.Linkage == btf.GlobalFunc
		}
		if !global {
			continue
		}
		for i, f := range functions {
			p.Instructions[i] = btf.WithFuncMetadata(p.Instructions[i], f)
		}
	}
	return nil
}

// Names returns the names of all objects, "<probe>.<variant>.o", sorted.
func Names() []string {
	entries, err := fs.ReadDir(objects, "obj")
	if err != nil {
		panic("bpf: embedded folder obj cannot be read: " + err.Error())
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}
