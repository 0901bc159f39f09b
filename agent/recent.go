// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// mostRecent is how many warnings are kept for agent status.
const mostRecent = 20

// warning is a line of the log.
type warning struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

// recent keeps the last warnings.
type recent struct {
	mu    sync.Mutex
	lines []warning
}

func (r *recent) add(w warning) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lines) == mostRecent {
		r.lines = slices.Delete(r.lines, 0, 1)
	}
	r.lines = append(r.lines, w)
}

// all returns them, the oldest first.
func (r *recent) all() []warning {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]warning{}, r.lines...)
}

// of returns a log that says what l says, and whose warnings are kept.
func (r *recent) of(l *slog.Logger) *slog.Logger {
	return slog.New(&keeper{Handler: l.Handler(), recent: r})
}

// keeper is a handler with a memory.
type keeper struct {
	slog.Handler
	recent *recent
	attrs  []slog.Attr
}

func (k *keeper) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || k.Handler.Enabled(ctx, l)
}

func (k *keeper) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		var line strings.Builder
		_ = (&lineHandler{w: &line, attrs: k.attrs}).Handle(ctx, r) // a builder takes everything
		k.recent.add(warning{r.Time, strings.TrimPrefix(strings.TrimSpace(line.String()), "agent: ")})
	}
	if !k.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return k.Handler.Handle(ctx, r)
}

func (k *keeper) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &keeper{k.Handler.WithAttrs(attrs), k.recent, append(slices.Clip(k.attrs), attrs...)}
}

func (k *keeper) WithGroup(name string) slog.Handler {
	return &keeper{k.Handler.WithGroup(name), k.recent, k.attrs}
}

func (w warning) String() string { return w.Time.Format(time.DateTime) + " " + w.Text }
