// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
)

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
			"ip[2:2] = len - 14",
			"tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
			"not (arp or stp) and greater 100",
			"ip proto 200 or ether host 02:00:00:00:00:01",
			"ip protochain 6",
		}},
		{pcapng.Raw, "RAW", []string{"", "tcp", "port 443", "host 2001:db8::1", "len > 100 and icmp6"}},
	} {
		for _, expr := range c.exprs {
			f := compile(t, expr, c.linkType)
			for i, how := range hows {
				t.Run(c.dlt+" "+how+" "+expr, func(t *testing.T) {
					want := tcpdumpText(t, how, c.dlt, expr)
					if diff := cmp.Diff(want, f.Dump(i+1)); diff != "" {
						t.Errorf("tcpdump -, Dump +\n%s", diff)
					}
				})
			}
		}
	}
}
