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

	mu      sync.Mutex
	names   map[int]string // of the interfaces attached to, by index
	settled bool           // names is complete
	gone    []int          // indexes of interfaces that were deleted before that
}

// Close detaches in reverse order, whatever fails on the way.
func (a *attachment) Close() error {
	close(a.stop)
	a.watcher.Wait()
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

// add notes that an interface is attached to.
func (a *attachment) add(ifc android.Interface) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.names[ifc.Index] = ifc.Name
}

// watch tells when interfaces go away, and ends the capture with the last one.
func (a *attachment) watch(t plugin.Target) error {
	updates := make(chan netlink.LinkUpdate)
	a.stop = make(chan struct{})
	err := netlink.LinkSubscribeWithOptions(updates, a.stop, netlink.LinkSubscribeOptions{
		ReceiveBufferSize: 1 << 20, // a phone that boots has bursts of hundreds of messages
		ErrorCallback: func(err error) {
			select {
			case <-a.stop: // Close closed its socket
			default:
				t.Log.Warn("interfaces that go away will not be noticed: " + err.Error())
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	a.watcher.Go(func() {
		for u := range updates {
			// A bridge says RTM_DELLINK, too, of an interface that leaves it.
			if u.Header.Type == unix.RTM_DELLINK && u.IfInfomsg.Family == unix.AF_UNSPEC {
				a.drop(int(u.Index), t)
			}
		}
	})
	return nil
}

// drop notes that an interface is gone.
func (a *attachment) drop(index int, t plugin.Target) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.settled {
		a.gone = append(a.gone, index)
		return
	}
	name, ours := a.names[index]
	if !ours {
		return
	}
	delete(a.names, index)
	if len(a.names) == 0 {
		t.Fail(fmt.Errorf("interface %s went away and no other is left: the capture ends", name))
		return
	}
	t.Log.Warn("interface " + name + " went away: the capture goes on without it")
}

// settle is called when everything is attached. An interface may have gone since.
func (a *attachment) settle(t plugin.Target) {
	a.mu.Lock()
	a.settled = true
	a.mu.Unlock()
	for _, index := range a.gone {
		a.drop(index, t)
	}
}
