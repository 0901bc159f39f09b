// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

func isDeadline(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func TestDirections(t *testing.T) {
	near, far := pair(t)
	s := open(t, near, "veth0", Options{}, ours(t, all))
	for _, c := range []struct {
		rule string
		from nettest.Space
		out  bool
	}{
		{"received", far, false},
		{"sent", near, true},
	} {
		t.Run(c.rule, func(t *testing.T) {
			for n, size := range []int{60, 61, 1000, 1514} {
				before := time.Now().UnixNano()
				send(t, c.from, "veth0", frame(n, size))
				got := next(t, s)
				if got.Time < before || got.Time > time.Now().UnixNano() {
					t.Errorf("frame of %d bytes: time %d, sent after %d", size, got.Time, before)
				}
				got.Time = 0
				want := Packet{Length: uint32(size), Data: frame(n, size), Outgoing: c.out}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("frame of %d bytes (-want +got):\n%s", size, diff)
				}
			}
			none(t, s, "no packet comes twice")
		})
	}
}

func TestFilter(t *testing.T) {
	near, far := pair(t)
	for _, c := range []struct {
		rule    string
		filter  *ebpf.Program
		in, out int // bytes of each packet, 0 for none
	}{
		{"all", ours(t, all), 200, 200},
		{"more than the packet has", ours(t, 201), 200, 200},
		{"its first bytes", ours(t, 96), 96, 96},
		{"one byte", ours(t, 1), 1, 1},
		{"nothing", ours(t, 0), 0, 0},
		{"what is sent", only(t, ctxPktType, unix.PACKET_OUTGOING, 50), 0, 50},
		{"what is received", only(t, ctxPktType, unix.PACKET_OTHERHOST, 70), 70, 0},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s := open(t, near, "veth0", Options{}, c.filter)
			frame := nettest.Ethernet("02:00:00:00:00:09", nettest.FarMAC, nettest.TypeLocal, make([]byte, 186))
			send(t, far, "veth0", frame)
			send(t, near, "veth0", frame)
			must(t, s.Stop())
			var in, out int
			for _, p := range flushed(t, s) {
				if p.Length != 200 {
					t.Errorf("a packet of %d bytes, want 200", p.Length)
				}
				if p.Outgoing {
					out += len(p.Data)
				} else {
					in += len(p.Data)
				}
			}
			if in != c.in || out != c.out {
				t.Errorf("%d bytes of the received packet and %d of the sent one, want %d and %d", in, out, c.in, c.out)
			}
		})
	}
}

// TestVlan has tags beside packets: on the way in the kernel takes them out (net/core/dev.c skb_vlan_untag), on the way
// out a program of tc puts them there.
func TestVlan(t *testing.T) {
	near, far := pair(t)
	type tag struct {
		TPID, TCI uint16
		Outgoing  bool
		Length    uint32
	}
	for _, c := range []struct {
		rule string
		tag  tag
	}{
		{"received, 802.1Q", tag{nettest.TypeVLAN, 0x6064, false, 60}},
		{"received, 802.1ad", tag{nettest.TypeQinQ, 0x0fff, false, 60}},
		{"received, VLAN 0", tag{nettest.TypeVLAN, 0, false, 60}},
		{"sent, 802.1Q", tag{nettest.TypeVLAN, 0x2123, true, 60}},
		{"sent, 802.1ad", tag{nettest.TypeQinQ, 5, true, 60}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s := open(t, near, "veth0", Options{}, ours(t, all))
			want := frame(7, 60)
			if c.tag.Outgoing {
				push(t, near, "veth0", c.tag.TPID, c.tag.TCI)
				send(t, near, "veth0", want)
			} else {
				send(t, far, "veth0", nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeLocal, want[14:],
					[2]uint16{c.tag.TPID, c.tag.TCI}))
			}
			p := next(t, s)
			if diff := cmp.Diff(want, p.Data); diff != "" || !p.Vlan {
				t.Errorf("with a tag is %v; bytes (-want +got):\n%s", p.Vlan, diff)
			}
			if diff := cmp.Diff(c.tag, tag{p.VlanProto, p.VlanTCI, p.Outgoing, p.Length}); diff != "" {
				t.Errorf("tag (-want +got):\n%s", diff)
			}
		})
	}
}

// push has a tag put beside every packet that leaves.
func push(t *testing.T, s nettest.Space, name string, tpid, tci uint16) {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R2, int32(swap(tpid))),
		asm.Mov.Imm(asm.R3, int32(tci)),
		asm.FnSkbVlanPush.Call(),
		asm.Mov.Imm(asm.R0, -1),
		asm.Return(),
	}})
	must(t, err)
	defer p.Close()
	err = s.Do(0, func() error {
		ifc, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifc.Index, Program: p, Attach: ebpf.AttachTCXEgress})
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip("needs TCX (6.6) to put tags beside packets")
	}
	must(t, err)
}

// TestLayer3 has an interface without a link-layer header.
func TestLayer3(t *testing.T) {
	need(t)
	near := nettest.NewSpace(t)
	tun := nettest.OpenTun(t, near, "tun0")
	near.Run(t, "ip", "addr", "add", "10.0.0.1/24", "dev", "tun0")
	s := open(t, near, "tun0", Options{}, only(t, ctxProtocol, int32(swap(nettest.TypeIPv4)), all))
	in := nettest.IPv4("10.0.0.2", "10.0.0.9", unix.IPPROTO_UDP, 0, nil, nettest.UDP(1, 2, []byte("received")))
	if _, err := tun.Write(in); err != nil {
		t.Fatal(err)
	}
	got := next(t, s)
	got.Time = 0
	if diff := cmp.Diff(Packet{Length: uint32(len(in)), Data: in}, got); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
	near.Must(t, func() error {
		c, err := net.Dial("udp", "10.0.0.2:9")
		if err == nil {
			_, err = c.Write([]byte("sent"))
			err = errors.Join(err, c.Close())
		}
		return err
	})
	got = next(t, s)
	if len(got.Data) != 32 || got.Data[0] != 0x45 || string(got.Data[28:]) != "sent" || !got.Outgoing {
		t.Errorf("sent: %v", got)
	}
}

func TestRefused(t *testing.T) {
	near, _ := pair(t)
	filter := ours(t, all)
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	must(t, err)
	defer other.Close()
	good := Options{Ifindex: 1, Name: "lo", Buffer: 1 << 20, Snaplen: 100, Retire: time.Millisecond}
	for _, c := range []struct {
		rule   string
		change func(*Options)
		filter *ebpf.Program
		want   error // nil: any
	}{
		{"an interface that is not there", func(o *Options) { o.Ifindex = 4242 }, filter, unix.ENODEV},
		{"all interfaces", func(o *Options) { o.Ifindex = 0 }, filter, nil},
		{"no snaplen", func(o *Options) { o.Snaplen = 0 }, filter, nil},
		{"too long a snaplen", func(o *Options) { o.Snaplen = maxSnaplen + 1 }, filter, nil},
		{"the time that the kernel chooses", func(o *Options) { o.Retire = 0 }, filter, nil},
		{"less than a millisecond", func(o *Options) { o.Retire = 1500 * time.Microsecond }, filter, nil},
		{"more memory than there is", func(o *Options) { o.Buffer = 1 << 40 }, filter, unix.ENOMEM},
		{"a program for tc", func(*Options) {}, other, unix.EINVAL},
		{"without CAP_NET_RAW", func(*Options) {}, filter, os.ErrPermission},
	} {
		t.Run(c.rule, func(t *testing.T) {
			o := good
			c.change(&o)
			near.Must(t, func() error {
				if errors.Is(c.want, os.ErrPermission) {
					if err := renounce(unix.CAP_NET_RAW); err != nil {
						return err
					}
				}
				before := descriptors(t)
				s, err := Open(o, c.filter)
				if err == nil {
					return errors.Join(errors.New("opened"), s.Close())
				}
				t.Log(err)
				if c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
				if after := descriptors(t); after != before {
					t.Errorf("%d descriptors, %d before", after, before)
				}
				return nil
			})
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(names)
}

// renounce takes a capability from the calling thread.
func renounce(capability uint) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return err
	}
	caps[capability/32].Effective &^= 1 << (capability % 32)
	return unix.Capset(&hdr, &caps[0])
}
