// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"fmt"
	"log/slog"
	"sync/atomic"

	"droidtap/agent/apps"
	"droidtap/agent/process"
)

// whose tells whose secrets are wanted: those of the processes whose packets are.
type whose struct {
	of       apps.Selection
	by       process.Selection
	packages string // path of the list of apps

	book  *apps.Book // nil: no app is asked for
	rules atomic.Pointer[apps.Rules]
}

// open reads which apps there are, if apps are asked for, and follows their installation until Close.
func (w *whose) open(log *slog.Logger) error {
	if w.of.All() {
		return nil
	}
	var err error
	if w.book, err = apps.Open(w.packages, log); err != nil {
		return fmt.Errorf("read which apps there are: %w", err)
	}
	w.renew()
	return nil
}

// renew takes the rules as the list of apps is now. The packets' own probe says what is wrong with them.
func (w *whose) renew() {
	rules, _ := w.book.Rules(w.of)
	w.rules.Store(&rules)
}

// follow renews the rules until ended is closed.
func (w *whose) follow(ended <-chan struct{}) {
	if w.book == nil {
		return
	}
	for {
		select {
		case <-w.book.Changes():
			w.renew()
		case <-ended:
			return
		}
	}
}

// Close ends the watch of the list of apps. The rules stay as they are.
func (w *whose) Close() error {
	if w.book == nil {
		return nil
	}
	return w.book.Close()
}

// admits tells whether a process's secrets are wanted. One whose name cannot be read any more has none.
func (w *whose) admits(pid int, uid uint32) bool {
	if !w.of.All() {
		rules := w.rules.Load()
		if rules == nil || uid == unknownUID || !rules.Admits(uid) {
			return false
		}
	}
	return w.by.All() || w.by.Has(process.Named(pid))
}
