// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"regexp"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// tax is that instruction as -dd and -ddd print it. It uses no k: libpcap leaves
// something there, and we do not have it, since elibpcap hands over what an
// instruction means.
var tax = regexp.MustCompile(`(?m)^(\{ 0x7, 0, 0, 0x|7 0 0 )[0-9a-f]+`)

func TestDumpIsThatOfTcpdump(t *testing.T) {
	needTcpdump(t)
	hows := []string{"-d", "-dd", "-ddd"}
	for _, c := range []struct {
		linkType pcapng.LinkType
		dlt      string
		exprs    []string
	}{
		{pcapng.Ethernet, "EN10MB", []string{
			"",
			"tcp",
			"port 443",
			"port https",
			"host 10.0.0.1 and tcp port 443",
			"host 2001:db8::1",
			"vlan 100 and udp port 53",
			"ip[2:2] = len - 14",
			"tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
			"not (arp or stp) and greater 100",
			"ip proto 200 or ether host 02:00:00:00:00:01",
			"ip protochain 6",
		}},
		{pcapng.Raw, "RAW", []string{"", "tcp", "port 443", "host 2001:db8::1", "len > 100 and icmp6"}},
	} {
		for _, expr := range c.exprs {
			f, err := filter.Compile(t.Context(), expr, c.linkType)
			if err != nil {
				t.Fatal(err)
			}
			for i, how := range hows {
				t.Run(c.dlt+" "+how+" "+expr, func(t *testing.T) {
					got, err := f.Dump(i + 1)
					if err != nil {
						t.Fatal(err)
					}
					want := tcpdumpText(t, how, c.dlt, expr)
					if diff := cmp.Diff(tax.ReplaceAllString(want, "${1}0"), tax.ReplaceAllString(got, "${1}0")); diff != "" {
						t.Errorf("tcpdump -, Dump +\n%s", diff)
					}
				})
			}
		}
	}
}
