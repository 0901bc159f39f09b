// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	cilium "github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
	"droidtap/btf"
)

// BTFDirs are where files that somebody dropped are looked for. An agent that was pushed to /data/local/tmp is a file
// named as the first of them, so there is another.
var BTFDirs = []string{"/data/local/tmp/agent/btf", "/data/local/tmp/droidtap/btf"}

// Types are the offsets that hold on the running kernel, and where they are from.
type Types struct {
	Offsets // 0: not to be used
	Source  btf.Source
}

// Tell puts into k what can be done with the types that FindTypes returned with err.
func (t Types) Tell(k *plan.Kernel, err error) {
	if t.Offsets == (Offsets{}) {
		k.Types = err
	}
	if t.SockUID == 0 {
		k.SockUID = err
	}
}

// notDir tells that there is something else of that name, or of a name on the way: the agent itself.
func notDir(dir string) bool {
	st, err := os.Stat(dir)
	return errors.Is(err, unix.ENOTDIR) || err == nil && !st.IsDir()
}

// ErrNoTypes is wrapped by the error where no type is to be used because nobody wants it.
var ErrNoTypes = errors.New("not asked for")

// FindTypes returns the offsets of the running kernel, from the BTF that is chosen: "auto" or "" (its own, else a file in
// BTFDirs, else the facts that are built in), "none", a file, or a directory to look in before the facts. Each was held against
// the kernel's own answers (Offsets.Check), whatever its source; those that do not hold are 0, and the error says why. What
// was passed over on the way, because it cannot be used, is told by Types.Source.Skipped.
//
// The error wraps ErrChoice, ErrNoTypes, btf.ErrNone where no BTF fits, or is one of Locate's and Check's.
func FindTypes(choice, release string) (Types, error) {
	spec, source, err := open(choice, release)
	if err != nil {
		return Types{}, err
	}
	located, missing := Locate(spec)
	held, mismatch := located.Check()
	return Types{held, source}, errors.Join(missing, mismatch)
}

// ErrChoice is wrapped by the error where the file or directory that was chosen cannot be read.
var ErrChoice = errors.New("it cannot be used")

func open(choice, release string) (*cilium.Spec, btf.Source, error) {
	switch choice {
	case "none":
		return nil, btf.Source{}, ErrNoTypes
	case "", "auto":
		return btf.For(os.DirFS("/sys"), release, runtime.GOARCH, slices.DeleteFunc(slices.Clone(BTFDirs), notDir)...)
	}
	st, err := os.Stat(choice)
	if err != nil {
		return nil, btf.Source{}, fmt.Errorf("%w: %w", ErrChoice, err)
	}
	if st.IsDir() {
		return btf.For(nil, release, runtime.GOARCH, choice)
	}
	spec, err := btf.Open(choice)
	if err != nil {
		return nil, btf.Source{}, fmt.Errorf("%w: %w", ErrChoice, err)
	}
	return spec, btf.Source{Kind: btf.File, Name: choice}, nil
}
