// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
)

// TestInodeOfALaterSocket has a flow's local end change hands, as the programs tell by its uid, or between processes of one uid.
func TestInodeOfALaterSocket(t *testing.T) {
	const older, newer = 4711, 4712
	for _, c := range []struct {
		what   string
		q      Question
		closes bool          // told of the first socket
		after  time.Duration // between the two
		uid    uint32        // of both packets, and of the later socket
		next   uint32
		socket uint32 // that is there later; 0: none
		want   uint32
	}{
		{"another uid's", datagramIn(), true, time.Second, 10001, 10002, newer, newer},
		{"another uid's, and nobody told of a close", datagramIn(), false, time.Second, 10001, 10002, newer, newer},
		{"another uid's that is gone, too", datagramIn(), true, time.Second, 10001, 10002, 0, 0},
		{"another uid's that is gone, and nobody told of a close", datagramIn(), false, time.Minute, 10001, 10002, 0, 0},
		{"another process's", datagramIn(), true, time.Second, 10001, 10001, newer, newer},
		{"another process's that is gone, too", datagramIn(), true, time.Minute, 10001, 10001, 0, 0},
		{"the same", datagramIn(), false, time.Minute, 10001, 10001, older, older},
		{"a socket that is gone", datagramIn(), false, time.Minute, 10001, 10001, 0, older},
		{"another connection's", segmentIn(2), false, time.Second, 10001, 10001, newer, newer},
		{"a connection's that is gone, too", segmentIn(2), false, time.Second, 10001, 10001, 0, 0},
		{"a connection's", segmentIn(0x10), false, time.Minute, 10001, 10001, 0, older},
	} {
		t.Run(c.what, func(t *testing.T) {
			k, f := newFake()
			k.uid, k.inode = int(c.uid), older
			if got := f.Inode(c.q, c.uid); got != older {
				t.Fatalf("at first: %d", got)
			}
			k.now += int64(c.after)
			if c.closes {
				if err := f.forget(shared{}, []sockdiag.Socket{{Protocol: unix.IPPROTO_UDP, Local: udpFlow.Local}}, false); err != nil {
					t.Fatal(err)
				}
				k.now++
			}
			if k.uid, k.inode = int(c.next), c.socket; c.socket == 0 {
				k.uid = nobody
			}
			for range 2 {
				if got := f.Inode(c.q, c.next); got != c.want {
					t.Errorf("%d, want %d", got, c.want)
				}
				c.q.Age += time.Millisecond
				k.now += int64(time.Millisecond)
			}
		})
	}
}
