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
	int transports; // of a service, in /etc/services of Debian's netbase
};

#define TCP 1
#define UDP 2

// Without a transport of its own a name stands for the port over any: "port domain".
static const struct name services[] = {
	{"ftp-data", 20, TCP}, {"ftp", 21, TCP}, {"ssh", 22, TCP}, {"telnet", 23, TCP}, {"smtp", 25, TCP},
	{"domain", 53, TCP | UDP}, {"bootps", 67, UDP}, {"bootpc", 68, UDP}, {"tftp", 69, UDP}, {"http", 80, TCP},
	{"kerberos", 88, TCP | UDP}, {"pop3", 110, TCP}, {"sunrpc", 111, TCP | UDP}, {"ntp", 123, UDP},
	{"netbios-ns", 137, UDP}, {"netbios-dgm", 138, UDP}, {"netbios-ssn", 139, TCP}, {"imap2", 143, TCP},
	{"snmp", 161, TCP | UDP}, {"snmp-trap", 162, TCP | UDP}, {"bgp", 179, TCP}, {"ldap", 389, TCP | UDP},
	{"https", 443, TCP | UDP}, {"microsoft-ds", 445, TCP}, {"submissions", 465, TCP}, {"isakmp", 500, UDP},
	{"syslog", 514, TCP | UDP}, {"rtsp", 554, TCP | UDP}, {"submission", 587, TCP}, {"ipp", 631, TCP},
	{"ldaps", 636, TCP | UDP}, {"domain-s", 853, TCP | UDP}, {"ftps-data", 989, TCP}, {"ftps", 990, TCP},
	{"imaps", 993, TCP}, {"pop3s", 995, TCP}, {"socks", 1080, TCP}, {"openvpn", 1194, TCP | UDP},
	{"ms-sql-s", 1433, TCP}, {"mqtt", 1883, TCP}, {"nfs", 2049, TCP | UDP}, {"mysql", 3306, TCP},
	{"ms-wbt-server", 3389, TCP}, {"ipsec-nat-t", 4500, UDP}, {"sip", 5060, TCP | UDP},
	{"sip-tls", 5061, TCP | UDP}, {"xmpp-client", 5222, TCP}, {"mdns", 5353, UDP}, {"postgresql", 5432, TCP},
	{"amqp", 5672, TCP}, {"http-alt", 8080, TCP}, {"secure-mqtt", 8883, TCP},
};

static const struct name protocols[] = {
	{"icmp", 1}, {"igmp", 2}, {"ipencap", 4}, {"tcp", 6}, {"egp", 8}, {"udp", 17}, {"dccp", 33},
	{"ipv6", 41}, {"rsvp", 46}, {"gre", 47}, {"esp", 50}, {"ah", 51}, {"ipv6-icmp", 58},
	{"icmp6", 58}, {"ospf", 89}, {"ipip", 94}, {"pim", 103}, {"vrrp", 112}, {"l2tp", 115}, {"sctp", 132},
	{"udplite", 136},
};

static const struct name *find(const struct name *table, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(table[i].name, name))
			return &table[i];
	return NULL;
}
#define FIND(table, name) find(table, sizeof(table) / sizeof(*table), name)

// Two calls of libpcap's can succeed: a port, which is a service and no host, and
// an IPv6 address, which it reads by this function and not by inet_pton.
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
		struct addrinfo **res)
{
	const struct name *known = service && !node ? FIND(services, service) : NULL;
	int wanted = !hints || !hints->ai_protocol ? TCP | UDP :
		hints->ai_protocol == IPPROTO_TCP ? TCP : hints->ai_protocol == IPPROTO_UDP ? UDP : 0;
	int port = known && known->transports & wanted ? known->number : -1;
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
	const struct name *known = FIND(protocols, name);

	*res = NULL;
	if (!known)
		return 0; // as glibc says "none": an error is protocol 0 to libpcap
	memset(proto, 0, sizeof(*proto));
	proto->p_proto = known->number;
	*res = proto;
	return 0;
}

// libpcap calls these where libc, as musl, lacks those with _r.
struct netent *getnetbyname(const char *name)
{
	return NULL;
}

struct protoent *getprotobyname(const char *name)
{
	static _Thread_local struct protoent proto;
	struct protoent *res;

	getprotobyname_r(name, &proto, NULL, 0, &res);
	return res;
}

int ether_hostton(const char *name, struct ether_addr *addr)
{
	return -1;
}
*/
import "C"
