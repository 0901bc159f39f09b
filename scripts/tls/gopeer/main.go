// SPDX-License-Identifier: Apache-2.0

// Gopeer is a TLS client and server of Go's own, for tests.
//
//	gopeer -s -cert FILE -key FILE [-tls 1.2] [-keylog FILE] ADDRESS:PORT
//	gopeer [-n CONNECTIONS] [-f FIRST] [-tls 1.2] [-resume] [-keylog FILE] ADDRESS:PORT
//
// The server says "ready" on standard error and serves until it is killed. The client makes connections one after the other:
// connection 7 asks for /hello-007, the server answers "answer-007".
package main

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
)

func main() {
	server := flag.Bool("s", false, "serve")
	cert, key := flag.String("cert", "", "the certificate"), flag.String("key", "", "its key")
	version := flag.String("tls", "1.3", "the version")
	n, first := flag.Int("n", 1, "connections"), flag.Int("f", 0, "the number of the first")
	resume := flag.Bool("resume", false, "resume the session of the connection before")
	keylog := flag.String("keylog", "", "log secrets to this file")
	flag.Parse()

	cfg := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // the certificate is the test's
	if *version == "1.2" {
		cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	}
	if *keylog != "" {
		f, err := os.OpenFile(*keylog, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		check(err)
		cfg.KeyLogWriter = f
	}
	if *resume {
		cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	}
	if *server {
		pair, err := tls.LoadX509KeyPair(*cert, *key)
		check(err)
		cfg.Certificates = []tls.Certificate{pair}
		l, err := tls.Listen("tcp", flag.Arg(0), cfg)
		check(err)
		fmt.Fprintln(os.Stderr, "ready")
		for {
			c, err := l.Accept()
			check(err)
			go answer(c)
		}
	}
	resumed := 0
	for i := *first; i < *first+*n; i++ {
		if ask(flag.Arg(0), cfg, fmt.Sprintf("%03d", i)) {
			resumed++
		}
	}
	fmt.Fprintf(os.Stderr, "%d connections, %d resumed\n", *n, resumed)
}

// answer answers the requests of a connection.
func answer(c net.Conn) {
	defer c.Close()
	for lines := bufio.NewScanner(c); lines.Scan(); {
		name, ok := strings.CutPrefix(lines.Text(), "GET /hello-")
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(name, " ")
		body := "answer-" + name + "\n"
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
		return
	}
}

// ask makes one connection and says whether it resumed a session.
func ask(address string, cfg *tls.Config, name string) bool {
	c, err := tls.Dial("tcp", address, cfg)
	check(err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "GET /hello-%s HTTP/1.1\r\nHost: test\r\n\r\n", name)
	check(err)
	b, err := io.ReadAll(c)
	check(err)
	if !strings.HasSuffix(string(b), "answer-"+name+"\n") {
		check(fmt.Errorf("answer to %s: %q", name, b))
	}
	return c.ConnectionState().DidResume
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
