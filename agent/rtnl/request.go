// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"

	"golang.org/x/sys/unix"
)

// List asks for all that there is of a kind, such as unix.RTM_GETTFILTER, and returns the bodies of the answers: a struct and
// attributes, as the request is. A list that changed while it was read is read again, five times at most; with
// ErrInterrupted there are answers. Other errors may be the kernel's unix.Errno.
func List(kind uint16, request []byte) (answers [][]byte, err error) {
	for range 5 {
		if answers, err = ask(kind, unix.NLM_F_DUMP, request); !errors.Is(err, ErrInterrupted) {
			break
		}
	}
	return answers, err
}
