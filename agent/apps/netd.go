// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
)

// netdMaps are where netd's programs count what each uid sends and receives, since the phone was started: with the network
// module's own folder (Android 12 and later) and before it.
var netdMaps = []string{
	"/sys/fs/bpf/netd_shared/map_netd_app_uid_stats_map",
	"/sys/fs/bpf/map_netd_app_uid_stats_map",
}

// traffic is what went through the interfaces or sockets of a uid, in bytes.
type traffic struct{ sent, received uint64 }

// statsValue is netd's StatsValue (Connectivity, bpf/progs/netd.h).
type statsValue struct{ RxPackets, RxBytes, TxPackets, TxBytes uint64 }

// countedByNetd reads the first of the maps that is there. The error wraps fs.ErrNotExist where there is none.
func countedByNetd(paths []string) (map[uint32]traffic, error) {
	var m *ebpf.Map
	err := error(fs.ErrNotExist)
	for _, path := range paths {
		if m, err = ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true}); err == nil {
			defer m.Close()
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
	if err != nil {
		return nil, err
	}
	if m.KeySize() != 4 || m.ValueSize() != 32 {
		return nil, fmt.Errorf("netd's map of traffic has keys of %d and values of %d bytes, not 4 and 32", m.KeySize(), m.ValueSize())
	}
	// A walk through a map ends where the uid that it has come to is deleted meanwhile.
	const tries = 5
	for range tries {
		all := map[uint32]traffic{}
		var uid uint32
		var v statsValue
		entries := m.Iterate()
		for entries.Next(&uid, &v) {
			all[uid] = traffic{sent: v.TxBytes, received: v.RxBytes}
		}
		if err = entries.Err(); err == nil {
			return all, nil
		}
		if !errors.Is(err, ebpf.ErrIterationAborted) {
			break
		}
	}
	return nil, fmt.Errorf("read netd's map of traffic: %w", err)
}
