// SPDX-License-Identifier: Apache-2.0

// Package plugin is the registry that probes and outputs add themselves to.
//
// A plugin is a folder under agent/probe or agent/output, a C file under
// bpf/src if it has kernel code, and one agent/with_<name>.go that imports it
// unless the build tag no_<name> is set. Adding one edits no other file.
package plugin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/urfave/cli/v2"

	"droidtap/agent/kernel"
	"droidtap/agent/pcapng"
	"droidtap/agent/plan"
)

// The groups in which --help lists flags: their Category. A plugin may have its own.
const (
	GroupCapture  = "Capture"
	GroupApp      = "App filter"
	GroupOutput   = "Output"
	GroupInstead  = "Instead of a capture"
	GroupAdvanced = "Advanced"
)

// Probe describes one kind of event source. Its objects are
// bpf/obj/<Name>.<variant>.o.
type Probe struct {
	Name, Usage string
	// Flags are options. Their Required and Action do nothing here: New looks at the values.
	Flags []cli.Flag
	// Needs are what the kernel must offer. Where it does not, the probe is left out,
	// unless one of its flags was given: then it is an error.
	Needs []plan.Need
	// Optional: a capture goes on without the probe where it cannot run, even if its flags were given.
	Optional bool
	// Instead does what some flags ask for in place of a capture (-D, -d) and says
	// whether they did. It may be nil.
	Instead func(*cli.Context) (bool, error)
	// Commands are what the first word of the command line may be in place of an
	// expression; none may be a word of pcap-filter. They have Flags and an Action; what
	// else cli would do for a command (Before, After, Subcommands) is not done here.
	Commands []*cli.Command
	// Word is another spelling of a capture; nil: there is none.
	Word *Word
	// New makes the source for one capture from its flags, without touching
	// the kernel. It returns nil, nil when the flags did not ask for the probe.
	New func(*cli.Context) (Source, error)
}

// Word is what the first word of the command line, behind -v as for commands, may be: the options behind it are then those of
// another program besides the agent's own, and are made into the agent's. The expression behind them stays as it is. It is no word
// of pcap-filter.
type Word struct {
	Name, Usage string
	// Flags are the options of the other program. Where one has a name of the agent's, that name takes a value if this one does.
	// Only their names, and whether they take a value, count.
	Flags []cli.Flag
	// Before returns the words behind the first one as they are to be taken apart: what a flag cannot say is done there. It may be
	// nil, and leaves typed as it is.
	Before func(typed []string) []string
	// Rewrite returns options of the agent in place of those that were typed, in their order, and what is to be said about them
	// once, a line each. Its errors are usage errors.
	Rewrite func(typed []Option) (rewritten []Option, notes []string, err error)
}

// Option is an option as it is typed, without dashes, and its value if it takes one.
type Option struct {
	Name   string
	Valued bool
	Value  string
}

// Source is a probe configured for one capture. Its methods are called in the
// order in which they stand; Decode is called from one goroutine only.
type Source interface {
	Preparer
	// Attach starts the flow of events. What it returns detaches all that was attached, then or since, and ends what
	// the source does in the background. The programs of coll are the source's from then on, which takes those that
	// it wants to keep out of it; the maps stay.
	Attach(coll *ebpf.Collection, t Target) (io.Closer, error)
	// Decode makes a block of one record: of one that is a packet p, which it fills in, raw's bytes included. raw must not be
	// changed. Both are used again when p was written, and so is raw when the block is none or another. A nil block is
	// one that the source keeps to itself.
	Decode(raw []byte, p *pcapng.Packet) (pcapng.Block, error)
}

// Preparer makes programs ready for the kernel.
type Preparer interface {
	// Prepare adjusts the spec before it is loaded: settings, map sizes, programs
	// and filters. spec belongs to the plan's variant. It is called again with the
	// next Target.Attempt where the kernel refuses the programs.
	Prepare(spec *ebpf.CollectionSpec, t Target) error
}

// ErrSmallest is what Prepare returns when there is nothing smaller than what the
// kernel has refused.
var ErrSmallest = errors.New("no smaller program is possible")

// Refilterer is what a Source may also be: its filter can be replaced while it runs.
type Refilterer interface {
	// Refilter makes the change, without loading anything. An error in expr is a
	// usage error.
	Refilter(ctx context.Context, expr string) (Change, error)
}

// ErrOutdated is wrapped by the error of a Commit for what is not captured any more as it was when the change was made: make
// it anew.
var ErrOutdated = errors.New("what is captured has changed meanwhile")

// Change is a filter that is to take the place of one that runs. Its programs are
// prepared and loaded beside those that run, with their maps.
type Change interface {
	Preparer
	// Commit puts the programs in the place of those that run, and then tells the
	// reader of the file by emit. It takes those that it wants to keep out of coll. After an error, which may wrap
	// ErrOutdated, all is as it was. Decode is called meanwhile.
	Commit(coll *ebpf.Collection, emit func(pcapng.Block)) error
}

// Settler is what a Source may also be: what it has to tell of some blocks is known a little after they were decoded. The blocks of a
// ring are completed in their order, by one call after the other. Nothing is kept of a packet with which a call has done.
type Settler interface {
	// Known does what Settle does with the first of blocks, up to one about which somebody has to be asked (the kernel, /proc), and
	// returns how many these are. It waits for nothing, and is never called while others wait for Settle.
	Known(blocks []pcapng.Block) (done int)
	// Settle completes blocks in place, one after the other, and sets those to nil that are not to be written after all. It
	// returns how many it has done with. For the others it is called again some milliseconds later, and at the end or where too
	// many wait with last, upon which it has done with all.
	Settle(blocks []pcapng.Block, last bool) (done int)
}

// Follower is what a Source may also be: it learns from the packets of all sources, and what it emits belongs ahead of them. Its
// records are read within milliseconds.
type Follower interface {
	// Follow is called for each packet when it comes to the writer, on the writer's goroutine: it must not block, and keeps
	// nothing of p.
	Follow(p *pcapng.Packet, link pcapng.LinkType)
	// Lead is how long each packet waits from then on until it is written, behind all that was emitted meanwhile: the longest
	// of all sources that run counts. It is asked once, behind Attach. A packet waits for less where more than 16 MiB wait, at the
	// end of the capture, where someone asks for what was captured so far, and where an interface's index becomes another's; and
	// not at all for a pcap file, which has nothing but packets.
	Lead() time.Duration
}

// Holder is what a Source may also be: to take its places in the kernel takes long, and can be done while its programs are loaded.
type Holder interface {
	// Hold begins to take them, if the hook that is tried first has any, and does not wait for it. Close of what it returns is called
	// when Attach has taken over what it wants of them, or is not to be called.
	Hold(first plan.Hook) io.Closer
}

// Typer is what a Source may also be: one that uses the kernel's types where they hold, and does without where they do not.
type Typer interface{ WantsTypes() bool }

// Looker is what a Source may also be: it is told when records were found, before Decode is called for some hundreds of them at
// most.
type Looker interface{ Look() }

// Ender is what a Source may also be: it has something that Decode and Settle need to the end.
type Ender interface {
	// End closes it. It is called once if Attach succeeded: after what Attach returned was closed and all rings were drained,
	// and before the last Counts.
	End() error
}

// Counter is what a Source may also be: it reports what its programs counted
// in the kernel. It is called while the source runs, and at last after Close, before the
// collection is closed.
type Counter interface {
	Counts(coll *ebpf.Collection) (Counts, error)
}

// Counts are the totals of one source, in packets.
type Counts struct {
	Received     uint64              // matched the filter (and the owner, if one was asked for): one record each
	Refused      uint64              // of those received: left out behind the kernel, by the filter or their owner; a source counts them as received, a summary does not
	Dropped      uint64              // matched, but could not be handed to the agent
	Unattributed uint64              // matched, and nobody owns them or who does is not known: left out, or kept if that is wanted
	Interfaces   []pcapng.Statistics // one for each interface, Time left to the caller
	Instead      []string            // what was captured by another hook than the plan's first, and why
	Notes        []string            // what else there is to say at the end, a line each
	Gaps         []Gap               // in the order of Interfaces, of those that have any
}

// Add adds the totals of another source.
func (c *Counts) Add(other Counts) {
	c.Received += other.Received
	c.Refused += other.Refused
	c.Dropped += other.Dropped
	c.Unattributed += other.Unattributed
	c.Interfaces = append(c.Interfaces, other.Interfaces...)
	c.Instead = append(c.Instead, other.Instead...)
	c.Notes = append(c.Notes, other.Notes...)
	c.Gaps = append(c.Gaps, other.Gaps...)
}

// Gap is when nothing was captured of what was to be, in all.
type Gap struct {
	Name     string        // of the interface
	Times    int           // how often
	Missing  time.Duration // by the boot clock, from when it was noticed
	Switches int           // of another hook taking the place of one that saw nothing
}

// Stream is a ring and what makes blocks of its records.
type Stream struct {
	Ring
	// Decode is as in Source; it is called from one goroutine only, which is not
	// that of other streams.
	Decode func(raw []byte, p *pcapng.Packet) (pcapng.Block, error)
	// Settler may be nil.
	Settler Settler
}

// Ring is records on their way from the kernel.
type Ring interface {
	// Next returns the next record, in buf if it fits into its capacity. The error is
	// os.ErrDeadlineExceeded after the deadline, which may be over (then it does not wait) or the zero time (then it waits
	// without an end), and wraps ErrFlushed after Flush, each when nothing is left.
	Next(buf []byte, deadline time.Time) ([]byte, error)
	// Flush has Next return what is there and then ErrFlushed. It is called after the
	// source was closed, while another goroutine may be in Next.
	Flush() error
	Close() error
}

// ErrFlushed is wrapped by a Ring's error for its end.
var ErrFlushed = errors.New("flushed")

// Target is what a Source is given to work with.
type Target struct {
	Plan plan.Plan
	// Variant is the one that runs. A probe may have no object in it: then the collection is empty, and nothing is prepared.
	Variant plan.Variant
	Types   kernel.Types // for probes that need them
	Log     *slog.Logger
	Buffer  int  // bytes for records in the kernel
	Wakeup  int  // bytes of them that may wait before the reader is woken, a power of two
	Each    bool // packet is wanted at once
	// Attempt counts how often the kernel has refused the programs of this variant:
	// Prepare is to make them smaller each time.
	Attempt int
	// The following may be called from any goroutine until the source is closed.

	// Load loads more programs of the source's object, in the variant that runs and with
	// its maps. They are the caller's.
	Load func(Preparer) (map[string]*ebpf.Program, error)
	// Stream has a ring read that is not the events map of the source's object, until it is flushed and empty; then it is closed.
	Stream func(Stream)
	// Emit hands a block that is no record (an interface description, say) to
	// the writer, and does not wait for it. It is written ahead of the packets that wait for a Follower. The comment of statistics is repeated at the next packet of their interface that is not older: programs that
	// show captures show it there.
	Emit func(pcapng.Block)
	// Go has f called beside what else there is to do. The capture returns when it has ended.
	Go func(f func() error)
	// Fail ends the capture with err: the source has nothing left to watch.
	Fail func(err error)
}

// Output describes one kind of destination.
type Output struct {
	Name, Usage string
	Flags       []cli.Flag
	// Commands are as in Probe.
	Commands []*cli.Command
	New      func(*cli.Context) (Opener, error)
}

// Opener hands out the files that a capture is written to.
type Opener interface {
	// Next opens the first file, and the next one each time that a Rotator said so. label names what is captured, for file
	// names. The error wraps ErrNoRoom, or the system's ENOSPC or EDQUOT, where there may be room later.
	Next(label string) (File, error)
}

// Rotator is what an Opener may also be: it may want several files. A file without packets is always kept.
type Rotator interface {
	// Full is asked when the time of a file is over, and before each packet that may not fit. A file that is kept with so many bytes
	// and packets is kept with fewer.
	Full(Filling) Verdict
	// Lasts is asked at the first packet of a file, and tells how long the file lasts from then on, by the boot clock; 0: it
	// has no end.
	Lasts() time.Duration
}

// Filling is what is in the file that was opened last.
type Filling struct {
	Bytes   int64 // those that are not yet written included, before they are compressed
	Packets uint64
	Over    bool // its time is, which is that of Lasts
}

// Verdict is what is to become of a file.
type Verdict int

// The verdicts of a Rotator.
const (
	Keep Verdict = iota
	Next         // the next packet begins another file
	End          // the capture ends with this file
)

// Limiter is what an Opener may also be: its flags may limit the whole capture, in time and in packets; 0: no limit.
type Limiter interface {
	Limits() (time.Duration, uint64)
}

// Stdouter is what an Opener may also be: it tells whether standard output is
// what it opens, on which then nothing else may be written.
type Stdouter interface{ Stdout() bool }

// File is one destination. Name is its path, or "standard output". Write fails as Next does where there is no room. What
// has a Truncate(int64) error method began empty.
type File interface {
	io.WriteCloser
	Name() string
}

// Syncer is what a File may also be. Sync returns when what was written survives a power cut. It may be called from any
// goroutine, also after Close, and then returns os.ErrClosed.
type Syncer interface{ Sync() error }

// ErrNoRoom is wrapped by the error of a Write or Next that would leave less room than the user wants.
var ErrNoRoom = errors.New("no room")

// Mixer is what a Source may also be: its packets may come to have several link types, of which a pcap file has but one. It is
// asked before it is attached.
type Mixer interface{ Mixed() bool }

// Labeler is what a Source may also be: it names what it captures, in a word
// that fits a file name ("wlan0", "any").
type Labeler interface{ Label() string }

// UsageError is an error in what the user typed: one line, exit code 2.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

// Usagef makes a UsageError; %w works as in fmt.Errorf.
func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// IsUsage tells whether err is or wraps a UsageError.
func IsUsage(err error) bool {
	var u *UsageError
	return errors.As(err, &u)
}

var (
	probes  = map[string]Probe{}
	outputs = map[string]Output{}
)

// RegisterProbe is called from init functions only; a second probe of the same
// name is a mistake in the program, so it panics.
func RegisterProbe(p Probe) { register(probes, p.Name, p) }

// RegisterOutput is the same for outputs.
func RegisterOutput(o Output) { register(outputs, o.Name, o) }

func register[T any](to map[string]T, name string, v T) {
	if _, dup := to[name]; dup {
		panic("plugin: " + name + " is registered twice")
	}
	to[name] = v
}

// Probes returns the registered probes in the order of their names.
func Probes() []Probe {
	return slices.SortedFunc(maps.Values(probes), func(a, b Probe) int { return cmp.Compare(a.Name, b.Name) })
}

// Outputs returns the registered outputs in the order of their names.
func Outputs() []Output {
	return slices.SortedFunc(maps.Values(outputs), func(a, b Output) int { return cmp.Compare(a.Name, b.Name) })
}
