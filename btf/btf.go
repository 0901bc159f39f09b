// SPDX-License-Identifier: Apache-2.0

// Package btf finds the kernel types that a CO-RE program is relocated with, for kernels that bring them and for those
// that do not. Whatever they come from, only the members of facts.From are in them: an object that reads others fails
// on every kernel alike, and nothing of a kernel's own 6 MB stays in memory.
package btf

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	cilium "github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"droidtap/android"
	"droidtap/btf/facts"
)

//go:generate go run ./generate

//go:embed min
var embedded embed.FS

// ErrNone says that there is no BTF for the running kernel.
var ErrNone = errors.New("no BTF fits")

// The kinds of a Source.
const (
	Kernel = "kernel" // what the running kernel tells of itself
	File   = "file"   // a file that somebody gave
	Facts  = "facts"  // made from the facts that are built in
)

// own is where the running kernel tells its types, below /sys.
const own = "kernel/btf/vmlinux"

// Source says where types come from.
type Source struct {
	Kind string // Kernel, File or Facts
	Name string // the file's path, or of Facts the KMI such as "android12-5.10"

	// Skipped tells what comes before this one, is there and cannot be used, and why; nil where there is nothing of
	// the kind. Whoever calls For tells it to the user.
	Skipped error
}

// String returns the kind and the name.
func (s Source) String() string { return s.Kind + " " + s.Name }

// candidate is one place where types may be. Its open returns an error wrapping fs.ErrNotExist where they are not.
type candidate struct {
	source Source
	open   func() (*cilium.Spec, error)
}

// For returns the types of a kernel with this release (uname -r) and architecture (a GOARCH) from the first of these
// that has them:
//
//   - the running kernel's own below sys, which is os.DirFS("/sys"), or nil to pass it over;
//   - in dirs, a file for exactly this release: RELEASE.btf;
//   - in dirs, a file for its KMI: KMI-ARCH.btf, such as android12-5.10-arm64.btf;
//   - the facts of its KMI that are built in, which are for arm64.
//
// A file may also be named .btf.xz or .btf.gz. A kernel without KMI, such as a vendor's "5.10.110-rockchip", has but
// the first two: a version alone fixes no layout. What is there and cannot be used is passed over and told in
// Source.Skipped, or in the error where nothing is left; that one wraps ErrNone.
func For(sys fs.FS, release, arch string, dirs ...string) (*cilium.Spec, Source, error) {
	candidates, skipped := places(sys, release, arch, dirs)
	for _, c := range candidates {
		spec, err := c.open()
		if err == nil {
			c.source.Skipped = errors.Join(skipped...)
			return spec, c.source, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			skipped = append(skipped, err)
		}
	}
	none := fmt.Errorf("%w: kernel %q on %s", ErrNone, release, arch)
	return nil, Source{}, errors.Join(append([]error{none}, skipped...)...)
}

// places lists the candidates in their order, and which dirs cannot be looked into.
func places(sys fs.FS, release, arch string, dirs []string) (cs []candidate, skipped []error) {
	if sys != nil {
		cs = append(cs, candidate{Source{Kind: Kernel, Name: "/sys/" + own}, func() (*cilium.Spec, error) {
			return openOwn(sys)
		}})
	}
	kmi := android.ParseRelease(release).KMI()
	names, err := fileNames(release, kmi, arch)
	if err != nil && len(dirs) > 0 {
		skipped = append(skipped, err)
	}
	dirs, unusable := directories(dirs)
	skipped = append(skipped, unusable...)
	for _, name := range names {
		for _, dir := range dirs {
			path := filepath.Join(dir, name)
			cs = append(cs, candidate{Source{Kind: File, Name: path}, func() (*cilium.Spec, error) {
				return Open(path)
			}})
		}
	}
	if kmi != "" {
		cs = append(cs, candidate{Source{Kind: Facts, Name: kmi}, func() (*cilium.Spec, error) {
			return openEmbedded(kmi, arch)
		}})
	}
	return cs, skipped
}

// fileNames lists the names to look for in a directory. The release is the kernel builder's to choose, so one that
// would lead out of the directory names no file; the KMI is made of numbers.
func fileNames(release, kmi, arch string) (names []string, err error) {
	var stems []string
	switch {
	case strings.ContainsAny(release, "/\x00"):
		err = fmt.Errorf("look for the BTF of kernel %q: the release is not a file name", release)
	case release != "":
		stems = append(stems, release)
	}
	if kmi != "" {
		stems = append(stems, kmi+"-"+arch)
	}
	for _, stem := range stems {
		for _, suffix := range []string{".btf", ".btf.xz", ".btf.gz"} {
			names = append(names, stem+suffix)
		}
	}
	return names, err
}

// directories returns the dirs that can be looked into; one that does not exist is no error.
func directories(dirs []string) (kept []string, unusable []error) {
	for _, dir := range dirs {
		st, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			unusable = append(unusable, fmt.Errorf("look for BTF: %w", err))
		case !st.IsDir():
			unusable = append(unusable, fmt.Errorf("look for BTF in %s: not a directory", dir))
		default:
			kept = append(kept, dir)
		}
	}
	return kept, unusable
}

// openOwn reads the running kernel's types.
func openOwn(sys fs.FS) (_ *cilium.Spec, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the kernel's BTF: %w", err)
		}
	}()
	f, err := sys.Open(own)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() < 0 || st.Size() > limit {
		return nil, fmt.Errorf("%d bytes", st.Size())
	}
	size := int(st.Size())
	if file, ok := f.(*os.File); ok {
		// From 6.16 (a539e2a6d51d) the kernel lends it; before, ENODEV.
		if raw, failed := unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE); failed == nil {
			defer func() { err = errors.Join(err, unix.Munmap(raw)) }()
			return reduce(raw)
		}
	}
	// Memory that the kernel hands out at once, and takes back at once: in the heap the 5 MB take longer to come, page by
	// page, than all the rest, and stay.
	raw, err := unix.Mmap(-1, 0, size+1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(raw)) }()
	n, err := io.ReadFull(f, raw)
	if err == nil {
		return nil, fmt.Errorf("it has more than its %d bytes", size)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return reduce(raw[:n])
}

// openEmbedded reads the types made from the facts of a KMI.
func openEmbedded(kmi, arch string) (*cilium.Spec, error) {
	raw, err := embedded.ReadFile("min/" + kmi + "-" + arch + ".btf")
	if err != nil {
		return nil, fmt.Errorf("read the facts of %s: %w", kmi, err)
	}
	spec, err := reduce(raw)
	if err != nil {
		return nil, fmt.Errorf("read the facts of %s: %w", kmi, err)
	}
	return spec, nil
}

// reduce makes a spec of the facts in raw BTF, of which it keeps nothing.
func reduce(raw []byte) (*cilium.Spec, error) {
	fs, _, err := facts.From(raw)
	if err != nil {
		return nil, err
	}
	least, err := facts.Marshal(fs)
	if err != nil {
		return nil, err
	}
	spec, err := cilium.LoadSpecFromReader(bytes.NewReader(least))
	if err != nil {
		return nil, fmt.Errorf("load reduced BTF: %w", err)
	}
	return spec, nil
}
