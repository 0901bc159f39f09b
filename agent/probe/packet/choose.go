// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"cmp"
	"path"
	"slices"
	"strconv"
	"strings"

	"droidtap/agent/plugin"
	"droidtap/android"
)

// selection is what -i says: which interfaces are captured, of those that there are now or will be.
type selection struct {
	any      bool     // every one that is up
	internet bool     // those that lead to the internet
	names    []string // of these, up or not
	globs    []string // those that are up with a name that matches
}

// internet is how -i names the interfaces that lead to the internet, as PCAPdroid does.
const internet = "@inet"

// choose reads the words of -i: "any", "@inet", a pattern, a name, or a number of -D's list. No word at all is "any". A name must
// be one of all and one that can be captured on.
func choose(words []string, all []android.Interface) (selection, error) {
	s := selection{any: len(words) == 0}
	for _, word := range words {
		word = unnumber(strings.TrimSpace(word), all)
		ifc, found := find(word, all)
		switch {
		case found && ifc.Framing() == android.Unsupported:
			return s, plugin.Usagef("interface %s has link type %d, which begins neither with an Ethernet nor with an IP header: it cannot be captured on",
				ifc.Name, ifc.Type)
		case found:
			if !slices.Contains(s.names, word) {
				s.names = append(s.names, word)
			}
		case word == "any":
			s.any = true
		case word == internet:
			s.internet = true
		case strings.ContainsAny(word, `*?[\`):
			if _, err := path.Match(word, ""); err != nil || strings.Contains(word, "/") {
				return s, plugin.Usagef("interface pattern %q: it may have *, ? and [a-z], and no slash", word)
			}
			s.globs = append(s.globs, word)
		default:
			return s, plugin.Usagef("there is no interface %q: there are %s, any and %s; a pattern such as '%s*' waits for one",
				word, joinNames(all, ", "), internet, word)
		}
	}
	return s, nil
}

// takes tells whether an interface is captured. uplinks are the indexes of those that lead to the internet. One that is held, since it is
// captured already, stays so while it is down: what comes first when it is up again is not missed.
func (s selection) takes(ifc android.Interface, uplinks []int, held bool) bool {
	switch {
	case ifc.Framing() == android.Unsupported:
		return false
	case slices.Contains(s.names, ifc.Name):
		return true
	case s.internet && slices.Contains(uplinks, ifc.Index):
		return true
	case !ifc.Up && !held:
		return false
	case s.any:
		return true
	}
	return slices.ContainsFunc(s.globs, func(glob string) bool {
		match, _ := path.Match(glob, ifc.Name) // checked by choose
		return match
	})
}

// of returns the interfaces that are captured, in the order of all. None is held.
func (s selection) of(all []android.Interface, uplinks []int) (taken []android.Interface) {
	for _, ifc := range all {
		if s.takes(ifc, uplinks, false) {
			taken = append(taken, ifc)
		}
	}
	return taken
}

// waits tells whether interfaces that are not there yet may be captured.
func (s selection) waits() bool { return s.any || s.internet || len(s.globs) > 0 }

// label names the selection for file names: "any", "wlan0", "wlan0+rmnet_data0", "rmnet", "inet".
func (s selection) label() string {
	var parts []string
	if s.any {
		parts = append(parts, "any")
	}
	if s.internet {
		parts = append(parts, strings.TrimPrefix(internet, "@"))
	}
	plain := func(r rune) rune {
		if strings.ContainsRune(`*?[]\`, r) {
			return -1
		}
		return r
	}
	for _, glob := range s.globs {
		parts = append(parts, strings.Map(plain, glob))
	}
	if s.any {
		return parts[0]
	}
	return cmp.Or(strings.Join(append(parts, s.names...), "+"), "some")
}

func find(name string, all []android.Interface) (android.Interface, bool) {
	for _, ifc := range all {
		if ifc.Name == name {
			return ifc, true
		}
	}
	return android.Interface{}, false
}

// unnumber returns the name that a number of -D's list stands for, or what it was
// given. A name that is a number wins.
func unnumber(name string, all []android.Interface) string {
	if _, found := find(name, all); found {
		return name
	}
	names := listed(all)
	if n, err := strconv.Atoi(name); err == nil && n >= 1 && n <= len(names) {
		return names[n-1]
	}
	return name
}

func joinNames(of []android.Interface, separator string) string {
	names := make([]string, len(of))
	for i, ifc := range of {
		names[i] = ifc.Name
	}
	return strings.Join(names, separator)
}
