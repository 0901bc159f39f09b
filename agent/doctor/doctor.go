// SPDX-License-Identifier: Apache-2.0

// Package doctor finds out, without attaching anything, what a capture would do on this phone and why, and what keeps
// it from it.
package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"github.com/cilium/ebpf/rlimit"

	"droidtap/agent/capture"
	"droidtap/agent/hook"
	"droidtap/agent/kernel"
	"droidtap/agent/plan"
	"droidtap/android"
)

// Report is all that was found out. Answers are "yes", or "no: " or "not permitted: " and the reason.
type Report struct {
	Agent      string        `json:"agent"`
	Kernel     string        `json:"kernel"` // such as "Linux 6.1.0 aarch64"
	KMI        string        `json:"kmi"`    // "" where the release names none
	Answers    []Answer      `json:"answers"`
	Objects    []Answer      `json:"objects"` // whether each loads
	Choices    []plan.Choice `json:"choices"`
	Types      Types         `json:"types"`
	Process    []Answer      `json:"process"` // what the surroundings allow
	Interfaces []Interface   `json:"interfaces"`
	Ready      bool          `json:"ready"`
	ToDo       []string      `json:"todo"` // before it is ready
	err        error         // why it is not
}

// Answer is what was said to a question.
type Answer struct {
	Question string `json:"question"`
	Answer   string `json:"answer"`
}

// Types tells where the offsets in the kernel's structs are from.
type Types struct {
	Source string `json:"source"` // "" where there are none
	Answer string `json:"answer"`
}

// Interface is one that could be captured on, or why it could not.
type Interface struct {
	Name         string         `json:"name"`
	Index        int            `json:"index"`
	Type         string         `json:"type"`
	State        string         `json:"state"`
	Addresses    []netip.Prefix `json:"addresses"`
	DefaultRoute []string       `json:"default_route"` // of IPv4, IPv6
	Hook         plan.Choice    `json:"hook"`
	Others       []hook.Other   `json:"others"` // what is attached
	Error        string         `json:"error,omitempty"`
}

// Options say what to look at.
type Options struct {
	Agent  string   // its version, in a line
	Probes []string // whose objects to try
	BTF    string   // as capture.Config.BTF
}

// Err returns nil where a capture can begin, else why not.
func (r *Report) Err() error { return r.err }

// Examine makes the report. The error is one of finding out: what keeps a capture from beginning is in the report.
func Examine(o Options) (*Report, error) {
	u, err := kernel.ReadUname()
	if err != nil {
		return nil, err
	}
	raised := rlimit.RemoveMemlock()
	k, tried := kernel.AskAll(u.Release)
	r := &Report{
		Agent:  o.Agent,
		Kernel: fmt.Sprintf("%s %s %s", u.Sysname, u.Release, u.Machine),
		KMI:    android.ParseRelease(u.Release).KMI(),
		ToDo:   []string{},
		Answers: []Answer{
			{"ring buffer", answer(k.RingBuf)},
			{"boot clock in classifiers", answer(k.BootNs)},
			{"TCX", answer(k.TCX)},
			{"clsact and cls_bpf", answer(tried.TC)},
			{"packet socket with a bpf filter", answer(tried.Socket)},
			{"cgroup ids in classifiers", answer(k.Cgroup)},
		},
	}
	if err := r.types(o.BTF, &k); err != nil {
		return nil, err
	}
	p, impossible := plan.Make(k, plan.Wish{})
	r.Choices = p.Choices
	loads := r.load(o.Probes, p)
	s := kernel.Look(os.DirFS("/"))
	r.process(s, raised)
	if err := r.interfaces(os.DirFS("/sys"), p.Hooks); err != nil {
		return nil, err
	}
	r.conclude(s, errors.Join(impossible, loads))
	return r, nil
}

// answer puts the kernel's answer into words.
func answer(err error) string {
	switch {
	case err == nil:
		return "yes"
	case errors.Is(err, os.ErrPermission):
		return "not permitted: " + oneLine(err)
	}
	return "no: " + oneLine(err)
}

// load tries the objects of the probes. Its error says why a probe with one in every variant has none that loads.
func (r *Report) load(probes []string, p plan.Plan) error {
	var errs []error
	for _, probe := range probes {
		var refused []error
		for _, v := range []plan.Variant{plan.Ring, plan.Legacy} {
			err := capture.Loads(probe, v, p)
			if errors.Is(err, os.ErrNotExist) { // in this variant the probe does without
				continue
			}
			r.Objects = append(r.Objects, Answer{probe + "." + string(v), answer(err)})
			if err != nil {
				refused = append(refused, err)
			}
		}
		if len(refused) == 2 {
			errs = append(errs, refused[1])
		}
	}
	return errors.Join(errs...)
}

// types finds the kernel's types, and tells k of them. The error wraps kernel.ErrChoice.
func (r *Report) types(choice string, k *plan.Kernel) error {
	t, err := kernel.FindTypes(choice, k.Release)
	if errors.Is(err, kernel.ErrChoice) {
		return err
	}
	t.Tell(k, err)
	if t.Source.Kind != "" {
		r.Types.Source = t.Source.String()
	}
	switch {
	case err == nil:
		r.Types.Answer = "yes"
	case t.Offsets != (kernel.Offsets{}):
		r.Types.Answer = "in part: " + oneLine(err)
	default:
		r.Types.Answer = answer(err)
	}
	if t.Source.Skipped != nil {
		r.Types.Answer += "; cannot be used: " + oneLine(t.Source.Skipped)
	}
	return nil
}

// interfaces looks at each interface; hooks are those of the plan.
func (r *Report) interfaces(sys fs.FS, hooks []plan.Hook) error {
	all, err := hook.Survey(sys, hooks)
	if err != nil {
		return err
	}
	for _, of := range all {
		// A list without members is one in JSON, too.
		i := Interface{
			Name: of.Name, Index: of.Index, Type: of.LinkLayer(), State: of.Describe(), Hook: of.Choice,
			Addresses:    append([]netip.Prefix{}, of.Addresses...),
			DefaultRoute: append([]string{}, of.DefaultRoute...),
			Others:       append([]hook.Other{}, of.Others...),
		}
		if of.Err != nil {
			i.Error = oneLine(of.Err)
		}
		r.Interfaces = append(r.Interfaces, i)
	}
	return nil
}

// conclude tells whether a capture can begin, and what to do where it cannot.
func (r *Report) conclude(s kernel.Surroundings, refused error) {
	if r.err = refused; refused == nil {
		r.Ready = true
		return
	}
	if why := s.Explain(refused, kernel.AskCalls()); why != "" {
		r.ToDo = append(r.ToDo, why)
		return
	}
	r.ToDo = append(r.ToDo, oneLine(refused))
}
