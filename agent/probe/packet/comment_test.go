// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"droidtap/agent/pcapng"
	"droidtap/agent/process"
)

func TestOwnerText(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		uid   uint32
		names []string
		of    *process.Process
		want  string
	}{
		{"all is known", 10123, []string{"com.example"}, &process.Process{PID: 4242, Comm: "example.thread 7"}, "uid=10123 app=com.example pid=4242 comm=example.thread 7"},
		{"a uid that is shared", 1001, []string{"com.b", "com.c", "+3"}, nil, "uid=1001 app=com.b,com.c,+3"},
		{"no app", 0, nil, &process.Process{PID: 1, Comm: "init"}, "uid=0 pid=1 comm=init"},
		{"a process without a name", 0, nil, &process.Process{PID: 1}, "uid=0 pid=1"},
		{"the uid only", 1099999, nil, nil, "uid=1099999"},
		{"nobody knows", pcapng.UIDUnknown, []string{"x"}, &process.Process{PID: 1}, "uid=unknown"},
		{"letters of all scripts", 1, []string{"é"}, &process.Process{PID: 1, Comm: "日本 ✓"}, "uid=1 app=é pid=1 comm=日本 ✓"},
		{"a name of another line", 1, nil, &process.Process{PID: 1, Comm: "a\nuid=0"}, `uid=1 pid=1 comm=a\x0auid=0`},
		{"a name of another part", 1, []string{"a pid=7", "b,c"}, nil, `uid=1 app=a\x20pid=7,b\x2cc`},
		{"what is no UTF-8", 1, nil, &process.Process{PID: 1, Comm: "a\xff\xe6\x97"}, `uid=1 pid=1 comm=a\xff\xe6\x97`},
		{"what a terminal would obey", 1, nil, &process.Process{PID: 1, Comm: "\x1b[2J\u202e\u2028"}, `uid=1 pid=1 comm=\x1b[2J\xe2\x80\xae\xe2\x80\xa8`},
		{"a name that looks written so", 1, nil, &process.Process{PID: 1, Comm: `\x41`}, `uid=1 pid=1 comm=\x5cx41`},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			if got := ownerText(tc.uid, tc.names, tc.of); got != tc.want {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}

func FuzzOwnerText(f *testing.F) {
	f.Add("com.example", "Thread 7")
	f.Fuzz(func(t *testing.T, name, comm string) {
		got := ownerText(1, []string{name}, &process.Process{PID: 2, Comm: comm})
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q is not one line of printable UTF-8", got)
		}
		if app, _, _ := strings.Cut(strings.TrimPrefix(got, "uid=1 app="), " pid=2"); strings.ContainsAny(app, " ,") {
			t.Errorf("%q has more than one app", got)
		}
	})
}
