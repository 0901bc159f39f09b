// SPDX-License-Identifier: Apache-2.0

// Http3 is an HTTP/3 client and server, for tests. It is a module of its own: nothing of it is in the agent's.
//
//	http3 -s -cert FILE -key FILE [-keylog FILE] ADDRESS:PORT
//	http3 [-n CONNECTIONS] [-f FIRST] [-early] [-keylog FILE] ADDRESS:PORT
//
// The server says "ready" on standard error and serves until it is killed. The client makes connections one after the other:
// connection 7 posts "hello-007", the server answers "answer-007". With -early each resumes the session of the one before, and asks in
// 0-RTT packets.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

func main() {
	server := flag.Bool("s", false, "serve")
	cert, key := flag.String("cert", "", "the certificate"), flag.String("key", "", "its key")
	n, first := flag.Int("n", 1, "connections"), flag.Int("f", 0, "the number of the first")
	early := flag.Bool("early", false, "resume sessions, with 0-RTT")
	keylog := flag.String("keylog", "", "log secrets to this file")
	flag.Parse()

	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{http3.NextProtoH3}} // the certificate is the test's
	if *keylog != "" {
		f, err := os.OpenFile(*keylog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		check(err)
		cfg.KeyLogWriter = f
	}
	if *server {
		serve(flag.Arg(0), cfg, *cert, *key)
	}
	if *early {
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	used := 0
	for i := *first; i < *first+*n; i++ {
		if ask(flag.Arg(0), cfg, *early, i) {
			used++
		}
	}
	fmt.Fprintf(os.Stderr, "%d connections, %d with early data\n", *n, used)
}

func serve(address string, cfg *tls.Config, cert, key string) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	check(err)
	cfg.Certificates = []tls.Certificate{pair}
	l, err := quic.ListenAddrEarly(address, cfg, &quic.Config{Allow0RTT: true})
	check(err)
	s := http3.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "answer-%s\n", strings.TrimPrefix(string(b), "hello-"))
	})}
	fmt.Fprintln(os.Stderr, "ready")
	check(s.ServeListener(l))
}

// firstPort is the client's of connection 0. The kernel would give some connections the port of others, and tshark knows them by that.
const firstPort = 20000

// ask makes one connection and says whether it sent early data.
func ask(address string, cfg *tls.Config, early bool, number int) bool {
	name := fmt.Sprintf("%03d", number)
	var c *quic.Conn
	end, err := net.ListenUDP("udp", &net.UDPAddr{Port: firstPort + number})
	check(err)
	defer end.Close()
	tr := &http3.Transport{
		TLSClientConfig: cfg,
		Dial: func(ctx context.Context, addr string, tlsCfg *tls.Config, qcfg *quic.Config) (*quic.Conn, error) {
			server, err := net.ResolveUDPAddr("udp", addr)
			if err != nil {
				return nil, err
			}
			c, err = quic.DialEarly(ctx, end, server, tlsCfg, qcfg)
			return c, err
		},
	}
	defer tr.Close()
	method := http.MethodPost
	if early {
		method = http3.MethodGet0RTT
	}
	r, err := http.NewRequest(method, "https://"+address+"/hello-"+name, bytes.NewReader([]byte("hello-"+name)))
	check(err)
	a, err := tr.RoundTrip(r)
	check(err)
	b, err := io.ReadAll(a.Body)
	check(err)
	if string(b) != "answer-"+name+"\n" {
		check(fmt.Errorf("answer to %s: %q", name, b))
	}
	return c.ConnectionState().Used0RTT
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
