# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154
#
# Sourced by lab/demo.sh and phone.sh: the same steps on an emulated and on a
# real phone. Both have made $tmp, and set $keep (where the capture goes) and
# $want (a display filter that some captured packet must pass).

# shellcheck source=scripts/cache.sh
. "${BASH_SOURCE[0]%/*}/../cache.sh"

# need_agent FILE: end unless it is the program for a phone.
need_agent() {
    [[ -x $1 && -f $1 ]] || die "$1 not found: build it first (make agent)"
    # The ELF header's e_machine: EM_AARCH64 is 183 (elf.h).
    [[ $(od -An -tx1 -N4 "$1")$(od -An -tx1 -j18 -N2 "$1") == " 7f 45 4c 46 b7 00" ]] ||
        die "$1 is no program for arm64: build it (make agent)"
}

step() { printf '\n== %s\n' "$*"; }

# show COMMAND...: print it as one would type it, then run it.
show() {
    local words='' w
    for w in "$@"; do
        case $w in
        *\'*) words+=" \"$w\"" ;;
        *[!A-Za-z0-9_./:=@,+-]*) words+=" '$w'" ;;
        *) words+=" $w" ;;
        esac
    done
    printf '$%s\n' "$words"
    "$@"
}

# cleanup [COMMAND...]: end what was started, remove $tmp, keep the exit status.
cleanup() {
    local status=$?
    trap - EXIT
    if [[ -n ${adb_pid-} ]]; then
        timeout 20 adb shell "su -c 'pkill -INT -x agent'" || true
        kill "$adb_pid" 2>/dev/null || true
    fi
    [[ $# -eq 0 ]] || "$@" || true
    rm -rf "$tmp"
    exit "$status"
}

# capture AGENT INTERFACE EXPRESSION [TRAFFIC...]: push, run, stop, pull, show.
# Without TRAFFIC the user makes some, and Ctrl-C ends the capture.
capture() {
    local agent=$1 iface=$2 expr=$3 phone=/data/local/tmp/agent path status=0 packets
    shift 3
    step "Put the agent on the phone"
    show adb push "$agent" "$phone"
    show adb shell chmod 755 "$phone"

    step "Capture \"$expr\" on $iface"
    # Not by show: it runs in the background and its output is followed here.
    echo "$ adb shell \"su -c '$phone -i $iface $expr'\""
    timeout "${LAB_ADB_TIMEOUT:-0}" adb shell "su -c '$phone -i $iface $expr'" >"$tmp/agent.log" 2>&1 </dev/null &
    adb_pid=$!
    # The file's path stands in the agent's first line, once it captures.
    path=$(timeout 30 tail -n +1 -F --pid="$adb_pid" "$tmp/agent.log" 2>/dev/null |
        sed -n '/^capturing on .* to /{s/\r$//;s/.* to //p;q}') || true
    if [[ -z $path ]]; then
        cat "$tmp/agent.log" >&2
        die "the agent did not start to capture"
    fi
    echo "capturing on $iface to $path"

    if (($#)); then
        step "Traffic on the phone"
        show "$@"
    else
        step "Use the phone. Ctrl-C ends the capture"
        wait "$adb_pid" || true
    fi

    step "End the capture as Ctrl-C would"
    show adb shell "su -c 'pkill -INT -x agent'" || true
    timeout 30 tail -f --pid="$adb_pid" /dev/null || die "the agent did not end"
    wait "$adb_pid" || status=$?
    adb_pid=
    tr -d '\r' <"$tmp/agent.log"
    ((status == 0)) || die "the agent ended with status $status"

    step "Look at the capture"
    show adb pull "$path" "$keep/"
    show tshark -r "$keep/${path##*/}" 2> >(grep -v '^Running as user' >&2)
    step "Whose the flows are"
    tshark -r "$keep/${path##*/}" -T fields -e frame.comment 2>/dev/null | grep . | sort | uniq -c || true
    packets=$(tshark -r "$keep/${path##*/}" -Y "$want" 2>/dev/null | wc -l)
    ((packets > 0)) || die "no packet of \"$expr\" was captured"
    printf '\n%d packets of "%s" captured on %s\n' "$packets" "$expr" "$iface"
}
