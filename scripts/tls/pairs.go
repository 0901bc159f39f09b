// SPDX-License-Identifier: Apache-2.0

package tls

import (
	"path/filepath"
	"strconv"
)

// Pair is a client and a server.
type Pair struct {
	Name string
	QUIC bool

	libraries []string // files in Dir, or the host's, with the TLS code
	server    func(*Running) []string
	client    func(r *Running, first, n int) []string
	keylog    string // the option that takes the key log; "": SSLKEYLOGFILE is in the environment
	ready     string // what the server says then
	says      string // what the client says at the end; ALL: all but the first connection
	many      bool   // the client makes n connections by itself
	echoes    bool   // the server sends back what it gets
	// hides: the library logs no secret of early data, and no request but the first can be read. Go's does so: QUIC is given the secret
	// (quicSetWriteSecret in crypto/tls/handshake_client.go), and the log is not.
	hides bool
}

// Pairs returns those that there are.
func Pairs() []Pair {
	all := []Pair{curl()}
	for _, v := range []struct{ dir, lib string }{{"openssl-1.1.1", "libssl.so.1.1"}, {"openssl-3.0", "libssl.so.3"}, {"openssl-3.5", "libssl.so.3"}} {
		all = append(all, openssl(v.dir, v.lib, "1.3"), openssl(v.dir, v.lib, "1.2"))
	}
	for _, dir := range []string{"boringssl-13", "boringssl-14"} {
		all = append(all,
			boring(dir, "TLS 1.3, keys updated", "", "-u"),
			boring(dir, "TLS 1.3, 0-RTT", "ALL resumed, ALL with early data", "-e"),
			boring(dir, "TLS 1.2, resumed", "ALL resumed", "-v", "12", "-r"))
	}
	early := quic("go, HTTP/3, 0-RTT", "ALL with early data", "-early")
	early.hides = true
	return append(all,
		golang("plain", "TLS 1.3", "0 resumed"),
		golang("stripped", "TLS 1.2", "0 resumed", "-tls", "1.2"),
		golang("pie", "TLS 1.3, resumed", "ALL resumed", "-resume"),
		gnutls("1.3"), gnutls("1.2"), ngtcp2(),
		quic("go, HTTP/3", "0 with early data"), early)
}

func openssl(dir, library, version string) Pair {
	program, option := dir+"/openssl", "-tls1_"+version[2:]
	return Pair{
		Name: dir + ", TLS " + version, libraries: []string{dir + "/lib/" + library},
		server: func(r *Running) []string { return s_server(r, program) },
		client: func(r *Running, first, n int) []string {
			return []string{program, "s_client", "-connect", r.address + ":" + Port, "-quiet", option,
				"-keylogfile", r.log("client.log")}
		},
		ready: "ACCEPT",
	}
}

// s_server is an openssl that serves the files of its directory. (It takes no 0-RTT when it does.)
func s_server(r *Running, program string) []string {
	return []string{program, "s_server", "-accept", r.address + ":" + Port, "-cert", "cert.pem", "-key", "key.pem", "-WWW",
		"-keylogfile", r.log("server.log")}
}

// log is the path of a key log, or of nothing.
func (r *Running) log(name string) string {
	if !r.logs {
		return "/dev/null"
	}
	return name
}

// curl is the host's, with another release of OpenSSL than the server. Its connections resume one session.
func curl() Pair {
	const dir = "openssl-3.5"
	host, _ := filepath.Glob("/usr/lib/*/libssl.so.3") // the pattern is well-formed
	return Pair{
		Name: "curl to " + dir, libraries: append(host, dir+"/lib/libssl.so.3"),
		server: func(r *Running) []string { return s_server(r, dir+"/openssl") },
		client: func(r *Running, first, n int) []string {
			return []string{"curl", "-sS", "-k", "--http1.0", "--fail", "https://" + r.address + "/hello-[" + number(first) + "-" + number(first+n-1) + "]"}
		},
		ready: "ACCEPT", many: true,
	}
}

func boring(dir, what, says string, options ...string) Pair {
	program := dir + "/boring"
	return Pair{
		Name: dir + ", " + what, libraries: []string{dir + "/lib/libssl.so.0"},
		server: func(r *Running) []string {
			return append(append([]string{program, "-s", "-C", "cert.pem", "-K", "key.pem"}, options...), r.address, Port)
		},
		client: func(r *Running, first, n int) []string {
			return append(append([]string{program, "-c", "-f", strconv.Itoa(first), "-n", strconv.Itoa(n)}, options...), r.address, Port)
		},
		keylog: "-k", ready: "ready", says: says, many: true,
	}
}

func golang(program, what, says string, options ...string) Pair {
	return inGo("go/"+program, "go, "+program+", "+what, says, options...)
}

func quic(what, says string, options ...string) Pair {
	p := inGo("http3/http3", what, says, options...)
	p.QUIC = true
	return p
}

func inGo(program, name, says string, options ...string) Pair {
	return Pair{
		Name: name, libraries: []string{program},
		server: func(r *Running) []string {
			return append(append([]string{program, "-s", "-cert", "cert.pem", "-key", "key.pem"}, options...), r.address+":"+Port)
		},
		client: func(r *Running, first, n int) []string {
			return append(append([]string{program, "-f", strconv.Itoa(first), "-n", strconv.Itoa(n)}, options...), r.address+":"+Port)
		},
		keylog: "-keylog", ready: "ready", says: says, many: true,
	}
}

func gnutls(version string) Pair {
	const dir = "gnutls-3.7"
	priority := "NORMAL:-VERS-ALL:+VERS-TLS" + version
	return Pair{
		Name: dir + ", TLS " + version, libraries: []string{dir + "/lib/libgnutls.so.30"},
		server: func(r *Running) []string {
			return []string{dir + "/gnutls-serv", "--echo", "--disable-client-cert", "--priority", priority, "-p", Port,
				"--x509certfile", "cert.pem", "--x509keyfile", "key.pem"}
		},
		client: func(r *Running, first, n int) []string {
			return []string{dir + "/gnutls-cli", "--insecure", "--priority", priority, "-p", Port, r.address}
		},
		ready: "Echo Server listening on IPv4", echoes: true,
	}
}

// ngtcp2 is HTTP/3 with GnuTLS: each connection but the first resumes the session of the one before, and asks in 0-RTT packets.
func ngtcp2() Pair {
	const dir = "ngtcp2-0.12"
	return Pair{
		Name: dir + ", HTTP/3, 0-RTT", libraries: []string{dir + "/lib/libgnutls.so.30"}, QUIC: true,
		server: func(r *Running) []string {
			return []string{dir + "/gtlsserver", "--no-quic-dump", "-d", ".", r.address, Port, "key.pem", "cert.pem"}
		},
		client: func(r *Running, first, n int) []string {
			return []string{dir + "/gtlsclient", "--exit-on-all-streams-close", "--no-quic-dump", "-m", "POST", "-d", "ask-" + number(first),
				"--session-file", "session", "--tp-file", "parameters", r.address, Port, "https://" + r.address + "/" + Request(first)}
		},
		ready: "Using document root",
	}
}
