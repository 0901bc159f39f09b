// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

const (
	diskMiB    = 128
	sectorSize = 512
	dataStart  = 1 << 20 / sectorSize // of /data's partition; see phone.sh, make_disk
	dataEnd    = dataStart + diskMiB*(1<<20/sectorSize)
)

// bootDisk is boot with /data on a disk with that filesystem, and with words for the kernel's command line.
func bootDisk(t *testing.T, suite, filesystem, words string) *phone {
	t.Helper()
	return boot(t, suite, "LAB_DISK="+strconv.Itoa(diskMiB), "LAB_FILESYSTEM="+filesystem, "LAB_APPEND="+words)
}

// do has phone.sh do something with the phone.
func (p *phone) do(t *testing.T, what string) {
	t.Helper()
	cmd := exec.Command("./phone.sh", "-d", p.dir, what)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// cut cuts the phone's power, and boots it again, with what a disk may have lost then.
func (p *phone) cut(t *testing.T, l loss, rng *rand.Rand) {
	t.Helper()
	p.do(t, "cut")
	log := p.readLog(t, thisBoot)
	image := filepath.Join(t.TempDir(), "cut")
	log.disk(t).cut(t, len(log.log), l, rng, image)
	execute(t, "dd", "if="+image, "of="+filepath.Join(p.dir, "disk"), "bs=1M", "seek=1", "conv=notrunc", "status=none")
	p.do(t, "boot")
}

// written is what a phone did to its disk: a write, or a flush of all writes before it.
type written struct {
	sector int64
	data   []byte
	flush  bool
}

// mark says how many datagrams were sent at a time (phone stream -marks).
type mark struct {
	at   int // its number among all that was written
	sent int
	time time.Time
}

// diskLog is all that a phone wrote to its disk since it booted.
type diskLog struct {
	before string // the disk's image before that
	log    []written
	marks  []mark
}

// The boots of which phone.sh keeps logs.
const (
	thisBoot = "disk"
	lastBoot = "last"
)

// readLog reads the log of the phone's disk, of a boot. The phone may still run, and must not boot while the log is in use.
func (p *phone) readLog(t *testing.T, boot string) *diskLog {
	t.Helper()
	d := &diskLog{before: filepath.Join(p.dir, boot+".before")}
	b, err := os.ReadFile(filepath.Join(p.dir, boot+".log"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.parse(b); err != nil {
		t.Fatal(err)
	}
	return d
}

// parse reads what QEMU's blklogwrites has written, in the format of Linux's dm-log-writes (drivers/md/dm-log-writes.c): a
// super block, then for each entry a sector with first sector, sectors and flags, and the sectors.
func (d *diskLog) parse(b []byte) error {
	const (
		magic     = 0x6a736677736872
		flagFlush = 1
		flags     = 2 | flagFlush // FUA, which virtio-blk has not, would be no error
	)
	le := binary.LittleEndian
	if len(b) < sectorSize || le.Uint64(b) != magic || le.Uint32(b[24:]) != sectorSize {
		return fmt.Errorf("no log of a disk: % x", b[:min(len(b), 28)])
	}
	for b = b[sectorSize:]; len(b) >= sectorSize; {
		sector, n, flag := int64(le.Uint64(b)), int64(le.Uint64(b[8:])), le.Uint64(b[16:])
		if sector == 0 && n == 0 && flag == 0 { // of an entry that was not written before the end
			break
		}
		if flag&^flags != 0 {
			return fmt.Errorf("an entry with flags %#x", flag)
		}
		b = b[sectorSize:]
		if int64(len(b)) < n*sectorSize {
			break
		}
		d.add(written{sector, b[:n*sectorSize], flag&flagFlush != 0})
		b = b[n*sectorSize:]
	}
	return nil
}

func (d *diskLog) add(w written) {
	const magic = "LAB mark"
	if w.sector >= dataEnd && len(w.data) >= 24 && string(w.data[:8]) == magic {
		d.marks = append(d.marks, mark{
			len(d.log), int(binary.BigEndian.Uint64(w.data[8:])), time.Unix(0, int64(binary.BigEndian.Uint64(w.data[16:]))),
		})
	}
	d.log = append(d.log, w)
}

// apply does the first sectors of a write to the image of /data.
func (w written) apply(f *os.File, sectors int) error {
	if w.sector < dataStart || w.sector >= dataEnd {
		return nil
	}
	_, err := f.WriteAt(w.data[:sectors*sectorSize], (w.sector-dataStart)*sectorSize)
	return err
}

// loss is what becomes of writes that were not flushed when the power goes.
type loss int

const (
	noLoss     loss = iota // all are on the disk
	allLost                // none is
	randomLoss             // some are, in any order, and the last of those in part
	losses
)

func (l loss) String() string {
	return [losses]string{"nothing is lost", "all since the last flush is lost", "some of that is lost"}[l]
}

// disk is an image of /data that grows older: what a log has up to its last flush is in it.
type disk struct {
	*diskLog
	file *os.File
	at   int // entries of the log in it
}

func (d *diskLog) disk(t *testing.T) *disk {
	t.Helper()
	name := filepath.Join(t.TempDir(), "flushed")
	execute(t, "dd", "if="+d.before, "of="+name, "bs=1M", "skip=1", "count="+strconv.Itoa(diskMiB), "conv=sparse", "status=none")
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &disk{d, f, 0}
}

// cut makes the image to, of /data where the power went when so many entries of the log were begun. at does not fall.
func (d *disk) cut(t *testing.T, at int, l loss, rng *rand.Rand, to string) {
	t.Helper()
	flushed := d.at
	for i := d.at; i < at; i++ {
		if d.log[i].flush {
			flushed = i
		}
	}
	for ; d.at < flushed; d.at++ {
		w := d.log[d.at]
		if err := w.apply(d.file, len(w.data)/sectorSize); err != nil {
			t.Fatal(err)
		}
	}
	execute(t, "cp", "--sparse=always", d.file.Name(), to)
	f, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := flushed; i < at && l != allLost; i++ {
		w := d.log[i]
		sectors := len(w.data) / sectorSize
		if l == randomLoss {
			if rng.IntN(2) == 0 {
				continue
			}
			if i == at-1 && sectors > 0 {
				sectors = rng.IntN(sectors)
			}
		}
		if err := w.apply(f, sectors); err != nil {
			t.Fatal(err)
		}
	}
}

// mend replays the journal of an image, as a boot would, and fails where that leaves anything to mend.
func mend(image string) error {
	// -p: what a journal and orphans are for; anything else makes it fail with 4.
	if out, err := exec.Command("e2fsck", "-fp", image).CombinedOutput(); err != nil {
		if code := err.(*exec.ExitError).ExitCode(); code != 1 { // mended
			return fmt.Errorf("e2fsck -p: %w\n%s", err, out)
		}
	}
	if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
		return fmt.Errorf("e2fsck -n after a repair: %w\n%s", err, out)
	}
	return nil
}

// dump copies a folder of an image, if it is there, and gives the copy in dir.
func dump(image, folder, dir string) (string, error) {
	if out, err := exec.Command("debugfs", "-R", "rdump "+folder+" "+dir, image).CombinedOutput(); err != nil {
		return "", fmt.Errorf("debugfs: %w\n%s", err, out)
	}
	return filepath.Join(dir, filepath.Base(folder)), nil
}

func execute(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}
