// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
	"droidtap/android"
)

// TestMain lets the test binary be an agent of its own: see startAgent.
func TestMain(m *testing.M) {
	if names := os.Getenv("HOOK_AGENT"); names != "" {
		if err := agent(strings.Fields(names)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// network is two namespaces joined by a veth pair; the test runs in the one of ifc.
type network struct {
	ifc      android.Interface
	here     netns.NsHandle
	there    netns.NsHandle
	out, in  int // packet sockets on ifc
	fout, fi int // packet sockets on the other end
}

// space makes a namespace named after the test, and leaves the thread in it.
func space(t *testing.T, suffix string) netns.NsHandle {
	t.Helper()
	name := "hook-" + strings.NewReplacer("/", "-", " ", "_", ",", "").Replace(t.Name()) + suffix
	ns, err := netns.NewNamed(name)
	if err != nil {
		t.Fatalf("make namespace %s: %v", name, err)
	}
	t.Cleanup(func() {
		if err := errors.Join(ns.Close(), netns.DeleteNamed(name)); err != nil {
			t.Errorf("remove namespace %s: %v", name, err)
		}
	})
	return ns
}

// newNetwork moves the test's goroutine into a namespace of its own. Its thread is never unlocked, so it ends with it.
func newNetwork(t *testing.T, name string) *network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces and bpf")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread()
	n := &network{there: space(t, "-far"), here: space(t, "")}
	n.ifc, n.out, n.in, n.fout, n.fi = n.pair(t, name)
	return n
}

// pair makes a veth pair to the far namespace and waits until packets pass both ways.
func (n *network) pair(t *testing.T, name string) (ifc android.Interface, out, in, fout, fin int) {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name, PeerNamespace: netlink.NsFd(n.there)}
	must(t, netlink.LinkAdd(veth))
	must(t, netlink.LinkSetUp(veth))
	ifc = android.Interface{Index: veth.Index, Name: name, Type: 1, Up: true}
	out, in = packetSocket(t, ifc.Index), packetSocket(t, ifc.Index)
	must(t, netns.Set(n.there))
	peer, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(peer))
	fout, fin = packetSocket(t, peer.Attrs().Index), packetSocket(t, peer.Attrs().Index)
	must(t, netns.Set(n.here))
	for _, way := range [][2]int{{out, fin}, {fout, in}} {
		err := errors.New("never tried")
		for range 50 {
			if err = exchange(way[0], way[1]); err == nil {
				break
			}
		}
		must(t, err)
	}
	return ifc, out, in, fout, fin
}

// packetSocket is bound to ETH_P_IP, not ETH_P_ALL: then the kernel delivers to it behind tc (net/core/dev.c
// __netif_receive_skb_core), and a packet read from it has passed every program at ingress.
func packetSocket(t *testing.T, ifindex int) int {
	t.Helper()
	proto := uint16(unix.ETH_P_IP<<8&0xff00 | unix.ETH_P_IP>>8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(proto))
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: ifindex}))
	must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200000}))
	return fd
}

// exchange sends one IPv4 packet and waits until the other end has it.
func exchange(from, to int) error {
	frame := make([]byte, 60)
	copy(frame, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0, 0x45})
	if _, err := unix.Write(from, frame); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if _, err := unix.Read(to, make([]byte, 100)); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}

// send passes packets over ifc in that direction.
func (n *network) send(t *testing.T, dir Direction, packets int) {
	t.Helper()
	from, to := n.fout, n.in
	if dir == Egress {
		from, to = n.out, n.fi
	}
	for range packets {
		must(t, exchange(from, to))
	}
}

// counter is a program that counts IPv4 packets.
type counter struct {
	prog *ebpf.Program
	m    *ebpf.Map
}

func newCounter() (*counter, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:    ebpf.SchedCLS,
		License: "Apache-2.0",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 16, asm.Word), // skb->protocol
			asm.HostTo(asm.BE, asm.R2, asm.Half),
			asm.JNE.Imm(asm.R2, unix.ETH_P_IP, "out"),
			asm.StoreImm(asm.RFP, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // TC_ACT_UNSPEC, TCX_NEXT
			asm.Return(),
		},
	})
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return &counter{prog, m}, nil
}

func (c *counter) close() { _ = errors.Join(c.prog.Close(), c.m.Close()) }

func count(t *testing.T) *counter {
	t.Helper()
	c, err := newCounter()
	must(t, err)
	t.Cleanup(c.close)
	return c
}

// took returns the packets counted since the last time it was called.
func (c *counter) took(t *testing.T) (packets uint64) {
	t.Helper()
	must(t, c.m.Lookup(uint32(0), &packets))
	must(t, c.m.Put(uint32(0), uint64(0)))
	return packets
}

// theirQdisc is the clsact that somebody else makes, with a library of their own.
func theirQdisc(ifc android.Interface) netlink.Qdisc {
	return &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifc.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}
}

// foreign adds a filter of somebody else's.
func (n *network) foreign(t *testing.T, ifc android.Interface, dir Direction, pref, proto uint16) *counter {
	t.Helper()
	c := count(t)
	must(t, netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs:  netlink.FilterAttrs{LinkIndex: ifc.Index, Parent: dir.parent(), Handle: 1, Priority: pref, Protocol: proto},
		Fd:           c.prog.FD(),
		Name:         "foreign",
		DirectAction: true,
	}))
	return c
}

func (n *network) foreignTCX(t *testing.T, dir Direction) *counter {
	t.Helper()
	c := count(t)
	l, err := link.AttachTCX(link.TCXOptions{Interface: n.ifc.Index, Program: c.prog, Attach: dir.attachType()})
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return c
}

// qdisc returns the kind of the qdisc at ffff:, or "".
func qdisc(t *testing.T, ifc android.Interface) string {
	t.Helper()
	there, err := qdiscs()
	must(t, err)
	return there[ifc.Index].kind
}

func attach(t *testing.T, kind plan.Hook, ifc android.Interface, dir Direction, c *counter) io.Closer {
	t.Helper()
	closer, err := Attach(kind, ifc, dir, c.prog)
	must(t, err)
	return closer
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// agent attaches by clsact to both directions of the interfaces, says so, and detaches when its stdin ends.
func agent(names []string) error {
	c, err := newCounter()
	if err != nil {
		return err
	}
	defer c.close()
	var closers []io.Closer
	for _, name := range names {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		for _, dir := range []Direction{Ingress, Egress} {
			closer, err := Attach(plan.TC, android.Interface{Index: l.Attrs().Index, Name: name}, dir, c.prog)
			if err != nil {
				return err
			}
			closers = append(closers, closer)
		}
	}
	fmt.Println("attached")
	_, _ = io.Copy(io.Discard, os.Stdin)
	for _, closer := range closers {
		err = errors.Join(err, closer.Close())
	}
	return err
}

// process is an agent in a process of its own, in the namespace of the test.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startAgent(t *testing.T, names ...string) process {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "HOOK_AGENT="+strings.Join(names, " "))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "attached\n" {
		t.Fatalf("agent says %q, %v", line, err)
	}
	return process{cmd, stdin}
}

// kill ends it by SIGKILL, stop lets it detach.
func (p process) kill(t *testing.T) {
	t.Helper()
	must(t, p.cmd.Process.Kill())
	_ = p.cmd.Wait()
}

func (p process) stop(t *testing.T) {
	t.Helper()
	must(t, p.stdin.Close())
	must(t, p.cmd.Wait())
}
