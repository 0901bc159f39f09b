// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/scripts/libpcaptest"
	"droidtap/scripts/nettest"
)

// txRing sends packets of which the kernel keeps only the link-layer header in the linear head, and the rest in
// fragments: that is what a packet socket's mapped ring makes of them (net/packet/af_packet.c tpacket_fill_skb).
type txRing struct {
	fd      int
	ring    []byte
	next    int // frame
	address unix.SockaddrLinklayer
}

const (
	txFrame   = 4096
	txFrames  = 256
	txHeader  = 32 // struct tpacket2_hdr, aligned; the packet follows it
	txBlock   = 1 << 16
	tpacketV2 = 1

	ourMark = 0x6474 // of the packets that count: the kernel sends some of its own
)

func newTxRing(ifindex int) (*txRing, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	r := &txRing{fd: fd, address: unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: ifindex}}
	req := unix.TpacketReq{Block_size: txBlock, Block_nr: txFrame * txFrames / txBlock, Frame_size: txFrame, Frame_nr: txFrames}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, tpacketV2),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, ourMark),
		unix.SetsockoptTpacketReq(fd, unix.SOL_PACKET, unix.PACKET_TX_RING, &req),
	)
	if err == nil {
		r.ring, err = unix.Mmap(fd, 0, txFrame*txFrames, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return r, nil
}

func (r *txRing) close() error { return errors.Join(unix.Munmap(r.ring), unix.Close(r.fd)) }

// send sends a packet.
func (r *txRing) send(packet []byte) error {
	frame := r.ring[r.next*txFrame:][:txFrame]
	r.next = (r.next + 1) % txFrames
	status := (*uint32)(unsafe.Pointer(&frame[0]))
	for atomic.LoadUint32(status) != unix.TP_STATUS_AVAILABLE {
		runtime.Gosched() // the kernel still has what was sent a round ago
	}
	copy(frame[txHeader:], packet)
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(packet)))
	atomic.StoreUint32(status, unix.TP_STATUS_SEND_REQUEST)
	return unix.Sendto(r.fd, nil, 0, &r.address)
}

// recorder is filters on the way out of an interface, which note their verdict on every packet. The first program is
// attached and counts the packets; each calls the next one, since the kernel takes its time to attach.
type recorder struct {
	linkType pcapng.LinkType
	packets  int
	count    *ebpf.Map // packets so far
	programs *ebpf.Map
	link     link.Link
	verdicts []*ebpf.Map // of each filter, by the number of the packet: see noted
}

// noted is what stands in verdicts for a packet that is rejected; one more says that it is accepted.
const noted = 1

// together is how many filters see a packet: a program calls 33 others at most.
const together = 32

func newRecorder(l pcapng.LinkType, ifindex, packets int) (*recorder, error) {
	r := &recorder{linkType: l, packets: packets}
	var err error
	if r.count, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
		return nil, err
	}
	if r.programs, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: together}); err != nil {
		return nil, err
	}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: slices.Concat(
		asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R2, asm.R1, ctxMark, asm.Word),
			asm.JNE.Imm(asm.R2, ourMark, "out"),
		},
		r.lookup(),
		asm.Instructions{
			asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(asm.R0, 0, asm.R1, asm.Word),
		},
		r.next(0))})
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	r.link, err = link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: prog, Attach: ebpf.AttachTCXEgress})
	return r, err
}

// lookup leaves the counter's address in R0.
func (r *recorder) lookup() asm.Instructions {
	return asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, r.count.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
	}
}

// next goes on with a filter, where there is one.
func (r *recorder) next(filter int) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, r.programs.FD()),
		asm.Mov.Imm(asm.R3, int32(filter)),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
		asm.Return(),
	}
}

// add adds a filter behind the others.
func (r *recorder) add(t *testing.T, f filter.Filter, form filter.Form) error {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: uint32(r.packets + 1)})
	if err != nil {
		return err
	}
	n := len(r.verdicts)
	r.verdicts = append(r.verdicts, m)
	p := ebpf.ProgramSpec{Name: "record", Type: ebpf.SchedCLS, License: "GPL", Instructions: slices.Concat(
		asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1).WithSymbol("record")},
		r.lookup(),
		asm.Instructions{
			asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
			asm.StoreMem(asm.RFP, -8, asm.R1, asm.Word),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Reg(asm.R2, asm.R6),
			asm.Mov.Reg(asm.R3, asm.R6),
			asm.LoadMem(asm.R4, asm.R6, ctxData, asm.Word),
			asm.LoadMem(asm.R5, asm.R6, ctxDataEnd, asm.Word),
			asm.Call.Label(stubOf[r.linkType]),
			asm.Add.Imm(asm.R0, noted),
			asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -4),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
		},
		r.next(n+1),
		stub(t, stubOf[r.linkType]))}
	if err := f.Inject(&p, filter.How{Form: form, Egress: true}); err != nil {
		return err
	}
	prog, err := ebpf.NewProgram(&p)
	if err != nil {
		return err
	}
	defer prog.Close()
	return r.programs.Update(uint32(n), prog, ebpf.UpdateAny)
}

// said returns what a filter noted of each packet.
func (r *recorder) said(filter int) ([]uint32, error) {
	keys, values := make([]uint32, r.packets+1), make([]uint32, r.packets+1)
	var cursor ebpf.MapBatchCursor
	n, err := r.verdicts[filter].BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) || n != len(values) {
		return nil, fmt.Errorf("read %d of %d verdicts: %w", n, len(values), err)
	}
	return values[1:], nil // the counter begins with 1
}

// close takes the filters off, and all else.
func (r *recorder) close() error {
	errs := []error{r.link.Close()}
	for _, m := range append(r.verdicts, r.count, r.programs) {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// TestNonLinear has every expression of the files and some generated ones over packets whose linear head is the
// link-layer header alone, or nothing where there is none: all that the direct form cannot read.
func TestNonLinear(t *testing.T) {
	nettest.Require(t)
	needRoot(t)
	for _, c := range []struct {
		rule     string
		linkType pcapng.LinkType
		file     string
		device   func(t *testing.T, s nettest.Space) string
	}{
		{"Ethernet", pcapng.Ethernet, "expressions.txt", func(t *testing.T, s nettest.Space) string {
			s.Run(t, "ip", "link", "add", "veth0", "mtu", "3000", "type", "veth", "peer", "name", "veth1", "mtu", "3000")
			s.Run(t, "ip", "link", "set", "veth1", "up")
			s.Run(t, "ip", "link", "set", "veth0", "up")
			return "veth0"
		}},
		{"without Ethernet header", pcapng.Raw, "expressions-l3.txt", func(t *testing.T, s nettest.Space) string {
			nettest.OpenTun(t, s, "tun0")
			s.Run(t, "ip", "link", "set", "tun0", "mtu", "3000")
			return "tun0"
		}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s := nettest.NewSpace(t)
			device := c.device(t, s)
			var packets []libpcaptest.Packet
			for _, p := range newWire(c.linkType).packets {
				if p.Tag == 0 && len(p.Bytes) >= minRun {
					packets = append(packets, p)
				}
			}
			all := expressions(t, c.file)
			g := generator{rand.New(rand.NewPCG(4, uint64(c.linkType))), c.linkType == pcapng.Ethernet}
			for range 100 {
				all = append(all, g.expression(3))
			}
			t.Logf("%d expressions over %d packets", len(all), len(packets))
			for chunk := range slices.Chunk(all, together/len(forms)) {
				s.Must(t, func() error { return nonLinear(t, c.linkType, device, chunk, packets) })
			}
		})
	}
}

func nonLinear(t *testing.T, l pcapng.LinkType, device string, exprs []string, packets []libpcaptest.Packet) (err error) {
	ifc, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	ring, err := newTxRing(ifc.Index)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ring.close()) }()
	r, err := newRecorder(l, ifc.Index, len(packets))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	type run struct {
		expr string
		form filter.Form
		f    filter.Filter
		want []bool
	}
	var runs []run
	for _, expr := range exprs {
		want, refused := libpcaptest.Verdicts(expr, l, 0, packets)
		if refused != nil {
			continue // TestGenerated holds the refusals together
		}
		f := compile(t, expr, l)
		for _, form := range forms {
			if err := r.add(t, f, form); err != nil {
				return fmt.Errorf("%q: %w", expr, err)
			}
			runs = append(runs, run{expr, form, f, want})
		}
	}
	for _, p := range packets {
		if err := ring.send(p.Bytes); err != nil {
			return fmt.Errorf("send %d bytes: %w", len(p.Bytes), err)
		}
	}
	var sent uint32
	if err := r.count.Lookup(uint32(0), &sent); err != nil || int(sent) != len(packets) {
		return fmt.Errorf("%d of %d packets came to the hook: %w", sent, len(packets), err)
	}
	for i, run := range runs {
		said, err := r.said(i)
		if err != nil {
			return err
		}
		for n, p := range packets {
			if said[n] < noted || said[n] > noted+1 {
				return fmt.Errorf("%q in form %v says %d of packet %d", run.expr, run.form, said[n], n)
			}
			got := said[n] == noted+1
			if got != run.want[n] && (!got || run.f.Exact(run.form)) {
				t.Errorf("%q in form %v, packet %d: accepted is %v, and libpcap says %v: %x", run.expr, run.form, n, got, run.want[n], p.Bytes)
				break
			}
		}
	}
	return nil
}
