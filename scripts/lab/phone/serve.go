// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// serve listens on the ports of its flags and returns on the first error.
func serve(args []string) error {
	fs := flag.NewFlagSet("serve", flag.ExitOnError)
	tlsPorts := fs.String("tls", "443", "HTTP over TLS, `ports`")
	httpPorts := fs.String("http", "80", "plain HTTP, `ports`")
	tcpPorts := fs.String("tcp", "7", "TCP echo, `ports`")
	udpPorts := fs.String("udp", "7", "UDP echo, `ports`")
	_ = fs.Parse(args)

	cert, err := selfSigned()
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	failed := make(chan error)
	for _, l := range []struct {
		ports string
		serve func(addr string) error
	}{
		{*tlsPorts, func(addr string) error {
			return listen(addr, func(l net.Listener) error { return http.Serve(tls.NewListener(l, config), http.HandlerFunc(answer)) })
		}},
		{*httpPorts, func(addr string) error {
			return listen(addr, func(l net.Listener) error { return http.Serve(l, http.HandlerFunc(answer)) })
		}},
		{*tcpPorts, func(addr string) error { return listen(addr, echoTCP) }},
		{*udpPorts, echoUDP},
	} {
		for port := range strings.SplitSeq(l.ports, ",") {
			if port != "" {
				go func() { failed <- l.serve(":" + port) }()
			}
		}
	}
	return <-failed
}

func listen(addr string, serve func(net.Listener) error) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return serve(l)
}

// answer sends as many bytes as the query's size says.
func answer(w http.ResponseWriter, r *http.Request) {
	size, err := strconv.Atoi(r.FormValue("size"))
	if err != nil || size < 0 {
		size = 64
	}
	w.Header().Set("Content-Length", strconv.Itoa(size))
	_, _ = io.CopyN(w, letters{}, int64(size))
}

// letters is an endless reader of one letter, so that plain text is easy to see.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func echoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(c, c)
			c.Close()
		}()
	}
}

func echoUDP(addr string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(buf[:n], from); err != nil {
			return err
		}
	}
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"peer"},
		NotBefore:    time.Unix(0, 0), // the guest may not know the date
		NotAfter:     time.Now().AddDate(10, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
