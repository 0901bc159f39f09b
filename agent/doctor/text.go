// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"io"
	"math"
	"strings"

	"droidtap/agent/kernel"
	"droidtap/agent/plan"
)

// oneLine returns an error's text without its line ends.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// process tells what the surroundings of the process allow.
func (r *Report) process(s kernel.Surroundings, raised error) {
	add := func(question, answer string) { r.Process = append(r.Process, Answer{question, answer}) }
	user := fmt.Sprint(s.UID)
	if s.UserNamespace {
		user += ", in a user namespace"
	}
	add("user id", user)
	if missing := s.Missing(); len(missing) > 0 {
		add("capabilities", "lacks "+strings.Join(missing, ", "))
	} else {
		add("capabilities", "all that a capture needs")
	}
	add("SELinux", selinux(s.SELinux))
	add("lockdown", orElse(s.Lockdown, "none that shows itself"))
	add("seccomp", []string{"none", "strict", "a filter"}[min(max(s.Seccomp, 0), 2)])
	limit := "unlimited"
	if s.Memlock != math.MaxUint64 {
		limit = fmt.Sprintf("%d bytes, which kernels before 5.11 heed", s.Memlock)
	}
	if raised != nil {
		limit += ", and cannot be raised: " + oneLine(raised)
	}
	add("locked memory", limit)
}

func selinux(l kernel.SELinux) string {
	switch {
	case !l.Enabled:
		return "none"
	case l.Enforcing:
		return "enforcing, context " + orElse(l.Context, "unknown")
	}
	return "permissive, context " + orElse(l.Context, "unknown")
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// Text writes the report for people. Every line is a fact; the last says "ready", or what to do.
func (r *Report) Text(w io.Writer) error {
	var b strings.Builder
	section := func(title string, answers []Answer) {
		fmt.Fprintf(&b, "%s\n", title)
		for _, a := range answers {
			fmt.Fprintf(&b, "  %s: %s\n", a.Question, a.Answer)
		}
	}
	fmt.Fprintf(&b, "%s\n", r.Agent)
	fmt.Fprintf(&b, "%s\n  KMI: %s\n", r.Kernel, orElse(r.KMI, "none, this is no GKI kernel or does not say so"))
	section("what the kernel answers", r.Answers)
	section("objects that load", r.Objects)
	fmt.Fprintln(&b, "what a capture uses, and why not the others")
	for _, c := range r.Choices {
		choice(&b, "  ", c)
	}
	fmt.Fprintf(&b, "offsets in the kernel's structs\n  source: %s\n  checked: %s\n", orElse(r.Types.Source, "none"), r.Types.Answer)
	section("this process", r.Process)
	fmt.Fprintln(&b, "interfaces")
	for _, i := range r.Interfaces {
		i.text(&b)
	}
	if r.Ready {
		fmt.Fprintln(&b, "ready")
	}
	for _, todo := range r.ToDo {
		fmt.Fprintf(&b, "not ready: %s\n", todo)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// choice writes a decision, and a line for each thing that was not chosen.
func choice(b *strings.Builder, indent string, c plan.Choice) {
	fmt.Fprintf(b, "%s%s: %s (%s)\n", indent, c.What, c.Chosen, c.Why)
	for _, n := range c.Not {
		fmt.Fprintf(b, "%s  not %s: %s\n", indent, n.Name, strings.ReplaceAll(n.Why, "\n", "; "))
	}
}

func (i Interface) text(b *strings.Builder) {
	fmt.Fprintf(b, "  %d.%s %s %s\n", i.Index, i.Name, i.Type, i.State)
	if len(i.Addresses) > 0 {
		fmt.Fprintf(b, "    addresses: %s\n", strings.Trim(fmt.Sprint(i.Addresses), "[]"))
	}
	if len(i.DefaultRoute) > 0 {
		fmt.Fprintf(b, "    default route: %s\n", strings.Join(i.DefaultRoute, ", "))
	}
	if i.Error != "" {
		fmt.Fprintf(b, "    cannot be looked at: %s\n", i.Error)
		return
	}
	if i.Hook.Chosen != "" {
		i.Hook.What = "hook"
		choice(b, "    ", i.Hook)
	}
	for _, o := range i.Others {
		fmt.Fprintf(b, "    attached: %s\n", o)
	}
}
