// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"droidtap/agent/plugin"
)

// word lets the command line of "ecapture tls" be typed (gojue/ecapture, cli/cmd/{root,tls}.go, 0.4 to 2).
func word() *plugin.Word {
	return &plugin.Word{
		Name: "tls",
		Usage: "capture packets and the secrets of TLS with them, as eCapture's users type it: agent tls -m pcap -i wlan0 -w x.pcapng tcp port 443. " +
			"All options of agent --help may be there, too, but for -d, which is eCapture's, as is -p with a number",
		Flags:   wordFlags(),
		Before:  withoutSwitch,
		Rewrite: rewrite,
	}
}

// withoutSwitch leaves out tcpdump's -p, which does nothing in the agent: eCapture's has a number behind it.
func withoutSwitch(typed []string) (words []string) {
	for i, word := range typed {
		if word == "--" {
			return append(words, typed[i:]...)
		}
		if word == "-p" && i+1 < len(typed) && !startsWithDigit(strings.TrimPrefix(typed[i+1], "=")) {
			continue
		}
		words = append(words, word)
	}
	return words
}

func startsWithDigit(s string) bool { return s != "" && '0' <= s[0] && s[0] <= '9' }

// The options of the agent's that eCapture's become.
const (
	optionTLS       = "tls"
	optionKeyLog    = "keylog"
	optionLibrary   = "tls-lib"
	optionInterface = "i"
	optionWrite     = "w"
	optionPID       = "pid"
	optionUID       = "uid"
	optionVerbose   = "v"
	optionLog       = "log"
)

// defaultKeyLog is eCapture's.
const defaultKeyLog = "ecapture_openssl_key.log"

func wordFlags() []cli.Flag {
	text := func(usage, name string, aliases ...string) cli.Flag {
		return &cli.StringFlag{Name: name, Aliases: aliases, Usage: usage}
	}
	flags := []cli.Flag{
		text("`pcap|pcapng|keylog|key`: packets and secrets in one file, or the secrets in a key log alone, if neither -i nor anything about files of packets is given (default pcap)", "model", "m"),
		text("the same as -i `IF`", "ifname"),
		text("the same as -w `FILE`", "pcapfile"),
		text("the same as --keylog `FILE`; of -m keylog by default "+defaultKeyLog, "keylogfile", "k"),
		text("the same as --tls-lib `FILE`", "libssl"),
		text("the same as --tls-lib `FILE`", "gnutls"),
		text("the same as --tls-lib `FILE`", "nspr"),
		text("the same as --pid `N`; 0 is all processes", "pid", "p"),
		text("the same as --uid `N`", "uid", "u"),
		text("the same as --log `FILE`", "logaddr", "log-addr", "l"),
		&cli.BoolFlag{Name: "debug", Aliases: []string{"d"}, Usage: "the same as -vv"},
		text("of eCapture's `0|1|2` there is no need; what else it may be is the agent's own --btf and -b", "btf", "b"),
	}
	for _, name := range refused {
		flags = append(flags, text("not to be had, so that it is an error with a `VALUE`", name))
	}
	for _, o := range needless {
		if o.valued {
			flags = append(flags, text("`VALUE` has no effect: "+o.why, o.names[0], o.names[1:]...))
		} else {
			flags = append(flags, &cli.BoolFlag{Name: o.names[0], Usage: "no effect: " + o.why})
		}
	}
	return flags
}

// refused are options whose user would wait in vain if they were taken.
var refused = []string{"eventaddr", "ecaptureq", "listen", "port"}

// needless are options that are taken, and why they do nothing.
var needless = []struct {
	names  []string
	valued bool
	why    string
}{
	{[]string{"hex"}, false, "no text is printed"},
	{[]string{"tsize", "t"}, true, "no text is printed"},
	{[]string{"mapsize"}, true, "the buffer in the kernel has its size by -B"},
	{[]string{"ssl_version"}, true, "what is looked for is found in the library itself"},
	{[]string{"cgroup_path"}, true, "packets are captured at interfaces"},
	{[]string{"pthread"}, true, "whose a connection is is known without it"},
	{[]string{"curl"}, true, "libraries are found without it"},
	{[]string{"wget"}, true, "libraries are found without it"},
	{[]string{"firefox"}, true, "libraries are found without it"},
	{[]string{"nosearch"}, false, "--tls-lib says which libraries are meant"},
	{[]string{"eventroratesize"}, true, "-C begins another file by size"},
	{[]string{"eventroratetime"}, true, "-G begins another file by time"},
}

// aboutPackets are options of who wants packets, and not the key log alone.
var aboutPackets = []string{
	"interface", "i", "write", "w", "output-dir", "format", "P", "C", "G", "W", "z", "ring-buffer", "b", "autostop", "a",
	"disk-quota", "min-free", "file-mode", "relinquish-privileges", "Z", "compress", "config",
}

// rewriting is the way from eCapture's options to the agent's.
type rewriting struct {
	mode    string // of -m; "": not given
	options []plugin.Option
	notes   []string
}

// rewrite is plugin.Word's Rewrite.
func rewrite(typed []plugin.Option) ([]plugin.Option, []string, error) {
	r := &rewriting{options: []plugin.Option{{Name: optionTLS}}}
	for _, o := range typed {
		if len(o.Name) == 1 { // eCapture takes -m=pcap
			o.Value = strings.TrimPrefix(o.Value, "=")
		}
		if err := r.take(o); err != nil {
			return nil, nil, err
		}
	}
	switch strings.ToLower(r.mode) {
	case "", "pcap", "pcapng":
	case "key", "keylog":
		r.onlyKeys()
	case "text":
		return nil, nil, plugin.Usagef("-m text: packets and secrets are the plain text: use -m pcap, and then Wireshark, or tshark -z follow,tls,ascii,0")
	default:
		return nil, nil, plugin.Usagef("-m %q: a mode is pcap, pcapng, keylog or key", r.mode)
	}
	return r.options, r.notes, nil
}

// become adds an option of the agent's; with an empty value, as eCapture has them by default, none.
func (r *rewriting) become(name, value string) {
	if value != "" {
		r.options = append(r.options, plugin.Option{Name: name, Valued: true, Value: value})
	}
}

// take rewrites one option.
func (r *rewriting) take(o plugin.Option) error {
	switch o.Name {
	case "model", "m":
		r.mode = o.Value
	case "ifname":
		r.become(optionInterface, o.Value)
	case "libssl", "gnutls", "nspr":
		r.become(optionLibrary, o.Value)
	case "keylogfile", "k":
		r.become(optionKeyLog, o.Value)
	case "pcapfile":
		r.options = append(r.options, plugin.Option{Name: optionWrite, Valued: true, Value: o.Value})
	case "pid", "p":
		return r.takePID(o)
	case "u":
		if o.Value == "0" {
			return plugin.Usagef("-u 0: eCapture means all users by it: leave it out, or use --uid 0 for root's packets alone")
		}
		r.become(optionUID, o.Value)
	case "logaddr", "log-addr", "l":
		if strings.Contains(o.Value, "://") {
			return plugin.Usagef("%s %s: messages are sent nowhere: name a file", spelled(o), o.Value)
		}
		r.become(optionLog, o.Value)
	case "debug", "d":
		r.options = append(r.options, plugin.Option{Name: optionVerbose}, plugin.Option{Name: optionVerbose})
	case "btf", "b":
		if len(o.Value) == 1 && strings.Contains("012", o.Value) {
			r.notes = append(r.notes, fmt.Sprintf("%s %s has no effect: what the kernel takes is found out", spelled(o), o.Value))
			return nil
		}
		r.options = append(r.options, o)
	default:
		return r.takeOther(o)
	}
	return nil
}

// takePID takes -p and --pid.
func (r *rewriting) takePID(o plugin.Option) error {
	if o.Name == "p" && strings.Trim(o.Value, "0123456789,") != "" {
		return plugin.Usagef("-p %s: behind tls, -p is eCapture's and has the number of a process", o.Value)
	}
	if o.Value == "0" { // eCapture's default
		return nil
	}
	r.options = append(r.options, plugin.Option{Name: optionPID, Valued: true, Value: o.Value})
	return nil
}

// takeOther takes options that the agent does not have, and its own.
func (r *rewriting) takeOther(o plugin.Option) error {
	for _, n := range needless {
		if slices.Contains(n.names, o.Name) {
			r.notes = append(r.notes, fmt.Sprintf("%s has no effect: %s", spelled(o), n.why))
			return nil
		}
	}
	if !slices.Contains(refused, o.Name) {
		if o.Name != optionTLS { // it is there already
			r.options = append(r.options, o)
		}
		return nil
	}
	switch {
	case o.Value == "":
		return nil
	case o.Name == "port":
		return plugin.Usagef("--port %s: write it behind all options, as a pcap-filter expression: tcp port %[1]s", o.Value)
	case o.Name == "eventaddr":
		return plugin.Usagef("--eventaddr %s: nothing is sent: -w - writes to standard output", o.Value)
	}
	return plugin.Usagef("--%s %s: nobody is served by network: agent status, agent filter and others ask a daemon", o.Name, o.Value)
}

// onlyKeys is the mode of a key log. eCapture has no packets in it; the agent can have both.
func (r *rewriting) onlyKeys() {
	has := func(names ...string) bool {
		return slices.ContainsFunc(r.options, func(o plugin.Option) bool { return slices.Contains(names, o.Name) })
	}
	if !has(optionKeyLog) {
		r.become(optionKeyLog, defaultKeyLog)
	}
	if has(aboutPackets...) {
		r.notes = append(r.notes, "-m keylog: packets are captured, too, since there are options for them")
		return
	}
	r.become(optionWrite, "/dev/null")
	r.notes = append(r.notes, "-m keylog: the secrets are kept in the key log alone; -m pcap -k FILE has packets, too")
}

// spelled is how an option was typed.
func spelled(o plugin.Option) string {
	if len(o.Name) == 1 {
		return "-" + o.Name
	}
	return "--" + o.Name
}
