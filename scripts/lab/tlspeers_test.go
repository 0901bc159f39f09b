// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
	"droidtap/scripts/tls"
)

const (
	// conscrypt is where Android has its BoringSSL.
	conscrypt = "/apex/com.android.conscrypt/lib64"
	// tlsDir has the programs that talk TLS, appDir the BoringSSL of an app, openDir OpenSSL.
	tlsDir  = "/data/local/tmp/tls"
	appDir  = tlsDir + "/app"
	openDir = tlsDir + "/openssl"
	// fifo is what clients wait at (./tls/app.c).
	fifo = tlsDir + "/fifo"
	// apkOffset is where the library begins in base.apk.
	apkOffset = 64 << 10
)

// installTLS puts the peers of ../tls on the phone: the library of Android 13 in the APEX of a 5.10 and that of 14 in that of later kernels,
// the other one as an app's own. base.apk has a copy of the APEX's, which app.so maps in its place.
func (p *phone) installTLS(t *testing.T) {
	t.Helper()
	peers, root := tls.Dir(t, "arm64"), t.TempDir()
	apex, app := peers+"/boringssl-14/", peers+"/boringssl-13/"
	if strings.HasPrefix(p.shell(t, "uname -r"), "5.10.") {
		apex, app = app, apex
	}
	for to, from := range map[string]string{
		conscrypt + "/libssl.so":    apex + "lib/libssl.so.0",
		conscrypt + "/libcrypto.so": apex + "lib/libcrypto.so.0",
		appDir + "/libssl.so.0":     app + "lib/libssl.so.0",
		appDir + "/libcrypto.so.0":  app + "lib/libcrypto.so.0",
		tlsDir + "/boring":          peers + "/boringssl-13/boring",
		tlsDir + "/go":              peers + "/go/stripped",
		tlsDir + "/go-pie":          peers + "/go/pie",
		openDir + "/openssl":        peers + "/openssl-3.5/openssl",
		openDir + "/libssl.so.3":    peers + "/openssl-3.5/lib/libssl.so.3",
		openDir + "/libcrypto.so.3": peers + "/openssl-3.5/lib/libcrypto.so.3",
		openDir + "/libz.so.1":      peers + "/openssl-3.5/lib/libz.so.1",
		openDir + "/libzstd.so.1":   peers + "/openssl-3.5/lib/libzstd.so.1",
	} {
		execute(t, "install", "-D", "-m", "755", from, root+to)
	}
	for _, name := range []string{"ssl", "crypto"} {
		// The name by which Debian's programs ask for it.
		if err := os.Symlink("lib"+name+".so", root+conscrypt+"/lib"+name+".so.0"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"tagged", "app"} {
		execute(t, "aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", root+tlsDir+"/"+name+".so", "tls/"+name+".c")
	}
	library, err := os.ReadFile(apex + "lib/libssl.so.0")
	if err != nil {
		t.Fatal(err)
	}
	apk := slices.Concat(make([]byte, apkOffset), library, make([]byte, 1000))
	tls.Certify(t, root+tlsDir)
	if err := os.WriteFile(root+tlsDir+"/base.apk", apk, 0o644); err != nil {
		t.Fatal(err)
	}

	archive := filepath.Join(t.TempDir(), "tls.tar")
	execute(t, "tar", "-C", root, "--owner=0", "--group=0", "-cf", archive, "./apex", "."+tlsDir)
	const to = "/data/local/tmp/tls.tar"
	p.push(t, archive, to)
	// What an app cannot create it may write to.
	p.root(t, "tar -x -C / -f "+to+" && rm "+to+" && cd "+tlsDir+" && mkdir keys && touch keys/clients keys/others keys/servers && chmod 666 keys/* && mknod -m 666 fifo p")
}

// serveTLS starts the servers in the peer's namespace: other processes of the same phone, whose secrets an agent sees, too.
func (p *phone) serveTLS(t *testing.T) {
	t.Helper()
	const cert, keys = tlsDir + "/cert.pem ", tlsDir + "/keys/servers "
	golang := func(program, version, port string) string {
		return tlsDir + "/" + program + " -s -cert " + cert + "-key " + tlsDir + "/key.pem -tls " + version + " -keylog " + keys + "0.0.0.0:" + port
	}
	boring := func(with, version, port string) string {
		return "env " + with + "LD_LIBRARY_PATH=" + conscrypt + " " + tlsDir + "/boring -s -C " + cert + "-K " + tlsDir + "/key.pem -v " + version + " -k " + keys + "0.0.0.0 " + port
	}
	for _, line := range []string{
		golang("go-pie", "1.3", goServer13), golang("go", "1.2", goServer12),
		boring("", "13", boringServer13), boring(preload("tagged.so"), "12", boringServer12),
	} {
		s := p.start(t, "shell", "su -c 'exec ip netns exec peer "+line+"'")
		s.until(t, regexp.MustCompile("^ready$"))
	}
	t.Cleanup(func() { p.root(t, "pkill -x boring; pkill -x go; pkill -x go-pie") })
}

// tlsCapture is one with the secrets of TLS.
type tlsCapture struct {
	p      *phone
	agent  *process
	path   string   // of its file on the phone
	file   string   // here, at the end
	keys   []string // the lines of its secrets, as tls.Lines gives them
	logged []string // what the libraries logged that are to have theirs in it
}

func (p *phone) captureTLS(t *testing.T, flags string) *tlsCapture {
	t.Helper()
	p.root(t, "rm -f "+tlsDir+"/keylog && cd "+tlsDir+"/keys && for f in *; do : > $f; done")
	c := &tlsCapture{p: p, agent: p.start(t, "shell", "su -c '"+agent+" -v -i wlan0 --tls --keylog "+tlsDir+"/keylog "+flags+" "+tlsPorts+"'")}
	c.path = c.agent.until(t, readyLine)[1]
	return c
}

// end ends it when all connections are closed, and wants its file's secrets to be what is in a log of the libraries, each once, and so its
// key log.
func (c *tlsCapture) end(t *testing.T, log string) {
	t.Helper()
	c.p.quiet(t)
	c.p.root(t, "pkill -INT -x agent")
	if code := c.agent.end(t); code != 0 {
		t.Fatalf("exit code %d:\n%s", code, strings.Join(c.agent.seen, "\n"))
	}
	c.file = c.p.pull(t, c.path)
	c.logged = tls.Lines(c.p.root(t, "cat "+tlsDir+"/keys/"+log))
	f, err := nettest.Read(c.file)
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, s := range f.Secrets {
		text += s.Text
	}
	c.keys = tls.Lines(text)
	if n := strings.Count(text, "\n"); n != len(c.keys) {
		t.Errorf("the file has %d secrets, of which %d are different", n, len(c.keys))
	}
	if d := only(c.logged, c.keys); len(d) > 0 {
		t.Errorf("%d of %d secrets are not in the file, such as %s", len(d), len(c.logged), d[0])
	}
	if d := only(c.keys, c.logged); len(d) > 0 {
		t.Errorf("%d of %d secrets in the file are not what the libraries logged, such as %s", len(d), len(c.keys), d[0])
	}
	if diff := cmp.Diff(c.keys, tls.Lines(c.p.root(t, "cat "+tlsDir+"/keylog"))); diff != "" {
		t.Errorf("the key log (-file +key log):\n%.1000s", diff)
	}
	if mode := c.p.root(t, "stat -c %a "+tlsDir+"/keylog"); strings.TrimSpace(mode) != "600" {
		t.Errorf("the key log's mode is %s", mode)
	}
	c.p.root(t, "rm "+c.path+" "+tlsDir+"/keylog")
}

// decrypts wants tshark to see the requests and the answers of connections from 0 to n-1 and of no others by the file's own secrets, and most
// of them in the file as it is. On an emulated phone a client may take longer to derive a secret than packets wait for it, and what comes by two
// processors may be some milliseconds out of order.
func (c *tlsCapture) decrypts(t *testing.T, n int) {
	t.Helper()
	var want []string
	for i := range n {
		want = append(want, tls.Answer(i), tls.Request(i))
	}
	slices.Sort(want)
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte(strings.Join(c.keys, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	said := strings.Join(c.agent.seen, "\n")
	if got := c.plain(t, "-o", "tls.keylog_file:"+keys, "-o", "tcp.reassemble_out_of_order:TRUE"); !slices.Equal(got, want) {
		t.Errorf("%d requests and answers are decrypted of %d; missing are %q\n%s", len(got), len(want), only(want, got), said)
	}
	alone := c.plain(t)
	t.Logf("%d requests and answers of %d in the file as it is", len(alone), len(want))
	if n == 100 && len(alone) < n {
		t.Errorf("no more than %d requests and answers of %d are decrypted in the file as it is; missing are %q\n%s", len(alone), len(want), only(want, alone), said)
	}
}

// plain returns the names of the requests and answers that tshark decrypts with these options, sorted.
func (c *tlsCapture) plain(t *testing.T, options ...string) []string {
	t.Helper()
	args := append([]string{"-n", "-r", c.file, "-d", "tcp.port==4433-4436,tls", "-d", "tls.port==4433-4436,http",
		"-Y", "http", "-T", "fields", "-e", "http.request.uri", "-e", "http.file_data"}, options...)
	out, err := exec.Command("tshark", args...).Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	got := regexp.MustCompile(`(hello|answer)-\d{3}`).FindAllString(string(out), -1)
	slices.Sort(got)
	return got
}

// only are the lines of a that are not in b; both are sorted.
func only(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(line string) bool {
		_, found := slices.BinarySearch(b, line)
		return found
	})
}

// found waits until the agent has found the secrets of a library or program.
func (c *tlsCapture) found(t *testing.T, file string) {
	t.Helper()
	line := regexp.MustCompile(`takes the secrets of a library \(.*\bpath ` + regexp.QuoteMeta(file) + `[,)]`)
	if !slices.ContainsFunc(c.agent.seen, line.MatchString) {
		c.agent.until(t, line)
	}
}
