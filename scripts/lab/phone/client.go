// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// fetch prints the status and the number of bytes of each answer.
func fetch(args []string) error {
	fs := flag.NewFlagSet("fetch", flag.ExitOnError)
	n := fs.Int("n", 1, "number of requests")
	size := fs.Int("size", 64, "`bytes` to ask for")
	keep := fs.Duration("keep", 0, "how long each connection stays open behind the last answer, as a browser's does")
	_ = fs.Parse(args)
	u, err := url.Parse(fs.Arg(0))
	if err != nil || fs.NArg() != 1 {
		return errors.New("wants one URL")
	}
	u.RawQuery = url.Values{"size": {strconv.Itoa(*size)}}.Encode()

	for range *n {
		// A client of its own, so that each request has its own connection.
		client := &http.Client{
			Timeout: 30 * time.Second,
			Transport: &http.Transport{
				DisableKeepAlives: *keep == 0,
				TLSClientConfig: &tls.Config{
					InsecureSkipVerify: true,
					// A post-quantum key share would not leave the ClientHello in one segment.
					CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256},
				},
			},
		}
		resp, err := client.Get(u.String())
		if err != nil {
			return err
		}
		got, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return fmt.Errorf("read body: %w", err)
		}
		fmt.Println(resp.Status, got, "bytes")
	}
	time.Sleep(*keep)
	return nil
}

// udp fails when one echo stays away for two seconds.
func udp(args []string) error {
	fs := flag.NewFlagSet("udp", flag.ExitOnError)
	n := fs.Int("n", 1, "number of datagrams")
	_ = fs.Parse(args)
	c, err := net.Dial("udp", fs.Arg(0))
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 2048)
	for i := range *n {
		// Every datagram differs, so that captures can be compared one by one.
		want := fmt.Appendf(nil, "datagram %d of %d", i+1, *n)
		if _, err := c.Write(want); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		got, err := c.Read(buf)
		if err != nil {
			return fmt.Errorf("echo %d of %d: %w", i+1, *n, err)
		}
		if !bytes.Equal(buf[:got], want) {
			return fmt.Errorf("echo %d of %d is %q, want %q", i+1, *n, buf[:got], want)
		}
	}
	fmt.Println(*n, "echoes")
	return nil
}

// wait returns when every address has accepted a connection, and gives up on
// one after half a minute.
func wait(addrs []string) error {
	for _, addr := range addrs {
		deadline := time.Now().Add(30 * time.Second)
		for {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}
