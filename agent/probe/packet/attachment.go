// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
	"droidtap/android"
)

// attachment is all that one capture holds in the kernel's network stack.
type attachment struct {
	closers []io.Closer // in the order in which they were opened
	stop    chan struct{}
	watcher sync.WaitGroup
}

// Close detaches in reverse order, whatever fails on the way.
func (a *attachment) Close() error {
	if a.stop != nil {
		close(a.stop)
		a.watcher.Wait()
	}
	return a.closeFrom(0)
}

// closeFrom closes what was opened since there were n closers.
func (a *attachment) closeFrom(n int) error {
	var errs []error
	for _, c := range slices.Backward(a.closers[n:]) {
		errs = append(errs, c.Close())
	}
	a.closers = a.closers[:n]
	return errors.Join(errs...)
}

// watch tells when interfaces go away, and ends the capture with the last one.
func (a *attachment) watch(chosen []android.Interface, t plugin.Target) error {
	alive := map[int]string{}
	for _, ifc := range chosen {
		alive[ifc.Index] = ifc.Name
	}
	updates := make(chan netlink.LinkUpdate)
	a.stop = make(chan struct{})
	err := netlink.LinkSubscribeWithOptions(updates, a.stop, netlink.LinkSubscribeOptions{
		ErrorCallback: func(err error) {
			if !errors.Is(err, unix.EBADF) { // what Close does to the socket
				t.Log.Debug("watch interfaces", "error", err)
			}
		},
	})
	if err != nil {
		a.stop = nil
		return fmt.Errorf("watch interfaces: %w", err)
	}
	a.watcher.Go(func() {
		for u := range updates {
			name, ours := alive[int(u.Index)]
			if !ours || u.Header.Type != unix.RTM_DELLINK {
				continue
			}
			delete(alive, int(u.Index))
			if len(alive) == 0 {
				t.Fail(fmt.Errorf("interface %s went away and no other is left: the capture ends", name))
			} else {
				t.Log.Warn("interface " + name + " went away: the capture goes on without it")
			}
		}
	})
	return nil
}
