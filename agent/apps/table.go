// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"droidtap/android"
)

// Row is one of agent apps: a package for one user of the phone, or a uid with sockets that is no package's. Its JSON is
// for programs to read: names stay, others may come.
type Row struct {
	Package string `json:"package"` // "" where Kind is not app or sandbox
	Name    string `json:"name"`    // what the table shows: the package, or what Android calls the uid
	Kind    string `json:"kind"`    // app; sandbox: a package's SDK sandbox; isolated: an isolated process; system: Android's own, below 10000; other
	UID     uint32 `json:"uid"`
	User    uint32 `json:"user"` // of the phone: uid / 100000
	// What follows is the uid's: of several packages with one uid each has the same.
	Shared    bool   `json:"shared"`  // other packages have this uid, too
	Sockets   int    `json:"sockets"` // of TCP and UDP that processes have open
	Sent      uint64 `json:"sent"`    // bytes
	Received  uint64 `json:"received"`
	BytesFrom string `json:"bytes_from"` // netd: of all traffic since the phone was started; tcp: of the TCP connections that there are
}

// observed is what rows are made of beside the list.
type observed struct {
	sockets map[uint32]int     // by uid
	bytes   map[uint32]traffic // by uid
	from    string             // BytesFrom
	users   []uint32           // that the phone has; the first is 0
	has     func(user uint32, name string) bool
}

// rows returns one for each package and user, and one for each uid with sockets that is no package's, by name, then by user.
func (p *page) rows(o observed) []Row {
	var all []Row
	users := slices.Clone(o.users)
	for uid := range o.sockets {
		if user := android.User(uid); user <= android.MaxUser {
			users = append(users, user)
		}
	}
	slices.Sort(users)
	users = slices.Compact(users)
	packaged := map[uint32]bool{}
	for _, one := range p.packages {
		for _, user := range users {
			uid := android.UID(user, one.UID)
			packaged[uid] = true
			_, counted := o.bytes[uid]
			if user == 0 || o.sockets[uid] > 0 || counted || o.has(user, one.Name) {
				all = append(all, o.row(uid, "app", one.Name, one.Name, len(p.names[one.UID]) > 1))
			}
		}
	}
	for uid := range o.sockets {
		if packaged[uid] {
			continue
		}
		app, isSandbox := android.SandboxOf(uid)
		switch names := p.names[app]; {
		case isSandbox && len(names) > 0:
			for _, name := range names {
				all = append(all, o.row(uid, "sandbox", name, name+" (SDK sandbox)", len(names) > 1))
			}
		case android.IsIsolated(uid):
			all = append(all, o.row(uid, "isolated", "", "isolated", false))
		case android.AppID(uid) < android.FirstApp:
			all = append(all, o.row(uid, "system", "", strings.Join(p.short[android.AppID(uid)], ""), false))
		default:
			all = append(all, o.row(uid, "other", "", "", false))
		}
	}
	slices.SortFunc(all, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UID, b.UID))
	})
	return all
}

func (o observed) row(uid uint32, kind, pkg, name string, shared bool) Row {
	t := o.bytes[uid]
	return Row{pkg, name, kind, uid, android.User(uid), shared, o.sockets[uid], t.sent, t.received, o.from}
}

// pick returns the rows that a pattern is for: a glob or a part of the name, or a uid; "" is for all.
func pick(all []Row, pattern string) []Row {
	uid, err := strconv.ParseUint(pattern, 10, 32)
	return slices.DeleteFunc(all, func(r Row) bool {
		switch {
		case err == nil:
			return r.UID != uint32(uid)
		case isGlob(pattern):
			return !matches(pattern, r.Name) && !matches(pattern, r.Package)
		}
		return !strings.Contains(r.Name, pattern)
	})
}

// printTable prints rows, and what their numbers are.
func printTable(w io.Writer, all []Row, from string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PACKAGE\tUID\tUSER\tSOCKETS\tSENT\tRECEIVED")
	shared := false
	for _, r := range all {
		mark := ""
		if r.Shared {
			mark, shared = "*", true
		}
		fmt.Fprintf(t, "%s\t%d%s\t%d\t%d\t%d\t%d\n", cmp.Or(r.Name, "-"), r.UID, mark, r.User, r.Sockets, r.Sent, r.Received)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	what := "bytes of the TCP connections that there are now: netd's counters are not to be had"
	if from == fromNetd {
		what = "bytes since the phone was started, as netd counts them"
	}
	if _, err := fmt.Fprintln(w, what); err != nil || !shared {
		return err
	}
	_, err := fmt.Fprintln(w, "* a uid that several packages share: its sockets and bytes are those of all of them")
	return err
}

// phoneUsers returns the users that have a folder in data/user, of the first one in any case.
func phoneUsers(data fs.FS) []uint32 {
	users := []uint32{0}
	entries, _ := fs.ReadDir(data, "user") // not on a phone, or not for us
	for _, e := range entries {
		if n, err := strconv.ParseUint(e.Name(), 10, 32); err == nil && n > 0 && n <= android.MaxUser {
			users = append(users, uint32(n))
		}
	}
	return users
}

// installed tells whether a user has a package: it has a folder, in the part that is encrypted until the user unlocks the
// phone, or in the other.
func installed(data fs.FS, user uint32, name string) bool {
	for _, folder := range []string{"user", "user_de"} {
		if _, err := fs.Stat(data, path.Join(folder, strconv.FormatUint(uint64(user), 10), name)); err == nil {
			return true
		}
	}
	return false
}
