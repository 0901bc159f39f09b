// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"droidtap/agent/plugin"
)

// Sync and Close may meet.
func TestSyncWhileClosing(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		f := next(t, &opener{write: filepath.Join(dir, fmt.Sprint(i))})
		synced := make(chan error, 1)
		go func() {
			for {
				if err := f.(plugin.Syncer).Sync(); err != nil {
					synced <- err
					return
				}
			}
		}()
		if _, err := f.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := <-synced; !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
}

// Whoever cleans up a directory may remove the file that is written: that is told.
func TestSyncOfRemovedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	o := &opener{write: path}
	f := next(t, o).(plugin.Syncer)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, errRemoved) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	next(t, o) // from then on the agent itself may have removed it
	if err := f.Sync(); err != nil {
		t.Errorf("error %v", err)
	}
}
