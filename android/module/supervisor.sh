#!/system/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Started by service.sh and action.sh in the background: waits until the phone
# has booted, then keeps the agent running until it ends by itself (exit code 0:
# "agent stop", or a limit such as --duration), cannot begin (2: a wrong flag),
# or the module is turned off. Ends the agent when it is ended (SIGTERM).
case $0 in
*/*) MODDIR=${0%/*} ;;
*) MODDIR=. ;;
esac
MODDIR=$(cd "$MODDIR" && pwd -P) || exit 1
# shellcheck source=android/module/common.sh
. "$MODDIR/common.sh"

cd / || exit 1
umask 022 # KernelSU's scripts begin with another one than Magisk's

stopping=
child=
# on_term: what is waited for ends, now or as soon as its pid is known. Only once: by
# a second signal the agent gives up what it has not written yet.
on_term() {
    [ -z "$stopping" ] || return 0
    stopping=1
    [ -z "$child" ] || kill "$child"
}
trap on_term TERM

# await: wait for the child that was started last; its exit code is in STATUS.
await() {
    child=$!
    [ -z "$stopping" ] || kill "$child"
    wait "$child"
    STATUS=$?
    # SIGTERM ends the wait before the child, which has half a minute from then on.
    grace=30
    while [ -n "$(identity "$child")" ]; do
        [ "$grace" -gt 0 ] || kill -9 "$child"
        grace=$((grace - 1))
        sleep 1
    done
    child=
} 2>/dev/null

# leave_cgroups: out of the cgroup of whoever started this. An app's is killed with
# the app, and KernelSU's su leaves a shell in it. 0 is who writes it.
leave_cgroups() {
    while read -r _ where type _; do
        case $type in
        cgroup | cgroup2) echo 0 >"$where/cgroup.procs" ;;
        esac
    done </proc/mounts
} 2>/dev/null

# claim: become the one supervisor; fails where there is one. A link appears with
# its content, or not at all.
claim() {
    # Not under one name: of two that begin at once each would link what the other wrote.
    identity $$ >"$OWN.$$"
    # What a killed one, or the last boot, has left is no supervisor.
    [ -n "$(supervisor)" ] || rm -f "$OWN"
    ln "$OWN.$$" "$OWN"
    claimed=$?
    rm -f "$OWN.$$"
    return "$claimed"
} 2>/dev/null

# seconds: since boot, sleep included; no clock that can be set.
seconds() {
    read -r up _ </proc/uptime
    echo "${up%%.*}"
}

# booted: wait until Android says that it has booted. Where resetprop is there and
# can wait, without looking again and again.
booted() {
    [ "$(getprop sys.boot_completed)" = 1 ] && return
    resetprop -w sys.boot_completed 0 >/dev/null 2>&1 &
    await
    until [ -n "$stopping" ] || [ "$(getprop sys.boot_completed)" = 1 ]; do
        sleep 1 &
        await
    done
}

# run: one run of the agent; its exit code is in STATUS. What it says goes to its own log;
# on stderr is only what it says before it has one, and how it crashed.
run() {
    rm -f "$READY"
    "$MODDIR/agent" --config "$CONFIG" --pid-file "$RUN/agent.pid" --socket "$SOCKET" \
        --log "$RUN/agent.log" --ready-file "$READY" </dev/null >/dev/null 2>"$RUN/agent.err" &
    await
    rm -f "$READY"
    [ ! -s "$RUN/agent.err" ] || tail -c 2048 "$RUN/agent.err" | while read -r line; do
        say "agent: $line"
    done
}

# supervise: run the agent, again and again, until it is wanted no more.
supervise() {
    delay=1
    while :; do
        if [ -n "$stopping" ]; then
            say "ends: it was told to"
            return
        fi
        why=$(refusal)
        if [ -n "$why" ]; then
            say "ends: $why"
            return
        fi
        begun=$(seconds)
        run
        [ -z "$stopping" ] || continue
        case $STATUS in
        0)
            say "ends: the agent has ended as it was asked to"
            return
            ;;
        2)
            say "ends: the agent does not understand $CONFIG"
            return
            ;;
        esac
        [ $(($(seconds) - begun)) -lt 600 ] || delay=1
        say "the agent has ended with exit code $STATUS: it is started again in $delay s"
        sleep "$delay" &
        await
        delay=$(after "$delay")
    done
}

leave_cgroups
claim || exit 0
say "begins"
booted
supervise
rm -f "$OWN"
