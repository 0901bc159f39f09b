// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter

import (
	"errors"
	"strings"

	"github.com/jschwinger233/elibpcap"
	"golang.org/x/net/bpf"

	"droidtap/agent/pcapng"
)

/*
#include <netdb.h>
#include <netinet/in.h>
#include <pcap.h>
#include <stdlib.h>
#include <string.h>

// libpcap resolves names with getaddrinfo. These stand in for libc's in the
// whole program, so that a filter can never make it send a packet: a host name
// is unknown at once, and a service name is looked up in /etc/services only.
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **res)
{
	const char *proto = NULL;
	struct servent *s;
	struct sockaddr_in *addr;

	if (node || !service)
		return EAI_NONAME;
	if (hints && hints->ai_protocol == IPPROTO_TCP)
		proto = "tcp";
	if (hints && hints->ai_protocol == IPPROTO_UDP)
		proto = "udp";
	s = getservbyname(service, proto);
	if (!s)
		return EAI_SERVICE;
	*res = calloc(1, sizeof(**res) + sizeof(*addr));
	if (!*res)
		return EAI_MEMORY;
	addr = (struct sockaddr_in *)(*res + 1);
	addr->sin_family = AF_INET;
	addr->sin_port = s->s_port;
	(*res)->ai_family = AF_INET;
	(*res)->ai_protocol = hints ? hints->ai_protocol : 0;
	(*res)->ai_addrlen = sizeof(*addr);
	(*res)->ai_addr = (struct sockaddr *)addr;
	return 0;
}

void freeaddrinfo(struct addrinfo *res)
{
	free(res);
}
*/
import "C"

// Version returns libpcap's version, "libpcap version 1.10.3".
func Version() string { return C.GoString(C.pcap_lib_version()) }

// image returns instruction number n as tcpdump -d prints it.
func image(in bpf.RawInstruction, n int) string {
	c := C.struct_bpf_insn{code: C.u_short(in.Op), jt: C.u_char(in.Jt), jf: C.u_char(in.Jf), k: C.bpf_u_int32(in.K)}
	return C.GoString(C.bpf_image(&c, C.int(n)))
}

func compile(expr string, l pcapng.LinkType) ([]bpf.Instruction, error) {
	if strings.ContainsRune(expr, 0) {
		return nil, errors.New("has a zero byte")
	}
	cbpf, err := elibpcap.CompileCbpf(expr, l == pcapng.Ethernet)
	if err == nil {
		return cbpf, nil
	}
	// elibpcap repeats the expression and has no sentinel for libpcap's answers.
	text := strings.TrimPrefix(err.Error(), "failed to pcap_compile '"+expr+"': ")
	switch {
	case text == ErrRejectsAll.Error():
		return nil, ErrRejectsAll
	case strings.HasPrefix(text, "unknown host"):
		return nil, errors.New(text + ": give addresses, names are not looked up")
	}
	return nil, errors.New(text)
}
