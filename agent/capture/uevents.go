// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/perf"
)

// compare finds processors that came online without an uevent: some phones' drivers call cpu_up and not device_online
// (drivers/soc/samsung/exynos-cpu_hotplug.c). One that is off for less than seldom may not be found.
func (p *perfEvents) compare() {
	now := time.Now()
	if now.Sub(p.compared) < seldom {
		return
	}
	p.compared = now
	list, err := p.online()
	if err != nil {
		p.log.Debug("list the processors that are online", "error", err)
		return
	}
	for cpu := range p.off {
		switch on := perf.Listed(string(list), cpu); {
		case !on:
			p.off[cpu] = true
		case p.off[cpu]:
			p.reequip(cpu)
		}
	}
}

// hear takes the uevents that are there.
func (p *perfEvents) hear() {
	for {
		n, err := unix.Read(p.uevents, p.message)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ENOBUFS):
			p.slept.Store(true) // some were lost: of any processor
		case err != nil:
			p.log.Warn("packets may be dropped", "because", fmt.Errorf("read uevents: %w", err))
			_ = unix.Close(p.uevents) // it would end each wait
			p.uevents = -1
			return
		default:
			if cpu, ok := perf.CameOnline(p.message[:n]); ok && cpu < int(p.array.MaxEntries()) {
				p.reequip(cpu)
			}
		}
	}
}
