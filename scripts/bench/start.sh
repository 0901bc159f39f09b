#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# start.sh AGENT [ROUNDS] : time from exec to ready and peak memory of the agent and
# of tcpdump, in turns, on a veth in a namespace made here. Prints medians and the
# ratios to tcpdump of the same run. Needs root, ip, tcpdump.
set -euo pipefail

agent=${1:?agent} rounds=${2:-11}
ns=droidtap-start-$$ dir=$(mktemp -d)
cleanup() {
    ip netns del "$ns" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
ip netns add "$ns"
ip -n "$ns" link add cap0 type veth peer name cap1
ip -n "$ns" link set cap0 up
ip -n "$ns" link set cap1 up

# once READY CMD... : microseconds until CMD prints READY on stderr, and its peak KiB.
once() {
    local ready=$1 line start now pid kib
    shift
    mkfifo "$dir/stderr"
    start=${EPOCHREALTIME/./}
    ip netns exec "$ns" "$@" 2>"$dir/stderr" &
    pid=$!
    exec 3<"$dir/stderr"
    while read -r -u 3 line; do [[ $line == *"$ready"* ]] && break; done
    now=${EPOCHREALTIME/./}
    kib=$(awk '$1 == "VmHWM:" {print $2}' "/proc/$pid/status")
    kill -INT "$pid"
    cat <&3 >/dev/null
    exec 3<&-
    wait "$pid" || true
    rm "$dir/stderr"
    echo "$((now - start)) $kib"
}

for ((i = 0; i < rounds; i++)); do
    once "capturing on" "$agent" -i cap0 -B 4096 -w "$dir/a.pcapng" port 443 >>"$dir/agent"
    once "listening on" tcpdump -i cap0 -B 4096 -w "$dir/t.pcap" port 443 >>"$dir/tcpdump"
done

# median FILE COLUMN
median() { sort -n -k"$2","$2" "$1" | awk -v c="$2" '{v[NR] = $c} END {print v[int((NR + 1) / 2)]}'; }
printf '%-10s %14s %10s   (medians of %d, %s)\n' '' 'exec to ready' 'peak RSS' "$rounds" "'port 443', 4 MiB of buffer"
for tool in agent tcpdump; do
    printf '%-10s %11.1f ms %6.1f MiB\n' "$tool" "$(median "$dir/$tool" 1)e-3" "$(awk "BEGIN {print $(median "$dir/$tool" 2) / 1024}")"
done
awk -v a="$(median "$dir/agent" 1)" -v t="$(median "$dir/tcpdump" 1)" -v b="$(median "$dir/agent" 2)" -v u="$(median "$dir/tcpdump" 2)" \
    'BEGIN {printf "ratio      %14.2f %10.2f\n", a / t, b / u}'
