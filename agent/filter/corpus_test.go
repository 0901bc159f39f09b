// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"math/rand/v2"
	"slices"
)

// ipPackets are packets that begin with the IP header, whole and well-formed.
func ipPackets() [][]byte {
	v4, v6 := ipv4{}, ipv6{}
	back := ipv4{src: "192.168.1.2", dst: "10.0.0.1"}
	timestamps := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	hello := "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"
	dns := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01")
	all := [][]byte{
		v4.wrap(protoTCP, tcp(40000, 443, syn, []byte{2, 4, 5, 0xb4}, "")),
		back.wrap(protoTCP, tcp(443, 40000, syn|ack, []byte{2, 4, 5, 0xb4}, "")),
		v4.wrap(protoTCP, tcp(40000, 443, ack, nil, "")),
		v4.wrap(protoTCP, tcp(40000, 443, psh|ack, nil, hello)),
		v4.wrap(protoTCP, tcp(40000, 443, psh|ack, timestamps, hello)),
		v4.wrap(protoTCP, tcp(40001, 80, psh|ack, nil, "GET / HTTP/1.1\r\n\r\n")),
		v4.wrap(protoTCP, tcp(40001, 80, psh|ack, timestamps, "POST / HTTP/1.1\r\n\r\n")),
		back.wrap(protoTCP, tcp(80, 40001, psh|ack, nil, "HTTP/1.1 200 OK\r\n\r\n")),
		back.wrap(protoTCP, tcp(80, 40001, fin|ack, nil, "")),
		v4.wrap(protoTCP, tcp(40001, 80, rst, nil, "")),
		v4.wrap(protoTCP, tcp(40001, 8080, psh|urg|ack, nil, "x")),
		v4.wrap(protoTCP, tcp(50000, 22, psh|ack, nil, "SSH-2.0-OpenSSH_9.2\r\n")),
		v4.wrap(protoTCP, tcp(21, 20, ack, nil, "")),
		ipv4{src: "172.16.5.4", dst: "172.16.5.5"}.wrap(protoTCP, tcp(1024, 2000, ack, nil, "between")),
		ipv4{src: "1.2.3.4", dst: "8.8.8.8"}.wrap(protoUDP, udp(5000, 53, dns)),
		ipv4{src: "8.8.8.8", dst: "1.2.3.4"}.wrap(protoUDP, udp(53, 5000, dns, dns)),
		ipv4{src: "0.0.0.0", dst: "255.255.255.255"}.wrap(protoUDP, udp(68, 67, make([]byte, 240))),
		ipv4{dst: "224.0.0.251", ttl: 255}.wrap(protoUDP, udp(5353, 5353, dns)),
		ipv4{dst: "239.255.255.250", ttl: 1}.wrap(protoUDP, udp(1900, 1900, []byte("M-SEARCH * HTTP/1.1\r\n"))),
		v4.wrap(protoUDP, udp(123, 123, make([]byte, 48))),
		v4.wrap(protoUDP, udp(40000, 443, []byte("\xc3\x00\x00\x00\x01quic"))),
		v4.wrap(protoUDP, udp(40000, 4789, vxlan(7, frame(0x0800, v4.wrap(protoTCP, tcp(1, 443, syn, nil, "")))))),
		v4.wrap(protoUDP, udp(40000, 6081, geneve(10, 0x0800, v4.wrap(protoTCP, tcp(1, 443, syn, nil, ""))))),
		v4.wrap(protoUDP, udp(40000, 6081, geneve(11, 0x6558, frame(0x0800, back.wrap(protoUDP, udp(1, 53)))))),
		v4.wrap(protoUDP, udp(7, 7)),
		v4.wrap(protoUDP, udp(7, 7, make([]byte, 39))),
		v4.wrap(protoICMP, icmp(8, 0)),
		back.wrap(protoICMP, icmp(0, 0)),
		v4.wrap(protoICMP, icmp(3, 1), v4.wrap(protoUDP, udp(1, 2))),
		v4.wrap(protoICMP, icmp(3, 4)),
		v4.wrap(protoICMP, icmp(11, 0)),
		ipv4{dst: "224.0.0.22", options: []byte{0x94, 4, 0, 0}}.wrap(protoIGMP, []byte{0x22, 0, 0, 0, 0, 0, 0, 0}),
		ipv4{options: []byte{1, 1, 1, 1, 7, 3, 4, 0}}.wrap(protoTCP, tcp(40000, 443, ack, nil, "options")),
		ipv4{options: make([]byte, 40)}.wrap(protoUDP, udp(5000, 53, dns)),
		ipv4{tos: 0xb8}.wrap(protoUDP, udp(4000, 5060, []byte("INVITE"))),
		ipv4{tos: 3}.wrap(protoTCP, tcp(1, 2, ack, nil, "ecn")),
		ipv4{frag: 0x4000}.wrap(protoTCP, tcp(40000, 443, ack, nil, "df")),
		ipv4{frag: 0x2000}.wrap(protoUDP, udp(5000, 53, make([]byte, 64))),
		ipv4{frag: 0x2008}.wrap(protoUDP, udp(5000, 53, make([]byte, 64))),
		ipv4{frag: 0x0010}.wrap(protoUDP, udp(5000, 53, make([]byte, 8))),
		ipv4{frag: 0x0001}.wrap(protoTCP, tcp(40000, 443, ack, nil, "")),
		ipv4{ttl: 1}.wrap(protoTCP, tcp(40000, 443, ack, nil, "short life")),
		ipv4{src: "192.168.1.7", dst: "192.168.1.255"}.wrap(protoUDP, udp(138, 138, make([]byte, 20))),
		ipv4{src: "10.1.2.3", dst: "10.1.2.3"}.wrap(protoTCP, tcp(443, 443, ack, nil, "land")),
		v4.wrap(protoSCTP, sctp(36412, 36412)),
		v4.wrap(protoAH, ah(protoTCP), tcp(1, 443, ack, nil, "")),
		v4.wrap(protoESP, be32(0x1000), be32(1), make([]byte, 40)),
		v4.wrap(protoGRE, be16(0), be16(0x0800), back.wrap(protoTCP, tcp(1, 443, ack, nil, ""))),
		v4.wrap(4, back.wrap(protoUDP, udp(1, 53))),
		v4.wrap(protoIPv6, v6.wrap(protoTCP, tcp(1, 443, ack, nil, ""))),
		ipv4{dst: "224.0.0.13"}.wrap(protoPIM, []byte{0x20, 0, 0, 0}),
		ipv4{dst: "224.0.0.18"}.wrap(protoVRRP, []byte{0x21, 1, 100, 1, 0, 1, 0, 0}),
		v4.wrap(253, []byte("experiment")),
		v4.wrap(protoUDP, udp(1, 2, make([]byte, 1400))),
		v4.wrap(protoTCP, tcp(40000, 443, ack, nil, string(make([]byte, 1460)))),

		v6.wrap(protoTCP, tcp(40000, 443, syn, nil, "")),
		v6.wrap(protoTCP, tcp(40000, 443, psh|ack, nil, hello)),
		ipv6{src: "2001:db8::2", dst: "2001:db8::1"}.wrap(protoTCP, tcp(443, 40000, syn|ack, nil, "")),
		ipv6{src: "fe80::1", dst: "ff02::fb"}.wrap(protoUDP, udp(5353, 5353, dns)),
		ipv6{src: "2001:db8:1::1", dst: "2001:4860:4860::8888"}.wrap(protoUDP, udp(5000, 53, dns)),
		ipv6{src: "::", dst: "ff02::1:ff00:1"}.wrap(protoICMP6, icmp(135, 0), make([]byte, 16)),
		ipv6{src: "fe80::1", dst: "ff02::1"}.wrap(protoICMP6, icmp(134, 0)),
		v6.wrap(protoICMP6, icmp(128, 0)),
		v6.wrap(protoICMP6, icmp(129, 0)),
		v6.wrap(extHopByHop, ext(protoTCP), tcp(40000, 443, ack, nil, "")),
		v6.wrap(extHopByHop, ext(protoICMP6), icmp(143, 0)),
		v6.wrap(extRouting, ext(protoUDP), udp(5000, 53, dns)),
		v6.wrap(extOptions, ext(extRouting), ext(protoTCP), tcp(40000, 443, ack, nil, "")),
		v6.wrap(extFragment, fragment6(protoTCP, 0, 1), tcp(40000, 443, ack, nil, "")),
		v6.wrap(extFragment, fragment6(protoUDP, 0, 1), udp(5000, 53, dns)),
		v6.wrap(extFragment, fragment6(protoTCP, 185, 0), []byte("the rest of it")),
		v6.wrap(protoAH, ah(protoUDP), udp(1, 53)),
		v6.wrap(protoESP, be32(0x1000), be32(1), make([]byte, 40)),
		v6.wrap(protoSCTP, be16(9899), be16(9899), be32(0), be32(0)),
		v6.wrap(protoGRE, be16(0), be16(0x86dd), v6.wrap(protoUDP, udp(1, 53))),
		v6.wrap(extNone),
		v6.wrap(protoUDP, udp(1, 2, make([]byte, 1300))),
		v6.wrap(protoUDP, udp(40000, 6081, geneve(10, 0x86dd, v6.wrap(protoUDP, udp(1, 53))))),
	}
	all = append(all, chains()...)
	all = append(all, tunnels()...)

	// What is in only one place of an expression: flags, addresses, protocols, ports.
	all = append(all,
		v4.wrap(protoTCP, tcp(40000, 443, syn|ece|cwr, nil, "")),
		v4.wrap(protoTCP, tcp(443, 40000, syn|ack|ece, nil, "")),
		v4.wrap(protoTCP, tcp(40000, 443, ack|cwr, nil, "reduced")),
		v4.wrap(protoTCP, tcp(443, 40000, rst|ack, nil, "")),
		v4.wrap(protoTCP, tcp(40000, 21, ack, nil, "USER a\r\n")),
		v4.wrap(protoTCP, tcp(40000, 53, ack, nil, "")),
		v4.wrap(protoTCP, tcp(40000, 443, ack, nil, string(make([]byte, 1560)))), // 1,600 bytes
		v6.wrap(protoTCP, tcp(40000, 80, syn|ack, make([]byte, 40), string(make([]byte, 1500)))),
		ipv4{src: "192.168.1.2", dst: "172.16.5.4"}.wrap(protoTCP, tcp(22, 22, ack, nil, "")),
		ipv4{src: "0.0.0.10", dst: "128.3.7.9"}.wrap(protoUDP, udp(6000, 6008)),
		ipv4{src: "128.3.1.1", dst: "8.8.8.8", ttl: 255}.wrap(protoUDP, udp(7000, 7009, make([]byte, 100))),
		ipv4{dst: "0.0.0.0"}.wrap(protoUDP, udp(67, 68, make([]byte, 16))),
		ipv4{dst: "255.255.255.255", tos: 0x10}.wrap(protoUDP, udp(514, 514, []byte("<13>syslog"))),
		ipv4{frag: 0x8000}.wrap(protoTCP, tcp(40000, 443, ack, nil, "evil bit")),
		ipv4{frag: 0x20b9}.wrap(protoICMP, make([]byte, 1480)),
		ipv4{options: make([]byte, 12)}.wrap(protoICMP, icmp(8, 0)),
		ipv4{options: make([]byte, 4)}.wrap(protoSCTP, sctp(80, 2905)),
		back.wrap(protoSCTP, sctp(443, 36412)),
		v6.wrap(protoSCTP, sctp(36412, 80)),
		v6.wrap(protoTCP, tcp(22, 40000, rst, nil, "")),
		v6.wrap(protoPIM, []byte{0x20, 0, 0, 0}),
		v6.wrap(protoVRRP, []byte{0x31, 1, 100, 1, 0, 1, 0, 0}),
		ipv6{src: "fe80::2", dst: "ff02::5"}.wrap(89, make([]byte, 36)),
		ipv6{src: "2001:db8::2", dst: "2001:db8::2"}.wrap(protoUDP, udp(53, 53)),
		ipv4{dst: "224.0.0.18"}.wrap(protoVRRP, []byte{0x2f, 1, 0, 7, 0, 1, 0, 0}, make([]byte, 28)), // CARP
		v4.wrap(protoIGMP, []byte{0x11, 100, 0, 0, 0, 0, 0, 0}),
	)
	const igrp, egp, dccp, rsvp, ospf, l2tp, udplite = 9, 8, 33, 46, 89, 115, 136
	for _, protocol := range []int{igrp, egp, dccp, rsvp, ospf, l2tp, udplite} {
		all = append(all, ipv4{src: "10.0.0.3"}.wrap(protocol, []byte{0x12, byte(protocol), 0, 7}, make([]byte, 20)))
	}
	for _, kind := range []int{4, 5, 9, 10, 12, 13, 14, 15, 16, 17, 18} {
		all = append(all, v4.wrap(protoICMP, icmp(kind, kind&1)))
	}
	for kind := 130; kind <= 153; kind++ {
		all = append(all, v6.wrap(protoICMP6, icmp(kind, kind&1)))
	}
	for kind := 1; kind <= 4; kind++ {
		all = append(all, v6.wrap(protoICMP6, icmp(kind, 1), v6.wrap(protoUDP, udp(1, 2))))
	}
	for _, port := range []int{25, 110, 143, 853, 993, 1883, 3478, 5228} {
		all = append(all,
			v4.wrap(protoTCP, tcp(45000, port, psh|ack, nil, "to a server")),
			v6.wrap(protoUDP, udp(port, 45000, []byte("from one"))))
	}
	return all
}

// chains are packets in which the protocol is behind other headers, up to 6 of them: the programs
// for protochain go on for a few more only.
func chains() [][]byte {
	v4, v6 := ipv4{}, ipv6{}
	segment, datagram := tcp(40000, 443, ack, nil, ""), udp(5000, 53, []byte("query"))
	return [][]byte{
		v4.wrap(protoAH, ah(protoUDP), datagram),
		v4.wrap(protoAH, ah(protoAH), ah(protoTCP), segment),
		v4.wrap(protoAH, ah(protoAH), ah(protoAH), ah(protoAH), ah(protoAH), ah(protoUDP), datagram),
		v4.wrap(protoAH, ah(protoESP), be32(0x1000), be32(1), make([]byte, 24)),
		v4.wrap(protoAH, ah(protoICMP), icmp(8, 0)),
		v4.wrap(protoAH, ah(extNone)),
		ipv4{options: make([]byte, 8)}.wrap(protoAH, ah(protoTCP), segment),
		v4.wrap(extNone),
		v6.wrap(extHopByHop, longExt(protoUDP, 2), datagram),
		v6.wrap(extHopByHop, ext(extFragment), fragment6(protoICMP6, 0, 1), icmp(128, 0)),
		v6.wrap(extHopByHop, ext(extOptions), longExt(extRouting, 4), ext(extFragment), fragment6(protoAH, 0, 0),
			ah(extOptions), ext(protoTCP), segment),
		v6.wrap(extOptions, longExt(extRouting, 1), ext(extFragment), fragment6(extOptions, 0, 0), ext(protoUDP), datagram),
		v6.wrap(extOptions, ext(extOptions), ext(extOptions), ext(extOptions), ext(extOptions), ext(protoICMP6),
			icmp(129, 0)),
		v6.wrap(extHopByHop, ext(protoESP), be32(0x1000), be32(1), make([]byte, 24)),
		v6.wrap(extHopByHop, ext(protoSCTP), sctp(36412, 36412)),
		v6.wrap(extRouting, ext(extNone)),
		v6.wrap(extRouting, ext(protoIPv6), v6.wrap(protoTCP, segment)),
		v6.wrap(protoAH, ah(protoTCP), segment),
		v6.wrap(protoAH, ah(protoAH), ah(protoAH), ah(protoTCP), segment),
		v6.wrap(protoAH, ah(extOptions), ext(protoICMP6), icmp(128, 0)),
		v6.wrap(extFragment, fragment6(extOptions, 0, 1), ext(protoUDP), datagram),
		v6.wrap(extFragment, fragment6(protoICMP6, 100, 1), make([]byte, 64)),
		v6.wrap(extHopByHop, longExt(protoTCP, 100), segment),
	}
}

// tunnels are packets in IP packets.
func tunnels() [][]byte {
	v4, v6 := ipv4{}, ipv6{}
	inner4 := ipv4{src: "10.9.9.9"}.wrap(protoTCP, tcp(1, 443, syn, nil, "inner"))
	inner6 := ipv6{dst: "2001:db8::9"}.wrap(protoUDP, udp(1, 53, []byte("inner")))
	option := cat(be16(0x0102), []byte{0x80, 1}, be32(7))
	options := slices.Repeat(option, 15)
	const teb, arpType, mplsType, erspan = 0x6558, 0x0806, 0x8847, 0x88be
	outer := func(g []byte) []byte { return v4.wrap(protoUDP, udp(40000, 6081, g)) }
	return [][]byte{
		v4.wrap(protoGRE, be16(0x2000), be16(0x86dd), be32(99), inner6),
		v4.wrap(protoGRE, be16(0xb000), be16(teb), be32(0), be32(99), be32(1), frame(0x0800, inner4)),
		v4.wrap(protoGRE, be16(0x1000), be16(erspan), be32(1), make([]byte, 8), frame(0x0800, inner4)),
		v4.wrap(protoGRE, be16(0x3001), be16(0x880b), be32(16<<16|1), be32(1), []byte{0xff, 3, 0, 0x21}, inner4),
		v6.wrap(4, inner4),
		v6.wrap(protoIPv6, inner6),
		v4.wrap(protoUDP, udp(40000, 4789, vxlan(7, frame(0x8100, tag(100), be16(0x86dd), inner6)))),
		v6.wrap(protoUDP, udp(40000, 4789, vxlan(8, frame(arpType, arp(1))))),
		outer(geneveWith(option, 10, 0x0800, inner4)),
		outer(geneveWith(options, 11, teb, frame(0x0800, inner4))),
		outer(geneveWith(make([]byte, 252), 11, 0x86dd, inner6)),
		outer(geneve(11, 0x86dd, inner6)),
		outer(geneve(0xffffff, teb, frame(arpType, arp(1)))),
		outer(geneve(11, teb, frame(0x8100, tag(100), be16(0x0800), inner4))),
		outer(geneve(11, teb, frame(0x86dd, inner6))),
		outer(geneveWith(option, 11, teb, frame(mplsType, mpls(1024, 1), inner4))),
		outer(geneve(11, mplsType, mpls(1024, 1), inner4)),
		outer(geneve(11, teb, llc(macSTP, []byte{0x42, 0x42, 3}, make([]byte, 35)))),
		outer(geneve(11, teb, cat(macBroadcast, frame(0x0800, inner4)[6:]))),
		outer(geneve(10, 0x0800, outer(geneve(12, 0x0800, inner4)))),
		outer(geneve(11, teb, frame(0x8864, pppoe(0x27, 0x0021, inner4)))),
		outer(cat([]byte{0x40, 0x80}, geneve(10, 0x0800, inner4)[2:])), // version 1
		ipv4{options: make([]byte, 8)}.wrap(protoUDP, udp(40000, 6081, geneveWith(option, 10, 0x0800, inner4))),
		ipv4{frag: 0x2000}.wrap(protoUDP, udp(40000, 6081, geneve(10, 0x0800, inner4))),
		v6.wrap(protoUDP, udp(40000, 6081, geneveWith(option, 10, teb, frame(0x0800, inner4)))),
		v6.wrap(protoUDP, udp(40000, 6081, geneve(11, 0x0800, inner4))),
	}
}

// frames are whole and well-formed Ethernet frames: every packet of ipPackets, and
// what else is on a wire.
func frames() [][]byte {
	var all [][]byte
	for _, p := range ipPackets() {
		all = append(all, frame(etherType(p), p))
	}
	v4 := ipv4{}.wrap(protoTCP, tcp(40000, 443, psh|ack, nil, "inner"))
	v4udp := ipv4{src: "192.9.200.1"}.wrap(protoUDP, udp(5000, 53, []byte("inner")))
	v6 := ipv6{}.wrap(protoTCP, tcp(40000, 443, syn, nil, ""))
	to := func(dst, f []byte) []byte { return cat(dst, f[6:]) }
	const vlan, qinq, vlan9100, mplsType, pppoeD, pppoeS = 0x8100, 0x88a8, 0x9100, 0x8847, 0x8863, 0x8864
	for _, pdu := range []int{15, 16, 17, 18, 20, 24, 25, 26, 27} {
		all = append(all, isis(pdu))
	}
	// LLC control bytes, with the poll bit and without: RR, RNR, REJ, I, UA, DISC, SABME, XID, TEST, FRMR, UI
	for _, control := range []byte{1, 5, 9, 0, 0x20, 0x63, 0x73, 0x43, 0x53, 0x6f, 0x7f, 0xbf, 0xe3, 0x87, 0x97, 0x13} {
		all = append(all, llc(mac(2), []byte{0xf0, 0xf0, control, 1}, make([]byte, 32)))
	}
	const node1, node2 = 10<<10 | 123, 1<<10 | 7
	for _, form := range []struct{ long, padded bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		all = append(all, decnet(form.long, form.padded, node1, node2), decnet(form.long, form.padded, node2, node1))
	}
	return append(all,
		decnet(false, false, node1, node1),
		to(macBroadcast, frame(0x0806, arp(1))),
		frame(0x0806, arp(2)),
		to(macBroadcast, frame(0x8035, arp(3))),
		to(macMulticast, frame(0x0800, ipv4{dst: "224.0.0.251"}.wrap(protoUDP, udp(5353, 5353)))),
		to(macBroadcast, frame(0x0800, ipv4{dst: "255.255.255.255"}.wrap(protoUDP, udp(68, 67)))),
		to([]byte{0x33, 0x33, 0, 0, 0, 1}, frame(0x86dd, ipv6{dst: "ff02::1"}.wrap(protoICMP6, icmp(134, 0)))),
		cat(mac(9), mac(8), be16(0x0800), v4),
		frame(0x0800, ipv4{}.wrap(protoTCP, tcp(40000, 443, ack, nil, "")), make([]byte, 6)), // padded to 60 bytes
		frame(0x0800, ipv4{}.wrap(protoUDP, udp(5000, 53)), make([]byte, 18)),

		llc(macSTP, []byte{0x42, 0x42, 3}, make([]byte, 35)),
		llc(mac(2), []byte{0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, v4),
		llc(mac(2), []byte{0xaa, 0xaa, 3, 0, 0, 0, 0x81, 0x9b}, make([]byte, 20)),
		llc(mac(2), []byte{0xaa, 0xaa, 3, 0, 0, 0xc, 0x20, 0}, make([]byte, 20)),
		llc(mac(2), []byte{0xe0, 0xe0, 3}, make([]byte, 30)),
		llc(mac(2), []byte{0xf0, 0xf0, 3}, make([]byte, 30)),
		llc(mac(2), []byte{0xfe, 0xfe, 3, 0x83}, make([]byte, 30)),
		llc(mac(2), []byte{0xfe, 0xfe, 3, 0x81}, make([]byte, 30)),
		llc(mac(2), []byte{0, 0, 0xaf}, make([]byte, 10)),
		llc(mac(2), []byte{0, 0, 0xf3}, make([]byte, 10)),
		llc(mac(2), []byte{0, 0, 0x7f}, make([]byte, 10)),
		llc(mac(2), []byte{4, 4, 1, 0}, make([]byte, 10)),
		frame(0xffff, make([]byte, 30)),

		frame(vlan, tag(100), be16(0x0800), v4),
		frame(vlan, tag(100), be16(0x0800), v4udp),
		frame(vlan, tag(0xe064), be16(0x86dd), v6),
		frame(vlan, tag(200), be16(0x0806), arp(1)),
		frame(vlan, tag(0), be16(0x0800), v4),
		frame(vlan, tag(100), be16(vlan), tag(200), be16(0x0800), v4),
		frame(qinq, tag(10), be16(vlan), tag(300), be16(0x0800), v4udp),
		frame(qinq, tag(300), be16(0x0800), v4),
		frame(vlan9100, tag(300), be16(0x0800), v4),
		frame(vlan, tag(100), be16(pppoeS), pppoe(0x27, 0x0021, v4)),
		frame(vlan, tag(100), be16(mplsType), mpls(1024, 1), v4),
		frame(qinq, tag(10), be16(vlan), tag(300), be16(0x86dd), v6),
		frame(qinq, tag(10), be16(qinq), tag(20), be16(vlan), tag(30), be16(0x0800), v4),
		frame(vlan, tag(0x2064), be16(vlan), tag(0x00c8), be16(0x86dd), v6),
		frame(vlan, tag(4095), be16(0x0800), v4udp),
		frame(vlan, tag(100), be16(vlan), tag(200), be16(vlan), tag(300), be16(0x0806), arp(1)),
		frame(vlan, tag(100), be16(vlan), tag(200), be16(pppoeS), pppoe(0x27, 0x0021, v4udp)),
		frame(vlan, tag(100), be16(pppoeD), []byte{0x11, 9, 0, 0, 0, 0}),
		frame(vlan, tag(100), be16(mplsType), mpls(100000, 0), mpls(1024, 1), v6),
		frame(vlan, tag(100), be16(38), []byte{0x42, 0x42, 3}, make([]byte, 35)),
		frame(vlan, tag(100), be16(30), []byte{0xfe, 0xfe, 3, 0x83, 27, 1, 0, 15}, make([]byte, 22)),
		frame(vlan, tag(100), be16(0x86dd), chains()[10]),
		frame(vlan, tag(100), be16(0x0800), tunnels()[9]),
		to(macBroadcast, frame(vlan, tag(200), be16(0x0800), v4udp)),

		frame(mplsType, mpls(1024, 1), v4),
		frame(mplsType, mpls(100000, 0), mpls(1024, 1), v4udp),
		frame(mplsType, mpls(100000, 0), mpls(1024, 1), v6),
		frame(mplsType, mpls(2000, 1), v6),
		frame(mplsType, mpls(3, 0), mpls(4, 0), mpls(5, 1), v4),
		frame(0x8848, mpls(16, 1), v4),
		frame(mplsType, mpls(100000, 0), mpls(1024, 0), mpls(2000, 0), mpls(17, 1), v4udp),
		frame(mplsType, mpls(0, 1), v4),
		frame(mplsType, mpls(1048575, 1), v4udp),
		frame(mplsType, mpls(2000, 1), chains()[13]),
		frame(mplsType, mpls(2000, 1), []byte{0, 0, 0, 0}, frame(0x0800, v4)), // a pseudowire

		frame(pppoeD, []byte{0x11, 9, 0, 0, 0, 4, 1, 1, 0, 0}),
		frame(pppoeD, []byte{0x11, 0xa7, 0, 0x27, 0, 0}),
		frame(pppoeS, pppoe(0x27, 0x0021, v4)),
		frame(pppoeS, pppoe(0x27, 0x0057, v6)),
		frame(pppoeS, pppoe(0x28, 0x0021, v4udp)),
		frame(pppoeS, pppoe(0x28, 0xc021, []byte{1, 1, 0, 4})),
		frame(pppoeS, pppoe(0x29, 0x0281, mpls(1024, 1), v4)),
		frame(pppoeS, pppoe(0xffff, 0x0057, chains()[11])),
		frame(pppoeS, pppoe(0x30, 0x8021, []byte{1, 1, 0, 10, 3, 6, 0, 0, 0, 0})),
		frame(pppoeS, pppoe(0x30, 0x0021, ipv4{dst: "224.0.0.1"}.wrap(protoIGMP, make([]byte, 8)))),

		frame(0x88cc, []byte{2, 7, 4, 2, 0, 0, 0, 0, 1}),
		frame(0x888e, []byte{1, 1, 0, 0}),
		frame(0x6003, make([]byte, 40)),
		frame(0x6004, make([]byte, 40)),
		frame(0x809b, make([]byte, 40)),
		frame(0x80f3, make([]byte, 40)),
		frame(0x8137, make([]byte, 40)),
		frame(0x6001, []byte{8, 7, 6, 5}, make([]byte, 40)),
		frame(0x6002, []byte{8, 7, 6, 5}, make([]byte, 40)),
		frame(0x6004, []byte{8, 7, 6, 5}, make([]byte, 40)),
		frame(0x6007, []byte{8, 7, 6, 5}, make([]byte, 40)),
		frame(0x9000, []byte{0, 0, 1}, make([]byte, 43)),
		frame(0x809b, []byte{8, 7, 6, 5}, make([]byte, 40)),
		llc(mac(2), []byte{0xaa, 0xaa, 3, 8, 0, 7, 0x80, 0x9b}, make([]byte, 20)),
		llc(mac(2), []byte{0xaa, 0xaa, 3, 0, 0, 0, 0x80, 0xf3}, make([]byte, 28)),
		llc(mac(2), []byte{0xaa, 0xaa, 3, 0, 0, 0, 0x81, 0x37}, make([]byte, 40)),
		llc(mac(2), []byte{0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd}, v6),
		llc(mac(2), []byte{0xff, 0xff, 0, 30}, make([]byte, 26)), // IPX without LLC
		llc(mac(2), []byte{0xfe, 0xfe, 3, 0x82, 9, 1, 0}, make([]byte, 30)),
		llc(mac(2), []byte{6, 6, 3}, v4),
		to(macBroadcast, frame(0x0806, arp(8))),
		frame(0x8035, arp(4)),
		to(macMulticast, llc(mac(2), []byte{0xe0, 0xe0, 3}, make([]byte, 60))),
		frame(0x0800, ipv4{}.wrap(protoUDP, udp(1, 2, make([]byte, 1558)))), // 1,600 bytes
		frame(vlan, tag(100), be16(0x0800), ipv4{}.wrap(protoTCP, tcp(80, 40000, ack, nil, string(make([]byte, 1542))))),
		frame(0x88b5, []byte("experiment")),
	)
}

func etherType(ip []byte) int {
	if ip[0]>>4 == 6 {
		return 0x86dd
	}
	return 0x0800
}

// corpus returns whole packets, then the same cut short, then with some bytes changed: the same ones
// on every run. Cuts and changes lie in the first bytes, where headers are. Each packet is cut and
// changed, and as many as mutants say are changed once more.
func corpus(whole [][]byte, mutants int) [][]byte {
	const headers, cuts = 150, 3
	r := rand.New(rand.NewPCG(1, 2))
	all := slices.Clone(whole)
	for _, p := range whole {
		for range cuts {
			all = append(all, p[:1+r.IntN(min(len(p), headers)-1)])
		}
	}
	mutate := func(p []byte) []byte {
		p = slices.Clone(p)
		for range 1 + r.IntN(3) {
			p[r.IntN(min(len(p), headers))] = byte(r.Uint32())
		}
		return p
	}
	for _, p := range whole {
		all = append(all, mutate(p))
	}
	for range mutants {
		all = append(all, mutate(whole[r.IntN(len(whole))]))
	}
	return all
}
