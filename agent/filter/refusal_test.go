// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// tryInject puts expr into a program that has the link type's stub and is not loaded.
func tryInject(t *testing.T, expr string, l pcapng.LinkType) error {
	t.Helper()
	f, err := filter.Compile(t.Context(), expr, l, 0)
	if err != nil {
		return err
	}
	return f.Inject(verdictSpec(t, l).Programs["verdict"], filter.How{})
}

func TestRefusals(t *testing.T) {
	const (
		l2      = pcapng.Ethernet
		l3      = pcapng.Raw
		syntax  = "can't parse filter expression: syntax error"
		noNames = ": give addresses, names are not looked up"
	)
	for _, c := range []struct {
		rule     string
		linkType pcapng.LinkType
		expr     string
		text     string // behind `filter "EXPR": `
		is       error
	}{
		{"a word without its argument", l2, "port", syntax, nil},
		{"and without a right side", l2, "tcp port 443 and", syntax, nil},
		{"a bracket that is not closed", l2, "(", syntax, nil},
		{"a mistake in the second line", l2, "host 10.0.0.1\nor", syntax, nil},
		{"a word that libpcap 1.10.3 does not know", l2, "vxlan", syntax, nil},
		{"a zero byte", l2, "host a\x00b", "has a zero byte", nil},

		{"host name", l2, "host example.com", "unknown host 'example.com'" + noNames, nil},
		{"host name in /etc/hosts", l2, "host localhost", "unknown host 'localhost'" + noNames, nil},
		{"host name without an Ethernet header", l3, "src host example.com", "unknown host 'example.com'" + noNames, nil},
		{"network name", l2, "net loopback", "unknown network 'loopback'" + noNames, nil},
		{"Ethernet host name", l2, "ether host router", "unknown ether host 'router'" + noNames, nil},
		{"DECnet host name", l2, "decnet host foo", "decnet name support not included, 'foo' cannot be translated", nil},
		{"gateway", l2, "gateway router", "'gateway' not supported in this configuration", nil},
		{"port name that is in no table", l2, "port nosuch", "unknown port 'nosuch'", nil},
		{"port name of /etc/services only", l2, "port gopher", "unknown port 'gopher'", nil},
		{"port name of the other transport", l2, "udp port ssh", "port 'ssh' is tcp", nil},
		{"port range with a name that is in no table", l2, "portrange 1-nosuch", "unknown port in range '1-nosuch'", nil},
		{"protocol name that is in no table", l2, "ip proto nosuch", "unknown ip proto 'nosuch'", nil},
		{"protocol name of /etc/protocols only", l2, "ip6 proto idrp", "unknown ip proto 'idrp'", nil},
		{"type name that is in no table", l2, "ether proto nosuch", "unknown ether proto 'nosuch'", nil},

		{"port over 65535", l2, "port 99999", "illegal port number 99999 > 65535", nil},
		{"address with a number over 255", l2, "host 10.0.0.300", "invalid IPv4 address '10.0.0.300'", nil},
		{"IPv6 address as an IPv4 one", l2, "ip host 2001:db8::1", "'ip' modifier applied to ip6 host", nil},
		{"division by zero", l2, "ip[0] / 0 = 1", "division by zero", nil},
		{"Wi-Fi frame type", l2, "type mgt", "802.11 link-layer types supported only on 802.11", nil},
		{"pf interface", l2, "on eth0", "ifname supported only on PF linktype", nil},

		{"ether host without an Ethernet header", l3, "ether host 00:00:00:00:00:01",
			"ethernet addresses supported only on ethernet/FDDI/token ring/802.11/ATM LANE/Fibre Channel", nil},
		{"vlan without an Ethernet header", l3, "vlan 100", "no VLAN support for Raw IP", nil},
		{"never true", l2, "1 = 2", "expression rejects all packets", filter.ErrRejectsAll},
		{"never true without an Ethernet header", l3, "1 = 2", "expression rejects all packets", filter.ErrRejectsAll},
		{"arp without an Ethernet header", l3, "arp", "expression rejects all packets", filter.ErrRejectsAll},
	} {
		t.Run(c.rule, func(t *testing.T) {
			err := tryInject(t, c.expr, c.linkType)
			if err == nil {
				t.Fatalf("%q is taken", c.expr)
			}
			if want := fmt.Sprintf("filter %q: %s", c.expr, c.text); err.Error() != want {
				t.Errorf("error is\n%s\nwant\n%s", err, want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%q is not %q", err, c.is)
			}
		})
	}
}

func TestLinkTypeWithoutStub(t *testing.T) {
	const linuxSLL = 113
	if _, err := filter.Compile(t.Context(), "tcp", linuxSLL, 0); err == nil || err.Error() != "filter: no stub for link type 113" {
		t.Errorf("error is %v", err)
	}
}

// numbered repeats a term with the numbers from 1 to n in place of its %d.
func numbered(term string, n int) string {
	terms := make([]string, n)
	for i := range terms {
		terms[i] = strings.ReplaceAll(term, "%d", fmt.Sprint(i+1))
	}
	return strings.Join(terms, " or ")
}

func TestLongExpression(t *testing.T) {
	needRoot(t)
	expr := numbered("tcp[%d] = 1", 700)
	if len(expr) < 10_000 {
		t.Fatalf("is only %d bytes long", len(expr))
	}
	t.Run("of more than 64 KiB is refused at once", func(t *testing.T) {
		_, err := filter.Compile(t.Context(), "tcp"+strings.Repeat(" or tcp", 10_000), pcapng.Ethernet, 0)
		if err == nil || !strings.HasSuffix(err.Error(), "...\": has 70003 bytes, and 65536 are the most") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("is compiled, injected and loaded", func(t *testing.T) {
		compiled(t, pcapng.Ethernet, expr, filter.How{})
	})
	for _, c := range []struct {
		rule  string
		ended func() (context.Context, context.CancelFunc)
		is    error
	}{
		{"ends with the deadline of its caller", func() (context.Context, context.CancelFunc) {
			return context.WithDeadline(t.Context(), time.Unix(0, 0))
		}, context.DeadlineExceeded},
		{"ends with its caller", func() (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return ctx, cancel
		}, context.Canceled},
	} {
		t.Run(c.rule, func(t *testing.T) {
			ctx, cancel := c.ended()
			defer cancel()
			_, err := filter.Compile(ctx, expr, pcapng.Ethernet, 0)
			if !errors.Is(err, c.is) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
				t.Errorf("error is %q, want one short line that is %q", err, c.is)
			}
		})
	}
}

func TestSizeOfProgram(t *testing.T) {
	needRoot(t)
	for _, n := range []int{40, 300} {
		compiled(t, pcapng.Ethernet, numbered("ip6 host 2001:db8::%d", n), filter.How{})
	}
}

// TestNames holds names that stand for a number against the number: the programs
// are the same ones.
func TestNames(t *testing.T) {
	for _, c := range []struct{ named, numbered string }{
		{"port https", "port 443"},
		{"port http", "tcp port 80"}, // TCP's alone
		{"port ntp", "udp port 123"},
		{"tcp port http", "tcp port 80"},
		{"udp port domain", "udp port 53"},
		{"port ftp or ftp-data", "tcp port 21 or tcp port 20"},
		{"portrange ssh-telnet", "tcp portrange 22-23"},
		{"dst port mdns", "udp dst port 5353"},
		{`ip proto \tcp`, "ip proto 6"},
		{`ip proto \icmp`, "ip proto 1"},
		{"ip proto gre", "ip proto 47"},
		{"ip6 proto ipv6-icmp", "ip6 proto 58"},
		{`ether proto \ip6`, "ether proto 0x86dd"},
		{"ether proto loopback", "ether proto 0x9000"},
	} {
		for _, l := range []pcapng.LinkType{pcapng.Ethernet, pcapng.Raw} {
			t.Run(fmt.Sprintf("%s, link type %d", c.named, l), func(t *testing.T) {
				named, err1 := dump(t, c.named, l)
				number, err2 := dump(t, c.numbered, l)
				if named != number || fmt.Sprint(err1 == nil) != fmt.Sprint(err2 == nil) {
					t.Errorf("%s %v\nbut %s is\n%s %v", named, err1, c.numbered, number, err2)
				}
			})
		}
	}
}

func dump(t *testing.T, expr string, l pcapng.LinkType) (string, error) {
	t.Helper()
	f, err := filter.Compile(t.Context(), expr, l, 0)
	if err != nil {
		return "", err
	}
	return f.Dump(3), nil
}
