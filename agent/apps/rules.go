// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"droidtap/android"
)

// AppID marks a key of Rules that is an app id, meant for all users of the phone: bpf/src/owner.h has it, too.
const AppID = 1 << 31

// Rules are what the kernel's map of uids holds.
type Rules struct {
	Of     map[uint32]bool // by uid, or AppID | uid%100000, which counts for less: whether its packets pass
	Others bool            // whether those of others do
}

// Admits tells whether a uid's packets pass.
func (r Rules) Admits(uid uint32) bool {
	pass, ok := r.Of[uid]
	if !ok {
		pass, ok = r.Of[AppID|android.AppID(uid)]
	}
	if !ok {
		pass = r.Others
	}
	return pass
}

// Rules returns those of a selection as the book stands, and what the user has to know of them, one line each.
//
// An app is its app id, for all users of the phone or for one, and that of its SDK sandbox. What is both wanted and not, in
// whichever way, is not. Where nothing is said to be wanted, all is that is not said not to be.
func (b *Book) Rules(s Selection) (Rules, []string) {
	r := ruling{page: b.now.Load(), Rules: Rules{Of: map[uint32]bool{}, Others: s.Others()}}
	if r.page == nil {
		r.page = &page{}
		if len(s.Apps)+len(s.NotApps) > 0 {
			r.warn("no list of packages at %s: is this Android? --uid works", b.path)
		}
	} else {
		r.explain(s.Apps, true)
		r.explain(s.NotApps, false)
	}
	wanted, unwanted := r.keys(s.UIDs, s.Apps), r.keys(s.NotUIDs, s.NotApps)
	for key := range wanted {
		r.Of[key] = true
	}
	for key := range unwanted {
		r.Of[key] = false
	}
	// A uid counts for more than its app id, and what is not wanted for more than what is.
	for key := range wanted {
		if key&AppID == 0 && unwanted[AppID|android.AppID(key)] {
			r.Of[key] = false
		}
	}
	r.contradictions(s)
	if (r.found || r.spared) && hasIsolated(b.proc) {
		what := "not captured with --app"
		if !r.found {
			what = "captured in spite of --not-app"
		}
		r.warn("isolated processes have user ids of their own, which no file tells: packets of an app's are %s", what)
	}
	return r.Rules, r.warnings
}

// ruling is what Rules makes its result of.
type ruling struct {
	*page
	Rules
	warnings []string
	found    bool // a package that is wanted is installed
	spared   bool // a package that is to be left out, from among all others, is
}

func (r *ruling) warn(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(r.warnings, text) {
		r.warnings = append(r.warnings, text)
	}
}

// keys returns those of Rules.Of that uids and apps have.
func (r *ruling) keys(uids []uint32, apps []string) map[uint32]bool {
	keys := map[uint32]bool{}
	for _, uid := range uids {
		keys[uid] = true
	}
	for _, text := range apps {
		user, pattern, _ := cutUser(text)
		key := func(id uint32) uint32 {
			if user == everyone {
				return AppID | id
			}
			return android.UID(user, id)
		}
		for id := range r.match(pattern) {
			keys[key(id)] = true
			if sandbox, ok := android.Sandbox(id); ok {
				keys[key(sandbox)] = true
			}
		}
	}
	return keys
}

// match returns the app ids of the packages that a pattern is for, and these packages. A word such as root or dns, as Names
// has it, is for its app id.
func (p *page) match(pattern string) map[uint32][]string {
	ids := map[uint32][]string{}
	for _, one := range p.packages {
		if matches(pattern, one.Name) {
			ids[one.UID] = append(ids[one.UID], one.Name)
		}
	}
	if len(ids) > 0 || isGlob(pattern) {
		return ids
	}
	for id, names := range p.short {
		if id < android.FirstApp && names[0] == pattern {
			ids[id] = []string{pattern}
		}
	}
	return ids
}

func matches(pattern, name string) bool {
	ok, _ := path.Match(pattern, name) // checked by Parse
	return ok
}

// explain warns of what is not installed, and of what else is meant by a uid that packages share.
func (r *ruling) explain(apps []string, wanted bool) {
	done := "captured"
	if !wanted {
		done = "left out"
	}
	also := map[uint32]map[string]bool{} // the packages that are asked for, by app id
	for _, text := range apps {
		_, pattern, _ := cutUser(text)
		ids := r.match(pattern)
		for id, names := range ids {
			r.found, r.spared = r.found || wanted, r.spared || !wanted && r.Others
			if also[id] == nil {
				also[id] = map[string]bool{}
			}
			for _, name := range names {
				also[id][name] = true
			}
		}
		switch near := r.near(pattern); {
		case len(ids) > 0:
		case isGlob(pattern):
			r.warn("no package is like %s: what is installed and is, is %s from then on", text, done)
		case near != "":
			r.warn("%s is not installed: it is %s when it is (or is it %s?)", text, done, near)
		default:
			r.warn("%s is not installed: it is %s when it is", text, done)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(also)) {
		others := slices.DeleteFunc(slices.Clone(r.names[id]), func(name string) bool { return also[id][name] })
		if len(others) > 0 {
			r.warn("uid %d is shared: packets of %s are %s, too", id, strings.Join(shorten(others), ", "), done)
		}
	}
}

// contradictions warns of what is wanted by name or number and is not captured because it is also not wanted.
func (r *ruling) contradictions(s Selection) {
	for _, uid := range s.UIDs {
		if !r.Admits(uid) {
			r.warn("uid %d is both wanted and not: its packets are left out", uid)
		}
	}
	for _, text := range s.Apps {
		user, pattern, _ := cutUser(text)
		if isGlob(pattern) {
			continue // that some of its packages are not wanted is what --not-app is for
		}
		if keys := r.keys(nil, []string{text}); len(keys) > 0 && !slices.ContainsFunc(slices.Collect(maps.Keys(keys)), func(key uint32) bool { return r.Of[key] }) {
			r.warn("%s is both wanted and not, or its uid is: its packets are left out", text)
			continue
		}
		ids := r.match(pattern)
		for _, uid := range s.NotUIDs {
			if ids[android.AppID(uid)] != nil && (user == everyone || user == android.User(uid)) {
				r.warn("%s is wanted, and its uid %d is not: packets of that are left out", text, uid)
			}
		}
	}
}

// hasIsolated tells whether there is an isolated process now.
func hasIsolated(proc string) bool {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		if c := e.Name()[0]; c < '0' || c > '9' {
			return false
		}
		info, err := e.Info()
		if err != nil {
			return false
		}
		s, ok := info.Sys().(*syscall.Stat_t)
		return ok && android.IsIsolated(s.Uid)
	})
}
