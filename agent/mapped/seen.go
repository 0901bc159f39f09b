// SPDX-License-Identifier: Apache-2.0

package mapped

import "hash/maphash"

// mark is what there is to look at once: an executable mapping of a file that begins at an offset, or an ELF that does.
type mark struct {
	node
	offset uint64
	elf    bool
}

// version tells files apart that get the same inode one after the other.
type version struct {
	generation uint64 // 0: not known
	name       uint64 // hashed
}

// seen are the marks that were looked at, the last ones at least: most of them, and up to twice as many.
type seen struct {
	most       int
	seed       maphash.Seed
	young, old map[mark]version
}

func newSeen(most int) *seen {
	return &seen{most: most, seed: maphash.MakeSeed(), young: map[mark]version{}}
}

// known tells whether a mark was put, of this file and not of one that had the inode before. /proc/PID/maps knows no generations: there
// it is that of the inode's last one.
func (s *seen) known(k mark, m *Mapping) bool {
	v, young := s.young[k]
	if !young {
		var ok bool
		if v, ok = s.old[k]; !ok {
			return false
		}
	}
	learned := v.generation == 0 && m.Generation != 0
	switch {
	case learned && v.name != maphash.String(s.seed, m.Name), v.generation != m.Generation && !learned && m.Generation != 0:
		return false
	case learned:
		v.generation = m.Generation
	case young:
		return true
	}
	s.keep(k, v)
	return true
}

func (s *seen) put(k mark, m *Mapping) {
	s.keep(k, version{m.Generation, maphash.String(s.seed, m.Name)})
}

func (s *seen) keep(k mark, v version) {
	if _, ok := s.young[k]; !ok && len(s.young) >= s.most {
		s.young, s.old = map[mark]version{}, s.young
	}
	s.young[k] = v
}
