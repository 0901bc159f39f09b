// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"io/fs"
	"net/netip"

	"droidtap/agent/plan"
	"droidtap/agent/rtnl"
	"droidtap/android"
)

// ErrUnsupported is a Surveyed's for an interface that no hook is for.
var ErrUnsupported = errors.New("its packets begin neither with an Ethernet nor with an IP header")

// Surveyed is an interface with all that a user may ask of it.
type Surveyed struct {
	android.Interface
	Addresses    []netip.Prefix
	DefaultRoute []string // of "IPv4", "IPv6"
	Choice       plan.Choice
	Others       []Other
	Err          error // why Choice and Others are not known, such as ErrUnsupported or an os.ErrPermission
}

// Survey looks at all interfaces below sys, which is os.DirFS("/sys"), in their order. hooks are those of a plan; without any
// there is no Choice. The error wraps android.ErrOtherNamespace where sys shows those of others.
func Survey(sys fs.FS, hooks []plan.Hook) ([]Surveyed, error) {
	all, err := android.Interfaces(sys)
	if err != nil {
		return nil, err
	}
	if err := android.CheckNamespace(all); err != nil {
		return nil, err
	}
	addresses, err := rtnl.Addresses()
	if err != nil {
		return nil, err
	}
	routes, err := rtnl.DefaultRoutes()
	if err != nil {
		return nil, err
	}
	there, err := qdiscs()
	if err != nil {
		return nil, err
	}
	var surveyed []Surveyed
	for _, ifc := range all {
		s := Surveyed{Interface: ifc, Addresses: addresses[ifc.Index], DefaultRoute: routes[ifc.Index], Err: ErrUnsupported}
		if ifc.Framing() != android.Unsupported {
			var seen Seen
			if seen, s.Err = look(ifc, there[ifc.Index].kind); s.Err == nil {
				s.Choice, s.Others = seen.Choose(hooks), seen.Others
			}
		}
		surveyed = append(surveyed, s)
	}
	return surveyed, nil
}
