#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# idle.sh AGENT [SECONDS] : how often captures that capture nothing wake up (tenths of a
# second in which a thread of theirs ran; and context switches, of which one wake-up of the
# Go runtime takes several), what processor time they take, and what they write: bytes for a
# disk (write_bytes of proc_pid_io(5), which counts none for a tmpfs) and calls of write. The
# agent by each backend and object, one that begins another file each second of packets, and
# tcpdump, all at once on a veth in a namespace made here. First nothing passes, then some
# hundred packets a second that the filter does not match. What the filter costs is not in
# it: that is the sender's time. Needs root, ip, tcpdump.
set -euo pipefail

agent=${1:?agent} seconds=${2:-60}
ns=droidtap-idle-$$ dir=$(mktemp -d)
started=()
cleanup() {
    kill "${started[@]}" 2>/dev/null || true
    wait
    ip netns del "$ns" 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
ip netns add "$ns"
ip -n "$ns" link add cap0 type veth peer name cap1
for n in 0 1; do
    # No solicitations and reports of the kernel's own.
    ip netns exec "$ns" sysctl -qw "net.ipv6.conf.cap$n.disable_ipv6=1"
    ip -n "$ns" link set "cap$n" up
    ip -n "$ns" address add "10.98.$n.1/24" dev "cap$n"
    # Nobody's address: what is sent there is answered by nobody.
    ip -n "$ns" neighbour add "10.98.$n.9" lladdr 02:ff:00:00:00:ff dev "cap$n"
done

# %s: the name of a file of -G has the time.
rotated=''
! "$agent" --help | grep -q -e '^  -G' || rotated='-%s -G 1'
names=('tcx' 'tc' 'packet' 'tcx legacy' 'packet legacy' 'tcpdump')
commands=(
    "$agent --backend tcx" "$agent --backend tc" "$agent --backend packet"
    "$agent --backend tcx --object legacy" "$agent --backend packet --object legacy" tcpdump
)
if [[ -n $rotated ]]; then names+=('tcx, rotated') commands+=("$agent --backend tcx"); fi
pids=()
for i in "${!names[@]}"; do
    more=''
    [[ ${names[i]} != *rotated ]] || more=$rotated
    # shellcheck disable=SC2086  # words
    ip netns exec "$ns" ${commands[i]} -i cap0 -B 4096 -w "$dir/$i"$more port 443 2>"$dir/$i.err" &
    started+=($!) pids[i]=$!
    grep -q -e 'capturing on' -e 'listening on' < <(tail -n +1 -F --pid="${pids[i]}" "$dir/$i.err" 2>/dev/null) || pids[i]=''
done
sleep 3 # what belongs to the start

# counters PID : context switches, wished and suffered, and ns on a processor, of all its threads; bytes for a disk, writes.
counters() {
    cat /proc/"$1"/task/*/status | awk '/^(non)?voluntary_ctxt/ {v += $2} END {printf "%d ", v}'
    cat /proc/"$1"/task/*/schedstat | awk '{t += $1} END {printf "%d ", t}'
    awk '/^write_bytes/ {b = $2} /^syscw/ {n = $2} END {print b, n}' /proc/"$1"/io
}

# passed : packets that have passed cap0.
passed() { ip netns exec "$ns" sh -c 'cat /sys/class/net/cap0/statistics/[rt]x_packets' | awk '{n += $1} END {print n}'; }

# measure TEXT : a table of the time that follows.
measure() {
    local i before=() last=() awake=() v t w u b n c m packets ran start tenths=$((seconds * 10))
    packets=$(passed) start=${EPOCHREALTIME/./}
    for i in "${!names[@]}"; do
        [[ -z ${pids[i]} ]] || before[i]=$(counters "${pids[i]}")
        awake[i]=-1 # the first look compares with nothing
    done
    while ((tenths-- > 0)); do
        for i in "${!names[@]}"; do
            [[ -n ${pids[i]} ]] || continue
            ran=$(cat /proc/"${pids[i]}"/task/*/schedstat)
            [[ $ran == "${last[i]:-}" ]] || awake[i]=$((awake[i] + 1))
            last[i]=$ran
        done
        sleep 0.1
    done
    start=$((${EPOCHREALTIME/./} - start)) # microseconds that it took
    printf '%-28s %12s %12s %12s %12s %12s   (%d s, %d packets/s)\n' "$1" \
        'wake-ups/s' 'switches/s' 'CPU ms/min' 'disk bytes' 'writes' "$((start / 1000000))" "$((($(passed) - packets) * 1000000 / start))"
    for i in "${!names[@]}"; do
        if [[ -z ${pids[i]} ]]; then
            printf '  %-26s not on this kernel\n' "${names[i]}"
            continue
        fi
        read -r v t b n <<<"${before[i]}"
        read -r w u c m < <(counters "${pids[i]}")
        awk -v name="${names[i]}" -v a="${awake[i]}" -v v=$((w - v)) -v t=$((u - t)) -v s="$start" -v b=$((c - b)) -v n=$((m - n)) \
            'BEGIN {s /= 1e6; printf "  %-26s %12.2f %12.2f %12.2f %12d %12d\n", name, a / s, v / s, t / 1e6 * 60 / s, b, n}'
    done
}

# send N : 200 datagrams a second out of an interface.
send() {
    # shellcheck disable=SC2016
    exec ip netns exec "$ns" bash -c 'mkfifo "$2"; exec 3>"/dev/udp/10.98.$1.9/9" 4<>"$2"; while :; do printf x >&3; read -rt 0.005 -u 4 || :; done' \
        send "$1" "$dir/fifo$1"
}

measure 'nothing passes'
send 0 &
started+=($!)
send 1 &
started+=($!)
measure 'packets that do not match'
