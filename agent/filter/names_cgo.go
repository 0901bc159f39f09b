// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter

/*
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/ether.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

// libpcap turns names in an expression into numbers by libc's functions. The ones
// below stand in for them in the whole program, since libc's may send packets
// (DNS), read files that a phone does not have (/etc/services), and cannot be
// linked statically. Service and protocol names come from the tables, with the
// numbers that IANA assigned; names of hosts and networks are unknown at once.

struct name {
	const char *name;
	int number;
};

static const struct name services[] = {
	{"ftp-data", 20}, {"ftp", 21}, {"ssh", 22}, {"telnet", 23}, {"smtp", 25}, {"domain", 53},
	{"bootps", 67}, {"bootpc", 68}, {"tftp", 69}, {"http", 80}, {"kerberos", 88}, {"pop3", 110},
	{"sunrpc", 111}, {"ntp", 123}, {"netbios-ns", 137}, {"netbios-dgm", 138},
	{"netbios-ssn", 139}, {"imap2", 143}, {"snmp", 161}, {"snmp-trap", 162}, {"bgp", 179},
	{"ldap", 389}, {"https", 443}, {"microsoft-ds", 445}, {"submissions", 465}, {"isakmp", 500},
	{"syslog", 514}, {"rtsp", 554}, {"submission", 587}, {"ipp", 631}, {"ldaps", 636},
	{"domain-s", 853}, {"ftps-data", 989}, {"ftps", 990}, {"imaps", 993}, {"pop3s", 995},
	{"socks", 1080}, {"openvpn", 1194}, {"ms-sql-s", 1433}, {"mqtt", 1883}, {"nfs", 2049},
	{"mysql", 3306}, {"ms-wbt-server", 3389}, {"ipsec-nat-t", 4500}, {"sip", 5060},
	{"sip-tls", 5061}, {"xmpp-client", 5222}, {"mdns", 5353}, {"postgresql", 5432},
	{"amqp", 5672}, {"http-alt", 8080}, {"secure-mqtt", 8883},
};

static const struct name protocols[] = {
	{"icmp", 1}, {"igmp", 2}, {"ipip", 4}, {"tcp", 6}, {"egp", 8}, {"udp", 17}, {"dccp", 33},
	{"ipv6", 41}, {"rsvp", 46}, {"gre", 47}, {"esp", 50}, {"ah", 51}, {"ipv6-icmp", 58},
	{"icmp6", 58}, {"ospf", 89}, {"pim", 103}, {"vrrp", 112}, {"l2tp", 115}, {"sctp", 132},
	{"udplite", 136},
};

static int number(const struct name *table, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(table[i].name, name))
			return table[i].number;
	return -1;
}
#define NUMBER(table, name) number(table, sizeof(table) / sizeof(*table), name)

// Two calls of libpcap's can succeed: a port, which is a service and no host, and
// an IPv6 address, which it reads by this function and not by inet_pton.
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
		struct addrinfo **res)
{
	int port = service && !node ? NUMBER(services, service) : -1;
	union {
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} addr = {};

	if (port >= 0) {
		addr.in.sin_family = AF_INET;
		addr.in.sin_port = htons(port);
	} else if (node && inet_pton(AF_INET6, node, &addr.in6.sin6_addr) == 1) {
		addr.in6.sin6_family = AF_INET6;
	} else {
		return EAI_NONAME;
	}
	*res = calloc(1, sizeof(**res) + sizeof(addr));
	if (!*res)
		return EAI_MEMORY;
	(*res)->ai_family = addr.in.sin_family;
	(*res)->ai_protocol = hints ? hints->ai_protocol : 0;
	(*res)->ai_addrlen = port >= 0 ? sizeof(addr.in) : sizeof(addr.in6);
	(*res)->ai_addr = memcpy(*res + 1, &addr, sizeof(addr));
	return 0;
}

void freeaddrinfo(struct addrinfo *res)
{
	free(res);
}

struct servent *getservbyname(const char *name, const char *proto)
{
	return NULL;
}

struct hostent *gethostbyname(const char *name)
{
	return NULL;
}

int getnetbyname_r(const char *name, struct netent *net, char *buf, size_t len,
		   struct netent **res, int *err)
{
	*res = NULL;
	*err = HOST_NOT_FOUND;
	return ENOENT;
}

int getprotobyname_r(const char *name, struct protoent *proto, char *buf, size_t len,
		     struct protoent **res)
{
	int n = NUMBER(protocols, name);

	*res = NULL;
	if (n < 0)
		return 0; // as glibc says "none": an error is protocol 0 to libpcap
	memset(proto, 0, sizeof(*proto));
	proto->p_proto = n;
	*res = proto;
	return 0;
}

int ether_hostton(const char *name, struct ether_addr *addr)
{
	return -1;
}
*/
import "C"
