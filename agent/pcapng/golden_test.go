// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata/*.txt from what tshark and capinfos say")

// TestGolden compares what Wireshark's own tools read in a fixed file with testdata, made by version 4.0.17.
func TestGolden(t *testing.T) {
	tests := []struct {
		name string
		argv string // FILE stands for the capture
	}{
		{
			"packets", "tshark -r FILE -T fields -E header=y -E separator=| -e frame.number -e frame.time_epoch" +
				" -e frame.interface_id -e frame.interface_name -e frame.interface_description -e frame.encap_type" +
				" -e frame.cap_len -e frame.len -e frame.packet_flags_direction -e frame.comment -e frame.protocols",
		},
		{"capinfos", "capinfos -tEIFkcdluaeo FILE"},
		// Read as a MIME file, a pcapng file is one frame whose dissection shows every block and option.
		{"blocks", "tshark -r FILE -X read_format:MIME\u00a0Files\u00a0Format -O file-pcapng -V"},
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "sample.pcapng")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w, err := write(f, sample())
	if err != nil || w.Packets() != 7 {
		t.Fatalf("%d packets, %v", w.Packets(), err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := run(t, dir, strings.ReplaceAll(tt.argv, "FILE", file))
			got = strings.ReplaceAll(got, file, "sample.pcapng")
			checkGolden(t, tt.name, got)
		})
	}
}

// checkGolden compares a text with testdata/NAME.txt.
func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", golden, diff)
	}
}

// run returns the standard output of a command whose words are separated by spaces and hold no-break spaces instead.
// Anything on its standard error fails the test, but for what the tools always say.
func run(t *testing.T, home, argv string) string {
	t.Helper()
	words := strings.Fields(strings.ReplaceAll(argv, "\u00a0", "\x01"))
	for i := range words {
		words[i] = strings.ReplaceAll(words[i], "\x01", " ")
	}
	if _, err := exec.LookPath(words[0]); err != nil {
		t.Skipf("%s is not installed (Debian packages tshark and tcpdump)", words[0])
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "LC_ALL=C.UTF-8", "TZ=UTC"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	complaints := ""
	always := []string{`Running as user "root"`, "reading from file ", "Warning: interface names might be incorrect"}
	for line := range strings.Lines(stderr.String()) {
		if !slices.ContainsFunc(always, func(start string) bool { return strings.HasPrefix(line, start) }) {
			complaints += line
		}
	}
	if err != nil || complaints != "" {
		t.Fatalf("%s: %v\n%s", argv, err, complaints)
	}
	return stdout.String()
}
