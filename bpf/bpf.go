// SPDX-License-Identifier: Apache-2.0

// Package bpf holds the prebuilt bpf objects, one for each probe and variant.
package bpf

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
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
