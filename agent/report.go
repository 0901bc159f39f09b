// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/cilium/ebpf"

	"droidtap/agent/capture"
	"droidtap/agent/filter"
	"droidtap/agent/kernel"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
)

// Exit codes.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2 // what was typed: a flag, an expression, an interface, a path
	exitPermission = 3
	exitKernel     = 4 // the kernel lacks something
)

func exitCode(err error) int {
	var other exitOf
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &other):
		return other.code
	case plugin.IsUsage(err):
		return exitUsage
	case errors.Is(err, capture.ErrKernel):
		return exitKernel
	case errors.Is(err, os.ErrPermission): // also to be asked: then it is not known what the kernel has
		return exitPermission
	case errors.Is(err, plan.ErrImpossible), errors.Is(err, ebpf.ErrNotSupported):
		return exitKernel
	}
	return exitFailed
}

// report prints an error in one line, with what to do about it, and returns the
// exit code.
func report(w io.Writer, err error) int {
	code := exitCode(err)
	if err == nil || errors.As(err, new(reportedError)) {
		return code
	}
	text := oneLine(err.Error())
	switch {
	case code == exitUsage && errors.Is(err, errOption):
		text += " (agent --help lists the options)"
	case code == exitPermission:
		text = "not permitted" + explained(err) + " (" + text + ")"
	case code == exitKernel:
		text += explained(err)
	}
	fmt.Fprintf(w, "agent: %s\n", text)
	return code
}

// oneLine puts what joined errors have in several lines into one.
func oneLine(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ") }

// explained says why the system refused something and what to do, behind a colon; "" where that is not known.
func explained(err error) string {
	if why := kernel.Look(os.DirFS("/")).Explain(err, kernel.AskCalls()); why != "" {
		return ": " + why
	}
	return ""
}

// version is set by the Makefile: git describe.
var version = "unreleased"

func versionText() string {
	modules := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/cilium/ebpf" {
				modules = ", cilium/ebpf " + m.Version
			}
		}
	}
	return fmt.Sprintf("droidtap agent %s\n%s%s, %s %s/%s", version, filter.Version(), modules, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// newLog makes the log of messages beside the capture's own lines: warnings, and
// with verbose 1 the reasons, with 2 the steps.
func newLog(w io.Writer, verbose int) *slog.Logger {
	level := slog.LevelWarn - slog.Level(4*min(verbose, 2))
	return slog.New(&lineHandler{w: w, level: level})
}

// lineHandler writes "agent: message (key value, key value)", each in one line. A time
// would only repeat what the reader of a terminal knows.
type lineHandler struct {
	w     io.Writer
	level slog.Level
	attrs []slog.Attr
}

func (h *lineHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	parts := make([]string, 0, len(h.attrs)+r.NumAttrs())
	add := func(a slog.Attr) bool {
		parts = append(parts, fmt.Sprintf("%s %v", a.Key, a.Value))
		return true
	}
	for _, a := range h.attrs {
		add(a)
	}
	r.Attrs(add)
	line := "agent: " + r.Message
	if len(parts) > 0 {
		line += " (" + strings.Join(parts, ", ") + ")"
	}
	_, err := fmt.Fprintln(h.w, oneLine(line))
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &lineHandler{h.w, h.level, append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)}
}

// WithGroup returns h: no plugin groups what it logs.
func (h *lineHandler) WithGroup(string) slog.Handler { return h }
