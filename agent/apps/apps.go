// SPDX-License-Identifier: Apache-2.0

// Package apps knows which user ids are which apps, follows their installation, and makes of --uid, --app and their
// opposites what the programs filter by.
package apps

import "log/slog"

// AppID marks a key of Rules that is an app id, meant for all users of the phone: bpf/src/owner.h has it, too.
const AppID = 1 << 31

// List is the path of Android's list of packages.
const List = "/data/system/packages.list"

// Book knows apps. It may be used by several goroutines at once.
type Book struct{}

// Open reads the list at path, and watches it. A list that is not there is no error: it may come.
func Open(path string, log *slog.Logger) (*Book, error) { return &Book{}, nil }

// Names returns the packages of a user id, sorted: several where they share it, none where it is no app's. The result must not be changed.
func (b *Book) Names(uid uint32) []string { return nil }

// Changes has something to read from after each change.
func (b *Book) Changes() <-chan struct{} { return nil }

// Close ends the watch.
func (b *Book) Close() error { return nil }

// Selection is whose packets are wanted.
type Selection struct {
	UIDs, NotUIDs []uint32
	Apps, NotApps []string // "pkg", "user:pkg", or a glob of either
}

// Parse checks the values of the flags; its errors are usage errors of one line.
func Parse(uids, notUIDs, apps, notApps []string) (Selection, error) { return Selection{}, nil }

// All tells whether nothing was selected.
func (s Selection) All() bool {
	return len(s.UIDs)+len(s.NotUIDs)+len(s.Apps)+len(s.NotApps) == 0
}

// Rules are what the kernel's map of uids holds.
type Rules struct {
	Of     map[uint32]bool // by uid, or AppID | uid%100000, which counts for less: whether its packets pass
	Others bool            // whether those of others do
}

// Rules returns those of a selection as the book stands, and what the user has to know of them, one line each.
func (b *Book) Rules(s Selection) (Rules, []string) { return Rules{}, nil }

// Admits tells whether a uid's packets pass.
func (r Rules) Admits(uid uint32) bool {
	pass, ok := r.Of[uid]
	if !ok {
		pass, ok = r.Of[AppID|uid%100000]
	}
	if !ok {
		pass = r.Others
	}
	return pass
}
