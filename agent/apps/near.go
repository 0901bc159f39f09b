// SPDX-License-Identifier: Apache-2.0

package apps

import "strings"

// near returns the installed package that somebody may have meant by a name that is none's: one that holds it, the shortest of
// these, else one that differs in a few letters; "" where there is none.
func (p *page) near(name string) string {
	const least = 3 // of fewer letters nothing is like anything
	if len(name) < least {
		return ""
	}
	best, fewest := "", len(name)/4+1
	name = strings.ToLower(name)
	for _, one := range p.packages {
		lower := strings.ToLower(one.Name)
		switch {
		case strings.Contains(lower, name):
			if fewest > 0 || len(one.Name) < len(best) {
				best, fewest = one.Name, 0
			}
		case max(len(lower), len(name))-min(len(lower), len(name)) < fewest:
			if n := distance(name, lower); n < fewest {
				best, fewest = one.Name, n
			}
		}
	}
	return best
}

// distance returns how many letters have to be put in, taken out or replaced to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			changed := diagonal
			if a[i] != b[j] {
				changed++
			}
			diagonal = row[j+1]
			row[j+1] = min(changed, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
