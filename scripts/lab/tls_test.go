// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"strings"
	"testing"

	"droidtap/scripts/tls"
)

// tlsClient makes connections from the phone to the peer.
type tlsClient struct {
	name string
	n    int
	line string // the command, with %d for the number of the first connection and %d for how many
	late string // a file that nobody has mapped before the client; it waits at fifo until the agent has found that
}

// Where the servers of serveTLS listen.
const (
	goServer13, goServer12         = "4433", "4434"
	boringServer13, boringServer12 = "4435", "4436"
	tlsPorts                       = "tcp portrange 4433-4436"
)

// preload are the environment's variables for a client that is preloaded with one of ./tls.
func preload(name string, more ...string) string {
	return strings.Join(append([]string{"LD_PRELOAD=" + tlsDir + "/" + name}, more...), " ") + " "
}

func boringClient(with, dir, version, port string) string {
	return "env " + with + "LD_LIBRARY_PATH=" + dir + " " + tlsDir + "/boring -c -v " + version + " -k " + tlsDir + "/keys/clients -f %d -n %d " + peer + " " + port
}

func goClient(program, version, port string) string {
	return tlsDir + "/" + program + " -tls " + version + " -keylog " + tlsDir + "/keys/clients -f %d -n %d " + peer + ":" + port
}

// tlsClients are of every kind, a hundred connections in all.
var tlsClients = []tlsClient{
	{name: "the APEX's BoringSSL", n: 15, line: boringClient("", conscrypt, "13", goServer13)},
	{name: "the APEX's BoringSSL, 1.2", n: 10, line: boringClient("", conscrypt, "12", goServer12)},
	{name: "tagged pointers", n: 15, line: boringClient(preload("tagged.so"), conscrypt, "13", boringServer13)},
	{name: "tagged pointers, 1.2", n: 10, line: boringClient(preload("tagged.so"), conscrypt, "12", boringServer12)},
	{name: "an app's own BoringSSL", n: 10, late: appDir + "/libssl.so.0",
		line: boringClient(preload("app.so", "AWAIT="+fifo), appDir, "13", goServer13)},
	{name: "BoringSSL in an APK", n: 10, late: tlsDir + "/base.apk",
		line: boringClient(preload("app.so", "AWAIT="+fifo, "APK_LIBRARY=/libssl.so", "APK_FILE="+tlsDir+"/base.apk", fmt.Sprint("APK_OFFSET=", apkOffset)),
			conscrypt, "13", boringServer13)},
	{name: "Go", n: 15, line: goClient("go", "1.3", goServer13)},
	{name: "Go, 1.2", n: 5, line: goClient("go", "1.2", goServer12)},
	{name: "Go, position-independent", n: 5, line: goClient("go-pie", "1.3", goServer13)},
	{name: "OpenSSL", n: 5, line: openSSL},
}

// openSSL makes each connection by a process of its own. The library is named to the agent: nobody maps it before the first.
const openSSL = `i=%d; n=%d; while [ $n -gt 0 ]; do
	printf 'GET /hello-%%03d HTTP/1.1\r\nHost: test\r\n\r\n' $i |
		env LD_LIBRARY_PATH=` + openDir + ` ` + openDir + `/openssl s_client -quiet -keylogfile ` + tlsDir + `/keys/clients -connect ` + peer + ":" + goServer13 + ` 2>/dev/null |
		grep ^answer- >/dev/null || exit 1
	i=$((i + 1)); n=$((n - 1))
done`

// testTLS captures with the secrets of the programs that talk, by both of the ways in which they are read.
func testTLS(t *testing.T, p *phone) {
	p.installTLS(t)
	p.serveTLS(t)
	for _, object := range []string{"auto", "legacy"} {
		t.Run("by object "+object, func(t *testing.T) { testTLSClients(t, p, object) })
		t.Run("of servers by object "+object, func(t *testing.T) { testTLSServers(t, p, object) })
	}
	t.Run("one app", func(t *testing.T) { testTLSOfApp(t, p) })
	t.Run("not a library", func(t *testing.T) { testTLSWithout(t, p) })
}

func testTLSClients(t *testing.T, p *phone, object string) {
	flags, log := "--object "+object, "*"
	if object == "auto" {
		// Of the shell's uid alone: the servers, root's, have the same secrets as the clients. Events of tracefs bring no uid, and of a
		// client that has ended nobody can be asked.
		flags, log = "--uid 2000", "clients"
	}
	c := p.captureTLS(t, flags+" --tls-lib auto --tls-lib "+openDir+"/libssl.so.3")
	c.found(t, tlsDir+"/go") // a server's, of which the agent may learn when it captures already
	c.found(t, tlsDir+"/go-pie")
	first := 0
	for _, client := range tlsClients {
		line := fmt.Sprintf(client.line, first, client.n)
		if client.late == "" {
			p.shell(t, line)
		} else {
			late := p.start(t, "shell", line)
			c.found(t, client.late)
			p.shell(t, "echo > "+fifo)
			if code := late.end(t); code != 0 {
				t.Fatalf("%s: exit code %d:\n%s", client.name, code, strings.Join(late.seen, "\n"))
			}
		}
		first += client.n
	}
	c.end(t, log)
	c.decrypts(t, first)
	if len(c.logged) < 3*first {
		t.Errorf("the libraries have logged %d lines only", len(c.logged))
	}
}

// testTLSServers has the secrets of the servers alone, by naming a library that no client uses: some of their pointers are tagged, too.
func testTLSServers(t *testing.T, p *phone, object string) {
	c := p.captureTLS(t, "--object "+object+" --tls-lib "+conscrypt+"/libssl.so")
	p.shell(t, fmt.Sprintf(boringClient("", appDir, "13", boringServer13), 0, 10)+" && "+fmt.Sprintf(boringClient("", appDir, "12", boringServer12), 10, 10))
	c.end(t, "servers")
	c.decrypts(t, 20)
	if len(c.logged) != 10*5+10 {
		t.Errorf("the servers have logged %d lines", len(c.logged))
	}
}

// testTLSOfApp has two apps talk at once.
func testTLSOfApp(t *testing.T, p *phone) {
	c := p.captureTLS(t, "--tls-lib auto --uid 10123")
	line := boringClient("", conscrypt, "13", boringServer13)
	p.shell(t, "su 10123 -c '"+fmt.Sprintf(line, 0, 10)+"' & "+
		"su 10124 -c '"+strings.Replace(fmt.Sprintf(line, 10, 10), "/clients ", "/others ", 1)+"'; wait")
	c.end(t, "clients")
	c.decrypts(t, 10)
	if others := tls.Lines(p.root(t, "cat "+tlsDir+"/keys/others")); len(c.logged) != 50 || len(others) != 50 {
		t.Errorf("the app has logged %d lines, the other %d", len(c.logged), len(others))
	}
}

// testTLSWithout names files in which nothing is to be found: each is said, and the capture goes on without.
func testTLSWithout(t *testing.T, p *phone) {
	c := p.captureTLS(t, "--tls-lib /system/bin/sh --tls-lib /nonexistent/libssl.so")
	p.shell(t, fmt.Sprintf(boringClient("", conscrypt, "13", boringServer13), 0, 1))
	c.end(t, "others")
	c.decrypts(t, 0)
	said := strings.Join(c.agent.seen, "\n")
	for _, file := range []string{"/system/bin/sh", "/nonexistent/libssl.so"} {
		if !strings.Contains(said, file) {
			t.Errorf("it does not say that there is no TLS library in %s:\n%s", file, said)
		}
	}
	if m := capturedLine.FindStringSubmatch(said); m == nil || len(m[1]) < 2 {
		t.Errorf("it captures nothing:\n%s", said)
	}
}
