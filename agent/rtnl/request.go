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

// Do asks for something to be made, replaced or deleted, as kind and the flags say, such as unix.RTM_NEWTFILTER and
// unix.NLM_F_CREATE. The error may wrap the kernel's unix.Errno.
func Do(kind, flags uint16, request []byte) error {
	_, err := ask(kind, flags|unix.NLM_F_ACK, request)
	return err
}

// Attributes returns the values of the attributes in b by their type, without NLA_F_NESTED and NLA_F_NET_BYTEORDER; of
// several of a type, that of the last. The error wraps unix.EBADMSG.
func Attributes(b []byte) (map[uint16][]byte, error) {
	all, err := attributes(b)
	if err != nil {
		return nil, err
	}
	of := make(map[uint16][]byte, len(all))
	for _, a := range all {
		of[a.kind] = a.value
	}
	return of, nil
}
