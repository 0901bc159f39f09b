// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"testing"
)

func TestRegistryRefusesASecondName(t *testing.T) {
	of := map[string]Probe{}
	register(of, "b", Probe{Name: "b"})
	register(of, "a", Probe{Name: "a"})
	defer func() {
		if recover() == nil {
			t.Error("a second probe of one name is accepted")
		}
	}()
	register(of, "a", Probe{Name: "a"})
}

func TestUsageError(t *testing.T) {
	err := fmt.Errorf("outer: %w", Usagef("read %s: %w", "x", fs.ErrNotExist))
	if !IsUsage(err) {
		t.Error("a wrapped usage error is not found")
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("a usage error hides its cause")
	}
	if want := "outer: read x: file does not exist"; err.Error() != want {
		t.Errorf("text %q, want %q", err, want)
	}
	if IsUsage(fs.ErrNotExist) || IsUsage(nil) {
		t.Error("another error is taken for a usage error")
	}
}
