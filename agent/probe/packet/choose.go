// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"strconv"
	"strings"

	"droidtap/agent/plugin"
	"droidtap/android"
)

// choose returns the interfaces that names stand for, in the order of all: "any",
// a name, or a number of -D's list. No name at all is "any". Interfaces that
// cannot be captured on are an error where named, and not part of "any".
func choose(names []string, all []android.Interface) (chosen []android.Interface, every bool, err error) {
	wanted := map[string]bool{}
	for _, name := range names {
		name = unnumber(strings.TrimSpace(name), all)
		ifc, found := find(name, all)
		switch {
		case name == "any":
			every = true
			continue
		case !found:
			return nil, false, plugin.Usagef("there is no interface %q: there are %s, and any", name, joinNames(all, ", "))
		case ifc.Framing() == android.Unsupported:
			return nil, false, plugin.Usagef("interface %s has link type %d, which begins neither with an Ethernet nor with an IP header: it cannot be captured on",
				ifc.Name, ifc.Type)
		}
		wanted[ifc.Name] = true
	}
	every = every || len(names) == 0
	for _, ifc := range all {
		if wanted[ifc.Name] || every && ifc.Up && ifc.Framing() != android.Unsupported {
			chosen = append(chosen, ifc)
		}
	}
	if len(chosen) == 0 {
		return nil, every, plugin.Usagef("no interface is up: bring one up, or name one with -i")
	}
	return chosen, every, nil
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
