// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"bytes"
	"cmp"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/sockdiag"
	"droidtap/scripts/nettest"
)

// fake is a kernel, its programs and a machine with the addresses a4 and a6.
type fake struct {
	now    int64
	uid    int    // of every socket; below 0, there is none
	inode  uint32 // 0: uid+1
	err    error
	asked  int
	flows  map[sockdiag.Flow]learnt
	firsts map[fragment]ports
	looked int // at flows
}

const nobody = -1

func newFake() (*fake, *Finder) {
	k := &fake{now: 1000e9, uid: nobody, flows: map[sockdiag.Flow]learnt{}, firsts: map[fragment]ports{}}
	f := newFinder(func() int64 { return k.now }, k, k, k)
	f.learns = true
	return k, f
}

func (k *fake) Find(sockdiag.Flow) (sockdiag.Socket, bool, error) {
	k.asked++
	if k.uid < 0 || k.err != nil {
		return sockdiag.Socket{}, false, k.err
	}
	return sockdiag.Socket{UID: uint32(k.uid), Inode: cmp.Or(k.inode, uint32(k.uid+1)), Cgroup: uint64(k.uid + 2)}, true, nil
}

func (k *fake) learnt(f sockdiag.Flow) (learnt, bool, error) {
	k.looked++
	f.Ifindex = 0
	l, found := k.flows[f]
	return l, found, nil
}

func (k *fake) learn(f sockdiag.Flow, l learnt, unlessKnown bool) error {
	f.Ifindex = 0
	k.flows[f] = l
	return nil
}

func (k *fake) first(f fragment) (ports, bool, error) {
	p, found := k.firsts[f]
	return p, found, nil
}

func (k *fake) Has(a netip.Addr) (bool, error) {
	return a == netip.MustParseAddr(a4) || a == netip.MustParseAddr(a6) || a.IsMulticast(), nil
}

// The flow of the packets here, seen from a.
var (
	udpFlow = sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: netip.MustParseAddrPort(a4 + ":5353"), Remote: netip.MustParseAddrPort(b4 + ":443")}
	tcpFlow = sockdiag.Flow{Protocol: unix.IPPROTO_TCP, Local: udpFlow.Local, Remote: udpFlow.Remote}
)

// in and out are questions about a packet from b to a, and from a to b.
func in(payload []byte, protocol byte) Question {
	return Question{Packet: nettest.IPv4(b4, a4, protocol, 0, nil, payload)}
}

func out(payload []byte, protocol byte) Question {
	return Question{Packet: nettest.IPv4(a4, b4, protocol, 0, nil, payload), Outgoing: true}
}

func datagramIn() Question { return in(nettest.UDP(443, 5353, nil), unix.IPPROTO_UDP) }

func segmentIn(flags byte) Question {
	b := nettest.Reset(443, 5353, nil)
	b[13] = flags
	return in(b, unix.IPPROTO_TCP)
}

// TestTime asks again and again while the world changes.
func TestTime(t *testing.T) {
	const ms, s = int64(time.Millisecond), int64(time.Second)
	const no, unknown, wait = nobody, -2, -3
	udp, tcp, syn := datagramIn(), segmentIn(0x10), segmentIn(2)
	older := func(q Question, age int64) Question { q.Age = time.Duration(age); return q }
	type step struct {
		after  int64
		q      Question
		uid    int // of the socket that there is
		learns int // if not 0, the programs learn this uid now
		closes bool
		want   int
		asked  bool
	}
	for _, c := range []struct {
		rule  string
		steps []step
	}{
		{"an answer holds for two seconds", []step{
			{0, tcp, 10001, 0, false, 10001, true}, {1999 * ms, tcp, 10002, 0, false, 10001, false}}},
		{"root's is an answer", []step{{0, tcp, 0, 0, false, 0, true}, {s, tcp, no, 0, false, 0, false}}},
		{"what the kernel says is learnt", []step{
			{0, tcp, 10001, 0, false, 10001, true}, {3 * s, tcp, no, 0, false, 10001, false}}},
		{"not to know holds for 20 ms, for packets of later, too", []step{
			{0, udp, no, 0, false, wait, true}, {19 * ms, udp, 10001, 0, false, wait, false}, {ms, udp, 10001, 0, false, 10001, true}}},
		{"sockets of later than the packet are not asked for", []step{
			{0, udp, no, 0, false, wait, true}, {25 * ms, older(udp, 25*ms), 10001, 0, false, wait, false},
			{25 * ms, older(udp, 50*ms), 10001, 0, false, unknown, false}}},
		{"a reply tells", []step{
			{0, udp, no, 0, false, wait, true}, {25 * ms, older(udp, 25*ms), no, 10001, false, 10001, false}}},
		{"a connection's reply tells", []step{
			{0, syn, no, 0, false, wait, true}, {8 * ms, older(syn, 8*ms), no, 10001, false, 10001, false}}},
		{"a later connection's does not, nor does its socket", []step{
			{25 * ms, older(syn, 25*ms), 10001, 10001, false, wait, false}, {40 * ms, older(syn, 65*ms), 10001, 0, false, unknown, false}}},
		{"nor is what follows a SYN", []step{
			{0, tcp, no, 0, false, wait, true}, {25 * ms, older(tcp, 25*ms), 10001, 0, true, wait, false}, {21 * ms, tcp, 10001, 0, false, 10001, true}}},
		{"a SYN of before its listener was closed is not of the next one", []step{
			{0, syn, no, 0, false, wait, true}, {8 * ms, older(syn, 8*ms), 10001, 0, true, wait, false}, {ms, syn, 10001, 0, false, 10001, true}}},
		{"a SYN asks although the flow is known", []step{
			{0, tcp, no, 10001, false, 10001, false}, {5 * ms, syn, 10002, 0, false, 10002, true}, {ms, tcp, no, 0, false, 10002, false}}},
		{"a SYN of nobody's ends what was known", []step{
			{0, tcp, 10001, 0, false, 10001, true}, {5 * ms, syn, no, 0, false, wait, true}}},
		{"a SYN asks once", []step{
			{0, syn, 10001, 0, false, 10001, true}, {ms, older(syn, ms), 10002, 0, false, 10001, false}}},
		{"a learnt TCP flow holds for two minutes", []step{
			{0, udp, no, 0, false, wait, true}, {0, tcp, no, 10001, false, 10001, false}, {119 * s, tcp, no, 0, false, 10001, false}}},
		{"a learnt UDP flow holds for a minute", []step{
			{0, udp, no, 10001, false, 10001, false}, {61 * s, udp, no, 0, false, wait, true}}},
		{"a closed UDP port is nobody's", []step{
			{0, udp, 10001, 0, false, 10001, true}, {ms, udp, no, 0, true, wait, true}}},
		{"a closed UDP port is the next one's", []step{
			{0, udp, 10001, 0, false, 10001, true}, {ms, udp, 10002, 0, true, 10002, true}}},
		{"what came before the close, asked for after it", []step{
			{0, udp, 10001, 0, false, 10001, true}, {50 * ms, older(udp, 25*ms), 10002, 0, true, 10001, false}}},
		{"what came about when the port was closed", []step{
			{0, udp, 10001, 0, false, 10001, true}, {5 * ms, older(udp, 2*ms), no, 0, true, 10001, true}}},
		{"what came about when the port went to another", []step{
			{0, udp, 10001, 0, false, 10001, true}, {5 * ms, older(udp, 2*ms), 10002, 0, true, unknown, true},
			{25 * ms, udp, 10002, 0, false, 10002, true}}},
		{"a packet between two closes is of neither the one before nor the one after", []step{
			{0, udp, 10001, 0, false, 10001, true}, {s, tcp, no, 0, true, wait, true}, {s, older(udp, s/2), 10002, 0, true, unknown, false},
			{25 * ms, udp, 10002, 0, false, 10002, true}}},
		{"what was learnt of a packet between two closes", []step{
			{0, udp, 10001, 0, false, 10001, true}, {s, tcp, no, 0, true, wait, true}, {s, tcp, no, 10003, false, 10003, false},
			{s, older(udp, s/2), 10002, 0, true, 10003, false}}},
		{"what was learnt after the next close is another's", []step{
			{0, udp, no, 0, true, wait, true}, {s, older(udp, s), no, 10002, true, unknown, false}}},
		{"what was learnt before the close is not believed", []step{
			{0, udp, no, 10001, false, 10001, false}, {ms, udp, 10002, 0, true, 10002, true}}},
		{"a TCP flow stays its owner's after a close", []step{
			{0, tcp, 10001, 0, false, 10001, true}, {ms, tcp, no, 0, true, 10001, false}}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			k, f := newFake()
			for i, step := range c.steps {
				k.now += step.after
				k.uid = step.uid
				if step.closes {
					// A little before the packet, if that is of now.
					k.now++
					if err := f.forget(shared{}, []sockdiag.Socket{{Protocol: unix.IPPROTO_UDP, Local: udpFlow.Local}, {Protocol: unix.IPPROTO_TCP, Local: tcpFlow.Local}}, false); err != nil {
						t.Fatal(err)
					}
					k.now++
				}
				if step.learns != 0 {
					l := learnt{uid: uint32(step.learns), seen: k.now, born: k.now}
					k.flows[udpFlow], k.flows[tcpFlow] = l, l
				}
				before := k.asked
				a := f.Find(step.q)
				got := int(a.UID)
				switch {
				case a.UID == pcapng.UIDUnknown && a.Wait:
					got = wait
				case a.UID == pcapng.UIDUnknown:
					got = unknown
				case a.Wait:
					t.Errorf("step %d: to wait for what is known", i)
				}
				if got != step.want || (k.asked != before) != step.asked || a.Other != pcapng.UIDNone {
					t.Errorf("step %d: %d, asked %v, %+v, want %d, %v", i, got, k.asked != before, a, step.want, step.asked)
				}
			}
		})
	}
}

func TestWhose(t *testing.T) {
	const known, none, unknown, wait = 10001, pcapng.UIDNone, pcapng.UIDUnknown, 1
	quote := func(kind byte, packet []byte) []byte { return append([]byte{kind, 1, 0, 0, 0, 0, 0, 0}, packet...) }
	sent := out(nettest.UDP(5353, 443, nil), unix.IPPROTO_UDP).Packet
	came := datagramIn().Packet
	reply := nettest.Echo(nil)
	reply[0] = 0
	echoFlow := sockdiag.Flow{Protocol: unix.IPPROTO_ICMP, Local: netip.MustParseAddrPort(a4 + ":1"), Remote: netip.MustParseAddrPort(b4 + ":0")}
	from := func(src, dst string, outgoing bool) Question {
		return Question{Packet: nettest.IPv4(src, dst, unix.IPPROTO_UDP, 0, nil, nettest.UDP(443, 5353, nil)), Outgoing: outgoing}
	}
	with := func(q Question, change func(*Question)) Question { change(&q); return q }
	for _, c := range []struct {
		rule   string
		q      Question
		socket int // its uid; nobody for none
		learnt []sockdiag.Flow
		want   uint32 // wait: unknown, to be asked again
	}{
		{"what comes in", datagramIn(), known, nil, known},
		{"what comes in and was learnt", datagramIn(), nobody, []sockdiag.Flow{udpFlow}, known},
		{"what comes in to nobody", datagramIn(), nobody, nil, wait},
		{"what comes in to nobody, in the end", with(datagramIn(), func(q *Question) { q.Age = Patience }), nobody, nil, unknown},
		{"what leaves", out(nettest.UDP(5353, 443, nil), unix.IPPROTO_UDP), known, nil, known},
		{"what leaves from nobody", out(nettest.UDP(5353, 443, nil), unix.IPPROTO_UDP), nobody, nil, unknown},
		{"what is forwarded, coming in", from(b4, "198.51.100.9", false), known, nil, none},
		{"what is forwarded, leaving", from("198.51.100.9", b4, true), known, nil, none},
		{"to a group", from(b4, "224.0.0.251", false), known, nil, known},
		{"from a group", from("224.0.0.251", b4, true), known, nil, none},
		{"to no address", from(b4, "0.0.0.0", false), known, nil, none},
		{"from no address yet", from("0.0.0.0", "255.255.255.255", true), known, nil, known},
		{"ARP", Question{Packet: nettest.Ethernet(nettest.NearMAC, nettest.FarMAC, nettest.TypeARP, nettest.ARP(nettest.NearMAC, a4, b4)), L2: true}, known, nil, none},
		{"IGMP", in([]byte{0x11, 0, 0, 0, 0, 0, 0, 0}, unix.IPPROTO_IGMP), known, nil, none},
		{"ND", Question{Packet: nettest.IPv6(b6, a6, unix.IPPROTO_ICMPV6, make([]byte, 24))}, known, nil, none},
		{"cut short", Question{Packet: datagramIn().Packet[:22]}, known, nil, unknown},
		{"SCTP", in(make([]byte, 12), unix.IPPROTO_SCTP), known, nil, unknown},

		{"an echo request to us", in(nettest.Echo(nil), unix.IPPROTO_ICMP), known, []sockdiag.Flow{echoFlow}, none},
		{"our reply to it", out(reply, unix.IPPROTO_ICMP), known, []sockdiag.Flow{echoFlow}, none},
		{"an echo request of ours", out(nettest.Echo(nil), unix.IPPROTO_ICMP), nobody, []sockdiag.Flow{echoFlow}, known},
		{"the reply to ours", in(reply, unix.IPPROTO_ICMP), nobody, []sockdiag.Flow{echoFlow}, known},
		{"the reply to a ping socket's", in(reply, unix.IPPROTO_ICMP), known, nil, known},
		{"a reply to nobody's", in(reply, unix.IPPROTO_ICMP), nobody, nil, unknown},
		{"an error about our echo request", in(quote(3, out(nettest.Echo(nil), unix.IPPROTO_ICMP).Packet), unix.IPPROTO_ICMP), nobody, []sockdiag.Flow{echoFlow}, known},

		{"an error about what we sent", in(quote(3, sent), unix.IPPROTO_ICMP), known, nil, known},
		{"an error about what we sent, learnt", in(quote(11, sent), unix.IPPROTO_ICMP), nobody, []sockdiag.Flow{udpFlow}, known},
		{"an error about what we sent, of eight bytes", in(quote(3, sent[:28]), unix.IPPROTO_ICMP), known, nil, known},
		{"an error about what nobody sent", in(quote(3, sent), unix.IPPROTO_ICMP), nobody, nil, unknown},
		{"an error that is forwarded", in(quote(3, from("198.51.100.9", b4, true).Packet), unix.IPPROTO_ICMP), known, nil, none},
		{"our error about what came", out(quote(3, came), unix.IPPROTO_ICMP), nobody, []sockdiag.Flow{udpFlow}, known},
		{"our error about what came to nobody", out(quote(3, came), unix.IPPROTO_ICMP), nobody, nil, none},
		{"an error about an error", in(quote(3, in(quote(3, sent), unix.IPPROTO_ICMP).Packet), unix.IPPROTO_ICMP), known, nil, none},
	} {
		t.Run(c.rule, func(t *testing.T) {
			k, f := newFake()
			k.uid = c.socket
			for _, flow := range c.learnt {
				k.flows[flow] = learnt{uid: known, seen: k.now}
			}
			a := f.Find(c.q)
			want := c.want
			if want == wait {
				want = unknown
			}
			if a.UID != want || a.Wait != (c.want == wait) {
				t.Errorf("%+v, want %d", a, c.want)
			}
		})
	}
}

// TestWithoutPrograms is for packet sockets: no reply will tell, but sock_diag may not have been asked for the packet yet.
func TestWithoutPrograms(t *testing.T) {
	k, f := newFake()
	f.learns = false
	if a := f.Find(datagramIn()); a.UID != pcapng.UIDUnknown || a.Wait {
		t.Errorf("asked for: %+v", a)
	}
	k.now++
	if a := f.Find(datagramIn()); a.UID != pcapng.UIDUnknown || !a.Wait {
		t.Errorf("just after a question: %+v", a)
	}
	k.now += retry
	k.uid = 10001
	old := datagramIn()
	old.Age = retry
	if a := f.Find(old); a.UID != 10001 {
		t.Errorf("asked again: %+v", a)
	}
}

// TestLost is for closes of which the kernel could not tell.
func TestLost(t *testing.T) {
	k, f := newFake()
	k.uid = 10001
	tcp := segmentIn(0x10)
	f.Find(datagramIn())
	f.Find(tcp)
	k.now++
	if err := f.forget(shared{}, nil, true); err != nil {
		t.Fatal(err)
	}
	k.now++
	k.uid = nobody
	if a := f.Find(datagramIn()); a.UID != pcapng.UIDUnknown {
		t.Errorf("a UDP flow: %+v", a)
	}
	if a := f.Find(tcp); a.UID != 10001 {
		t.Errorf("a TCP flow: %+v", a)
	}
}

func TestLoopback(t *testing.T) {
	k, f := newFake()
	q := Question{Packet: nettest.IPv4(a4, a4, unix.IPPROTO_UDP, 0, nil, nettest.UDP(1, 2, nil)), Loopback: true}
	flow := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: netip.MustParseAddrPort(a4 + ":1"), Remote: netip.MustParseAddrPort(a4 + ":2")}
	k.flows[flow] = learnt{uid: 10001, seen: k.now}
	flow.Local, flow.Remote = flow.Remote, flow.Local
	k.flows[flow] = learnt{uid: 10002, seen: k.now}
	for _, q.Outgoing = range []bool{false, true} {
		if a := f.Find(q); a.UID != 10002 || a.Other != 10001 {
			t.Errorf("outgoing %v: %+v", q.Outgoing, a)
		}
		k.uid = 10002
		if q.Outgoing {
			k.uid = 10001
		}
		if inode := f.Inode(q, uint32(k.uid)); int(inode) != k.uid+1 {
			t.Errorf("outgoing %v: inode %d of the socket of %d", q.Outgoing, inode, k.uid)
		}
	}
}

func TestFailuresAreReportedOnce(t *testing.T) {
	k, f := newFake()
	var said bytes.Buffer
	f.log = slog.New(slog.NewTextHandler(&said, nil))
	k.err = errors.New("first")
	f.Find(datagramIn())
	k.err = errors.New("second")
	k.now += retry
	if a := f.Find(datagramIn()); a.UID != pcapng.UIDUnknown || !a.Wait {
		t.Errorf("without an answer: %+v", a)
	}
	k.err = sockdiag.ErrNoDiag // said at the start
	k.now += retry
	f.Find(datagramIn())
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := said.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "2 times: first") {
		t.Errorf("said %q", got)
	}
}

func TestInode(t *testing.T) {
	k, f := newFake()
	k.flows[udpFlow] = learnt{uid: 10001, cgroup: 77, seen: k.now}
	if a := f.Find(datagramIn()); a.UID != 10001 || a.Cgroup != 77 || a.Inode != 0 {
		t.Errorf("a learnt flow: %+v", a)
	}
	k.uid = 10002
	if got := f.Inode(datagramIn(), 10001); got != 0 {
		t.Errorf("another's socket is told: %d", got)
	}
	k.uid = 10001
	k.now += retry
	for range 2 {
		if got := f.Inode(datagramIn(), 10001); got != 10002 || k.asked != 2 {
			t.Errorf("inode %d, asked %d times", got, k.asked)
		}
	}
	if a := f.Find(datagramIn()); a.Inode != 10002 || a.Cgroup != 77 {
		t.Errorf("with an inode: %+v", a)
	}
	if got := f.Inode(in(nettest.Echo(nil), unix.IPPROTO_ICMP), 10001); got != 0 {
		t.Errorf("the inode of what the kernel answers is %d", got)
	}
}
