// SPDX-License-Identifier: Apache-2.0

// Command generate makes the BTF that is embedded from the tables of facts, and tables of facts from kernels.
//
//	generate [-dir DIR]                                 facts/*.csv -> min/*-arm64.btf
//	generate [-dir DIR] -kmi KMI [-source TEXT] FROM... kernels -> facts/KMI.csv -> min/KMI-arm64.btf
//	generate -out FILE FROM...                          kernels -> a file of BTF for the phone
//
// FROM is a vmlinux, or raw BTF as such, in xz or in gzip. Of several kernels what they agree on is kept.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"droidtap/btf"
	"droidtap/btf/facts"
)

// arch is what facts are about: the layout of x86 differs, and no table of it has been made.
const arch = "arm64"

// kmiForm is what android.Release.KMI returns.
var kmiForm = regexp.MustCompile(`^android\d+-\d+\.\d+$`)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

// run does what the arguments say. What a kernel lacks it says on stderr.
func run(args []string, stderr io.Writer) error {
	flags := flag.NewFlagSet("generate", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", ".", "where facts/ and min/ are")
	kmi := flags.String("kmi", "", "write the facts of FROM as those of this KMI, such as android14-6.1")
	out := flags.String("out", "", "write the BTF of FROM to this file only")
	source := flags.String("source", "", "what to name as the source of the facts (default: the names of FROM)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	from := flags.Args()
	switch {
	case *kmi != "" && *out != "":
		return errors.New("-kmi and -out are two different things to make")
	case len(from) == 0 && *kmi == "" && *out == "":
		return all(*dir)
	case len(from) == 0:
		return errors.New("no kernel is named to read from")
	case *kmi == "" && *out == "":
		return errors.New("say what to make of it: -kmi or -out")
	case *kmi != "" && !kmiForm.MatchString(*kmi):
		return fmt.Errorf("%q is not a KMI such as android14-6.1", *kmi)
	}
	fs, err := read(from, stderr)
	if err != nil {
		return err
	}
	if *out != "" {
		return write(*out, fs)
	}
	for i := range fs {
		fs[i].Source = *source
		if *source == "" {
			fs[i].Source = names(from)
		}
	}
	var table bytes.Buffer
	if err := facts.Write(&table, fs); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*dir, "facts", *kmi+".csv"), table.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write facts: %w", err)
	}
	return write(target(*dir, *kmi), fs)
}

// read returns the facts that all the kernels agree on, and says what is left out.
func read(from []string, stderr io.Writer) (all []facts.Fact, err error) {
	for i, path := range from {
		raw, err := btf.Read(path)
		if err != nil {
			return nil, err
		}
		fs, missing, err := facts.From(raw)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		if i == 0 {
			all = fs
		} else {
			var odd []error
			all, odd = facts.Common(all, fs)
			missing = append(missing, odd...)
		}
		for _, m := range missing {
			fmt.Fprintf(stderr, "%s: left out: %v\n", path, m)
		}
	}
	return all, nil
}

// all makes the BTF of every table.
func all(dir string) error {
	tables, err := filepath.Glob(filepath.Join(dir, "facts", "*.csv"))
	if err != nil {
		return err
	}
	for _, path := range tables {
		fs, err := table(path)
		if err != nil {
			return err
		}
		if err := write(target(dir, strings.TrimSuffix(filepath.Base(path), ".csv")), fs); err != nil {
			return err
		}
	}
	return nil
}

// table reads one table of facts.
func table(path string) ([]facts.Fact, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	defer f.Close()
	fs, err := facts.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return fs, nil
}

// write writes the BTF of facts to a file.
func write(path string, fs []facts.Fact) error {
	raw, err := facts.Marshal(fs)
	if err != nil {
		return fmt.Errorf("make %s: %w", path, err)
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		return fmt.Errorf("write BTF: %w", err)
	}
	return nil
}

// target names the embedded file of a KMI.
func target(dir, kmi string) string {
	return filepath.Join(dir, "min", kmi+"-"+arch+".btf")
}

// names lists kernels without where they lie on this machine.
func names(paths []string) string {
	var bases []string
	for _, p := range paths {
		bases = append(bases, filepath.Base(p))
	}
	return strings.Join(bases, " ")
}
