// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"slices"

	"github.com/urfave/cli/v2"

	"droidtap/agent/apps"
	"droidtap/agent/plugin"
	"droidtap/agent/process"
)

// commenting is which packets have a comment on their owner.
type commenting string

const (
	commentAll   commenting = "all"
	commentFirst commenting = "first" // of each flow, and where it changes
	commentNone  commenting = "none"
)

// owning is what the flags say of owners, checked.
type owning struct {
	whose    apps.Selection
	keep     bool              // packets without a known owner pass
	by       process.Selection // packets of other processes do not pass
	comments commenting
	packages string // path of the list of apps
	listed   bool   // the user chose it
}

func ownerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "uid", Category: plugin.GroupApp,
			Usage: "capture only packets of sockets of the user ids `N[,N]` (0 is root), in both directions"},
		&cli.StringSliceFlag{Name: "not-uid", Category: plugin.GroupApp,
			Usage: "leave out packets of the user ids `N[,N]`"},
		&cli.StringSliceFlag{Name: "app", Category: plugin.GroupApp,
			Usage: "capture only packets of the apps `PKG[,PKG]`, of all users of the phone; 10:PKG of that user only; a pattern such as 'com.google.*' is followed as apps are installed"},
		&cli.StringSliceFlag{Name: "not-app", Category: plugin.GroupApp,
			Usage: "leave out packets of the apps `PKG[,PKG]`"},
		&cli.StringSliceFlag{Name: "pid", Category: plugin.GroupApp,
			Usage: "capture only packets of sockets of the processes `N[,N]`: on Android those that they made, elsewhere those that they have open"},
		&cli.StringSliceFlag{Name: "comm", Category: plugin.GroupApp,
			Usage: "capture only packets of processes of the names `NAME[,NAME]`, or patterns; with --pid of either"},
		&cli.StringFlag{Name: "unattributed", Category: plugin.GroupApp, DefaultText: "drop with one of the other options here but --comments, else keep",
			Usage: "`keep|drop` packets that have no owner or whose owner is unknown; they are counted"},
		&cli.StringFlag{Name: "comments", Category: plugin.GroupApp, Value: string(commentFirst),
			Usage: "comment on the owner at `first|all|none`: the first packet of each flow and where it changes, or all packets"},
		&cli.StringFlag{Name: "packages", Category: plugin.GroupAdvanced, Value: apps.List,
			Usage: "read which apps there are from `FILE`"},
	}
}

// parseOwning checks the flags; its errors are usage errors of one line.
func parseOwning(c *cli.Context) (o owning, err error) {
	for _, f := range ownerFlags() {
		name := f.Names()[0]
		if _, many := f.(*cli.StringSliceFlag); many && c.IsSet(name) && len(c.StringSlice(name)) == 0 {
			return o, plugin.Usagef("--%s needs a value", name)
		}
	}
	if o.whose, err = apps.Parse(c.StringSlice("uid"), c.StringSlice("not-uid"), c.StringSlice("app"), c.StringSlice("not-app")); err != nil {
		return o, err
	}
	if o.by, err = process.ParseSelection(c.StringSlice("pid"), c.StringSlice("comm")); err != nil {
		return o, err
	}
	switch o.comments = commenting(c.String("comments")); o.comments {
	case commentAll, commentFirst, commentNone:
	default:
		return o, plugin.Usagef("--comments %q: it is first, all or none", o.comments)
	}
	o.keep = o.whose.All() && !o.byProcess()
	switch v := c.String("unattributed"); {
	case !c.IsSet("unattributed"):
	case v != "keep" && v != "drop":
		return o, plugin.Usagef("--unattributed %q: it is keep or drop", v)
	default:
		o.keep = v == "keep"
	}
	o.packages, o.listed = c.String("packages"), c.IsSet("packages")
	switch {
	case o.packages == "":
		return o, plugin.Usagef("--packages needs the name of a file")
	case o.listed && !o.told():
		return o, plugin.Usagef("--packages names apps, and with --comments none nobody asks for one")
	}
	return o, nil
}

// byOwner tells whether packets are left out by their uid, or for having none.
func (o *owning) byOwner() bool { return !o.whose.All() || !o.keep }

// byProcess tells whether packets are left out by their process.
func (o *owning) byProcess() bool { return !o.by.All() }

// filtering tells whether packets are left out by their owner, whatever of it.
func (o *owning) filtering() bool { return o.byOwner() || o.byProcess() }

// namesProcesses tells whether anybody wants to know the process of a packet.
func (o *owning) namesProcesses() bool { return o.byProcess() || o.comments != commentNone }

// told tells whether anybody wants to know the owner of a packet.
func (o *owning) told() bool {
	return o.filtering() || o.comments == commentFirst || o.comments == commentAll
}

// mode is the programs' enum owner.
func (o *owning) mode() uint32 {
	switch {
	case o.byOwner():
		return ownerFilter
	case o.told():
		return ownerTell
	}
	return ownerIgnore
}

// wants returns the first of the processes that the flags mean, and false if none of them is.
func (o *owning) wants(of []process.Process) (process.Process, bool) {
	if i := slices.IndexFunc(of, o.by.Has); i >= 0 {
		return of[i], true
	}
	return process.Process{}, false
}
