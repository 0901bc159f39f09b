// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/plugin"
)

// typed makes options of words split at |, each NAME or NAME=VALUE.
func typed(text string) (options []plugin.Option) {
	for word := range strings.SplitSeq(text, "|") {
		if word == "" {
			continue
		}
		name, value, valued := strings.Cut(word, "=")
		options = append(options, plugin.Option{Name: name, Valued: valued, Value: value})
	}
	return options
}

func TestRewrite(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		typed string
		want  string // behind --tls
		notes string // how they begin, split at |
	}{
		{"nothing", "", "", ""},
		{"the agent's own spelling", "i=eth0|w=x.pcapng|s=96|U", "i=eth0|w=x.pcapng|s=96|U", ""},
		{"--tls is not given twice", "tls|i=lo", "i=lo", ""},
		{"pcap", "m=pcap|i=wlan0|w=save.pcapng", "i=wlan0|w=save.pcapng", ""},
		{"long options", "model=PcapNG|ifname=wlan0|pcapfile=a|libssl=/l|keylogfile=k", "i=wlan0|w=a|tls-lib=/l|keylog=k", ""},
		{"= behind a letter", "m==pcap|i==wlan0|p==12|u==10123", "i=wlan0|pid=12|uid=10123", ""},
		{"the last mode counts", "m=text|m=pcap", "", ""},
		{"libraries", "libssl=/a|gnutls=/b|nspr=/c|tls-lib=auto", "tls-lib=/a|tls-lib=/b|tls-lib=/c|tls-lib=auto", ""},
		{"eCapture's defaults", "libssl=|logaddr=|eventaddr=|listen=|pid=0|p=0|keylogfile=", "", ""},
		{"an empty name of a file is left to -w", "pcapfile=", "w=", ""},
		{"processes and users", "pid=1,2|p=3|uid=0|u=10123", "pid=1,2|pid=3|uid=0|uid=10123", ""},
		{"debug", "d|debug", "v|v|v|v", ""},
		{"a log", "l=save.log|log-addr=b", "log=save.log|log=b", ""},
		{"what -b and --btf are by their values", "b=2|btf=0|b=files:3|btf=none|btf=10", "b=files:3|btf=none|btf=10", "-b 2 has no effect|--btf 0 has no effect"},
		{"without effect", "hex|t=10|ssl_version=boringssl 1.1.1", "", "--hex has no effect|-t has no effect|--ssl_version has no effect"},
		{"keys alone", "m=keylog", "keylog=ecapture_openssl_key.log|w=/dev/null", "-m keylog: the secrets are kept in the key log alone"},
		{"keys alone in a file", "k=f|m=key|pid=3", "keylog=f|pid=3|w=/dev/null", "-m keylog: the secrets"},
		{"keys and packets", "m=keylog|k=f|i=lo", "keylog=f|i=lo", "-m keylog: packets are captured, too"},
		{"packets by a file of flags", "m=keylog|keylog=f|config=c", "keylog=f|config=c", "-m keylog: packets"},
		{"packets by their file", "m=keylog|pcapfile=x", "w=x|keylog=ecapture_openssl_key.log", "-m keylog: packets"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			got, notes, err := rewrite(typed(tc.typed))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(append([]plugin.Option{{Name: "tls"}}, typed(tc.want)...), got); d != "" {
				t.Error(d)
			}
			var want []string
			if tc.notes != "" {
				want = strings.Split(tc.notes, "|")
			}
			if len(notes) != len(want) {
				t.Fatalf("notes %q, want %q", notes, want)
			}
			for i, n := range notes {
				if !strings.HasPrefix(n, want[i]) {
					t.Errorf("note %q, want %q", n, want[i])
				}
			}
		})
	}
}

// TestWithoutSwitch tells tcpdump's -p from eCapture's.
func TestWithoutSwitch(t *testing.T) {
	for typed, want := range map[string]string{
		"":                    "",
		"-p 12 -i lo":         "-p 12 -i lo",
		"-p -i lo":            "-i lo",
		"-i lo -p -w f udp":   "-i lo -w f udp",
		"-p tcp port 1":       "tcp port 1",
		"-p =3":               "-p =3",
		"-p3 -i lo":           "-p3 -i lo",
		"-i lo -p":            "-i lo -p",
		"-i lo -- -p and udp": "-i lo -- -p and udp",
	} {
		if got := withoutSwitch(strings.Fields(typed)); strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", typed, got, want)
		}
	}
}

func TestRewriteRefuses(t *testing.T) {
	for _, tc := range []struct{ typed, err string }{
		{"m=text", "-m text: packets and secrets are the plain text: use -m pcap"},
		{"m=Text|w=x", "-m text: "},
		{"m=pcapn", `-m "pcapn": a mode is`},
		{"p=-i", "-p -i: behind tls, -p is eCapture's"},
		{"u=0", "-u 0: eCapture means all users"},
		{"l=tcp://127.0.0.1:8080", "-l tcp://127.0.0.1:8080: messages are sent nowhere"},
		{"logaddr=ws://a/b", "--logaddr ws://a/b: messages"},
		{"eventaddr=stdout", "--eventaddr stdout: nothing is sent"},
		{"ecaptureq=ws://a", "--ecaptureq ws://a: nobody is served"},
		{"listen=localhost:28256", "--listen localhost:28256: nobody is served"},
		{"port=443", "--port 443: write it behind all options, as a pcap-filter expression: tcp port 443"},
	} {
		_, _, err := rewrite(typed(tc.typed))
		if !plugin.IsUsage(err) || !strings.HasPrefix(err.Error(), tc.err) {
			t.Errorf("%s: error %v, want usage error %q", tc.typed, err, tc.err)
		}
	}
}

// TestRewriteTakesAll gives each option of the word: none may reach the agent by a name that it does not have.
func TestRewriteTakesAll(t *testing.T) {
	agents := map[string]bool{"tls": true, "keylog": true, "tls-lib": true, "i": true, "w": true, "pid": true, "uid": true, "v": true, "log": true}
	for _, f := range wordFlags() {
		for _, name := range f.Names() {
			for _, value := range []string{"1", "pcap"} {
				options, _, err := rewrite([]plugin.Option{{Name: name, Valued: true, Value: value}})
				if err != nil {
					continue // it is said what is wrong with it
				}
				for _, o := range options {
					if !agents[o.Name] && !(name == o.Name && (name == "b" || name == "btf")) {
						t.Errorf("%s %s becomes %s", name, value, o.Name)
					}
				}
			}
		}
	}
}
