// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// stream sends numbered datagrams, the number in their first 8 bytes, and meanwhile writes marks to a device: how many were
// sent by then. All of it is big-endian.
func stream(args []string) error {
	fs := flag.NewFlagSet("stream", flag.ExitOnError)
	n := fs.Int("n", 1000, "how many datagrams")
	first := fs.Int("first", 1, "`number` of the first")
	size := fs.Int("size", 512, "`bytes` in each")
	every := fs.Duration("every", 10*time.Millisecond, "between two")
	device := fs.String("marks", "", "`device` to write marks to")
	_ = fs.Parse(args)
	if fs.NArg() != 1 || *size < 8 {
		return errors.New("wants one address, and 8 bytes")
	}
	to, err := net.ResolveUDPAddr("udp4", fs.Arg(0))
	if err != nil {
		return err
	}
	c, err := net.ListenUDP("udp4", nil) // not connected: nobody may listen there, and that is no error
	if err != nil {
		return err
	}
	defer c.Close()
	var sent atomic.Uint64
	failed := make(chan error, 1)
	if *device != "" {
		go func() { failed <- marks(*device, &sent) }()
	}
	tick := time.NewTicker(*every)
	defer tick.Stop()
	buf := make([]byte, *size)
	for i := range *n {
		select {
		case err := <-failed:
			return err
		case <-tick.C:
		}
		binary.BigEndian.PutUint64(buf, uint64(*first+i))
		if _, err := c.WriteToUDP(buf, to); err != nil {
			return err
		}
		sent.Add(1)
	}
	fmt.Println(*n, "sent")
	return nil
}

// markMagic begins a mark. There follow how many datagrams were sent, and when that was: ns since 1970.
const markMagic = "LAB mark"

// marks writes a mark after the other to a device, past the page cache.
func marks(device string, sent *atomic.Uint64) error {
	f, err := os.OpenFile(device, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// A mapping begins at a page, as O_DIRECT wants it.
	buf, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for ; ; time.Sleep(5 * time.Millisecond) {
		copy(buf, markMagic)
		binary.BigEndian.PutUint64(buf[8:], sent.Load())
		binary.BigEndian.PutUint64(buf[16:], uint64(time.Now().UnixNano()))
		if _, err := f.WriteAt(buf, 0); err != nil {
			return err
		}
	}
}
