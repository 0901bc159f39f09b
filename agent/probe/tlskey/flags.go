// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"slices"

	"github.com/urfave/cli/v2"

	"droidtap/agent/apps"
	"droidtap/agent/plugin"
	"droidtap/agent/process"
)

const (
	category = "TLS secrets"
	// auto stands for the libraries that are found: those of the system, and what processes execute.
	auto = "auto"
)

func flags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: optionTLS, Category: category,
			Usage: "write the secrets of TLS and QUIC connections into the file, so that it is readable as it is: those that BoringSSL, OpenSSL, GnuTLS and Go's crypto/tls derive in the processes of the apps, users and processes that are captured"},
		&cli.StringFlag{Name: optionKeyLog, Category: category,
			Usage: "append the secrets to `FILE`, too, as SSLKEYLOGFILE has them; with --tls or alone", DefaultText: "none"},
		&cli.StringSliceFlag{Name: optionLibrary, Category: category,
			Usage: "take secrets from the library or program `PATH|auto` (repeatable); auto: those of the system and all that processes execute, now or later", DefaultText: auto},
	}
}

// options is what the flags say, checked.
type options struct {
	keyLog    string   // path; "": none
	libraries []string // paths
	auto      bool     // others are found, too
	whose     *whose
}

// parse checks the flags; its errors are usage errors of one line. It returns false where they do not ask for secrets.
func parse(c *cli.Context) (o options, asked bool, err error) {
	o = options{keyLog: c.String(optionKeyLog), libraries: c.StringSlice(optionLibrary)}
	switch {
	case c.IsSet(optionKeyLog) && o.keyLog == "":
		return o, false, plugin.Usagef("--keylog needs the name of a file")
	case slices.Contains(o.libraries, ""):
		return o, false, plugin.Usagef("--tls-lib needs the path of a library, or %s", auto)
	case !c.Bool(optionTLS) && !c.IsSet(optionKeyLog) && c.IsSet(optionLibrary):
		return o, false, plugin.Usagef("--tls-lib tells where secrets are, and without --tls or --keylog nobody asks for one")
	case !c.Bool(optionTLS) && !c.IsSet(optionKeyLog):
		return o, false, nil
	case !c.IsSet(optionKeyLog) && (c.Bool("P") || c.String("format") == "pcap"):
		return o, false, plugin.Usagef("--tls: a pcap file has no place for secrets: write pcapng, or --keylog FILE beside it")
	}
	o.auto = len(o.libraries) == 0 || slices.Contains(o.libraries, auto)
	o.libraries = slices.DeleteFunc(slices.Clone(o.libraries), func(path string) bool { return path == auto })
	o.whose = &whose{packages: c.String("packages")}
	if o.whose.of, err = apps.Parse(c.StringSlice("uid"), c.StringSlice("not-uid"), c.StringSlice("app"), c.StringSlice("not-app")); err != nil {
		return o, false, err
	}
	o.whose.by, err = process.ParseSelection(c.StringSlice("pid"), c.StringSlice("comm"))
	return o, true, err
}
