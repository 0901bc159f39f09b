// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is all that was measured. What was not asked for is missing.
type report struct {
	Machine  machine       `json:"machine"`
	Rounds   int           `json:"rounds"`
	Results  []result      `json:"loads"`
	Programs []programCost `json:"programs"`
	StartUps []startUp     `json:"start_and_end"`
	Idle     []idle        `json:"idle"`
	Curves   []curve       `json:"growth"`
	Binaries []built       `json:"binaries"`
	Targets  []target      `json:"targets"`
	Wrong    []string      `json:"wrong_counters"`
}

// machine is what it was measured on.
type machine struct {
	Date        string   `json:"date"`
	Kernel      string   `json:"kernel"`
	CPU         string   `json:"cpu"`
	CPUs        int      `json:"cpus"`
	LoadAverage string   `json:"load_average"`
	Tools       []string `json:"tools"`
}

// built is one of the agent's, as built.
type built struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// result is what a tool did with a load in all rounds. ns are for a packet that was offered.
type result struct {
	Load string `json:"load"`
	Tool string `json:"tool"`
	Kind kind   `json:"kind"`
	// InFile is of those that match, in percent.
	InFile      spread `json:"in_file_percent"`
	Lost        int64  `json:"lost"`      // in all rounds
	SaidLost    uint64 `json:"said_lost"` // by the tool itself
	Kernel      spread `json:"kernel_ns"`
	Reader      spread `json:"reader_ns"`
	Total       spread `json:"total_ns"`
	ReaderRatio spread `json:"reader_ratio"` // to the load's first tool, in the same round
	TotalRatio  spread `json:"total_ratio"`
	Wakeups     spread `json:"wakeups"`
	Peak        spread `json:"peak_mib"`
	Bytes       spread `json:"file_bytes"`
	// Bare is what the sender needs without a capture.
	Bare   spread    `json:"bare_ns"`
	Rounds []capture `json:"rounds"`
}

// summarize puts the rounds of a load's tools together.
func summarize(l load, rounds map[string][]capture) (results []result) {
	base := rounds[l.key(l.Tools[0])]
	for _, t := range l.Tools {
		all := rounds[l.key(t)]
		of := func(f func(capture) float64) spread { return spreadOf(column(all, f)) }
		against := func(f func(capture) float64) spread { return spreadOf(ratios(column(all, f), column(base, f))) }
		reader := func(c capture) float64 { return c.Reader }
		r := result{
			Load: l.Name, Tool: t.String(), Kind: t.Kind, Rounds: all,
			InFile:      of(capture.part),
			Kernel:      of(func(c capture) float64 { return c.Kernel }),
			Reader:      of(reader),
			Total:       of(capture.total),
			ReaderRatio: against(reader),
			TotalRatio:  against(capture.total),
			Wakeups:     of(func(c capture) float64 { return float64(c.Wakeups) }),
			Peak:        of(func(c capture) float64 { return float64(c.Peak) / 1024 }),
			Bytes:       of(func(c capture) float64 { return float64(c.Bytes) }),
			Bare:        of(func(c capture) float64 { return c.Sender - c.Kernel }),
		}
		for _, c := range all {
			r.Lost += c.lost()
			r.SaidLost += c.Said.Dropped
		}
		results = append(results, r)
	}
	return results
}

func column(all []capture, f func(capture) float64) (values []float64) {
	for _, c := range all {
		values = append(values, f(c))
	}
	return values
}

// find returns the first result of that load and kind of tool.
func (r report) find(load string, k kind) (result, bool) {
	for _, x := range r.Results {
		if x.Load == load && x.Kind == k {
			return x, true
		}
	}
	return result{}, false
}

// describe reads what the machine says of itself; what it does not say is "".
func describe() machine {
	m := machine{Date: time.Now().UTC().Format("2006-01-02 15:04 UTC"), CPUs: runtime.NumCPU()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.LoadAverage = strings.Join(strings.Fields(string(text))[:3], " ")
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); m.CPU == "" && lines.Scan(); {
			if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
			}
		}
	}
	for _, t := range []kind{tcpdump, dumpcap} {
		// tcpdump has 1 as the exit code of --version in some versions.
		out, _ := exec.Command(string(t), "--version").CombinedOutput()
		first, _, _ := strings.Cut(string(out), "\n")
		m.Tools = append(m.Tools, first)
	}
	return m
}

// sizes are those of the binaries that are there.
func sizes(paths ...string) (all []built) {
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			all = append(all, built{path, info.Size()})
		}
	}
	return all
}
