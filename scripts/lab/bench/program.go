// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
)

// programs are one for each direction.
type programs [directions]*ebpf.Program

// names are those of the agent's, on a device with an Ethernet header.
var names = [directions]string{"l2_egress", "l2_ingress"}

// loaded finds those that an agent has loaded. Only one may run.
func loaded() (all programs, err error) {
	defer func() {
		if err != nil {
			all.close()
		}
	}()
	for id := ebpf.ProgramID(0); ; {
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return all, fmt.Errorf("look for programs: %w", err)
		}
		p, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue // was unloaded just now
		}
		if err != nil {
			return all, fmt.Errorf("open a program: %w", err)
		}
		info, err := p.Info()
		if err != nil {
			p.Close()
			return all, fmt.Errorf("ask for a program's name: %w", err)
		}
		d := slices.Index(names[:], info.Name)
		if d < 0 || info.Type != ebpf.SchedCLS {
			p.Close()
			continue
		}
		if all[d] != nil {
			p.Close()
			return all, fmt.Errorf("there are two programs %s", info.Name)
		}
		all[d] = p
	}
	for d, p := range all {
		if p == nil {
			return all, fmt.Errorf("there is no program %s", names[d])
		}
	}
	return all, nil
}

func (all programs) close() {
	for _, p := range all {
		if p != nil {
			p.Close()
		}
	}
}

// spent is how often programs ran and for how many ns.
type spent [directions]struct{ runs, ns int64 }

// spent returns it, by the kernel's statistics, which must be enabled.
func (all programs) spent() (s spent, err error) {
	for d, p := range all {
		stats, err := p.Stats()
		if err != nil {
			return s, fmt.Errorf("ask for statistics: %w", err)
		}
		s[d].runs, s[d].ns = int64(stats.RunCount), stats.Runtime.Nanoseconds()
	}
	return s, nil
}

// per returns ns for each of so many runs since before.
func (s spent) per(runs int, before spent) (ns [directions]float64, err error) {
	for d := range s {
		if n := s[d].runs - before[d].runs; n != int64(runs) {
			return ns, fmt.Errorf("%d packets passed, not %d", n, runs)
		}
		ns[d] = float64(s[d].ns-before[d].ns) / float64(runs)
	}
	return ns, nil
}
