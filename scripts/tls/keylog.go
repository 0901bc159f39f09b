// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"slices"
	"strings"
)

// Lines returns the lines of a key log in NSS's format, sorted, each once, without comments, its numbers in lower case.
// See https://www.ietf.org/archive/id/draft-ietf-tls-keylogfile-02.html
func Lines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) != 3 || strings.HasPrefix(line, "#") {
			continue
		}
		lines = append(lines, words[0]+" "+strings.ToLower(words[1]+" "+words[2]))
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// Random returns the client random of a line of a key log, in hexadecimal.
func Random(line string) string {
	words := strings.Fields(line)
	if len(words) != 3 {
		return ""
	}
	return words[1]
}

// Secret returns the secret of a line of a key log, in hexadecimal.
func Secret(line string) string {
	words := strings.Fields(line)
	if len(words) != 3 {
		return ""
	}
	return words[2]
}
