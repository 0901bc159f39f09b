#!/system/bin/sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2034  # the scripts that source this use them
#
# Sourced by the other scripts, with MODDIR set: where things are, and what is
# asked of them. Plain POSIX, for BusyBox's ash; no applet that only some
# builds have (flock, inotifyd).

# All of it is root's: nothing is read from a directory that shell may write.
DIR=/data/adb/droidtap
CONFIG=$DIR/agent.args
ENABLED=$DIR/enabled
RUN=$DIR/run
LOG=$RUN/service.log
OWN=$RUN/service.pid
READY=$RUN/ready
SOCKET=$RUN/agent.sock

# say WORD...: a line for the service's log, which is two files of 64 KiB at most.
say() {
    size=$(wc -c 2>/dev/null <"$LOG") || size=0
    [ "${size:-0}" -lt 65536 ] || mv -f "$LOG" "$LOG.1"
    # Android's own sh, in which su runs action.sh, would take a backslash of echo's for more than one.
    printf '%s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "$*" >>"$LOG"
} 2>/dev/null

# ours -f|-d PATH: whether PATH is a file or a directory of root's, no link, that
# nobody else may write.
ours() {
    [ ! -L "$2" ] && test "$1" "$2" || return 1
    case $(stat -c %u:%a "$2") in
    0:*[2367] | 0:*[2367]?) return 1 ;;
    0:*) return 0 ;;
    *) return 1 ;;
    esac
}

# refusal: why the service may not run, in words; nothing if it may.
refusal() {
    if [ -e "$MODDIR/disable" ] || [ -e "$MODDIR/remove" ]; then
        echo "the module is disabled or will be removed"
    elif [ ! -e "$ENABLED" ]; then
        echo "it is off"
    elif [ "${MODDIR#/data/adb/}" = "$MODDIR" ] || ! ours -d "$MODDIR" || ! ours -f "$MODDIR/agent"; then
        echo "$MODDIR is not a directory in /data/adb that only root may write"
    elif ! ours -d "$DIR" || ! ours -d "$RUN"; then
        echo "$DIR or $RUN is not a directory that only root may write"
    elif ! ours -f "$CONFIG"; then
        echo "$CONFIG is not a file that belongs to root and that only root may write: chown 0:0 and chmod 600 it"
    elif [ ! -s "$CONFIG" ]; then
        # As a file is that was written shortly before the power went. Without flags everything would be captured.
        echo "$CONFIG is empty: write down what to capture, if only -i any"
    elif grep -Eq '^[[:space:]]*--?daemon([[:space:]=]|$)' "$CONFIG"; then
        # It would leave this shell at once, and who restarts it then?
        echo "$CONFIG has --daemon: leave it out, the service runs in the background anyway"
    fi
}

# identity PID: what tells this process from any other that ever has its number;
# nothing if there is none, or if it has ended and its parent has not looked yet.
identity() {
    fields=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The name, in parentheses, may have spaces; the start time is the 20th field behind it.
    # shellcheck disable=SC2086  # fields they are
    set -- "$1" ${fields##*) }
    [ "$2" = Z ] || echo "$1 ${21} $(cat /proc/sys/kernel/random/boot_id)"
}

# supervisor: the pid of the supervisor that runs, or nothing.
supervisor() {
    own=$(cat "$OWN" 2>/dev/null) || return 0
    pid=${own%% *}
    case $pid in '' | *[!0-9]*) return 0 ;; esac
    [ "$(identity "$pid")" != "$own" ] || echo "$pid"
}

# prepare: make the directories that are not there.
prepare() {
    [ -d "$DIR" ] || mkdir -m 700 "$DIR" || return 1
    [ -d "$RUN" ] || mkdir -m 700 "$RUN"
}

# start: begin a supervisor in a session of its own, which no closing terminal or
# app takes along. Its pid is in STARTED.
start() {
    prepare || return 1
    rm -f "$READY"
    setsid sh "$MODDIR/supervisor.sh" </dev/null >/dev/null 2>&1 &
    STARTED=$!
}

# stop: end the supervisor and the agent. Returns when they are gone: the agent
# has 30 seconds to write what it has.
stop() {
    pid=$(supervisor)
    if [ -n "$pid" ]; then
        kill "$pid"
        while [ -n "$(supervisor)" ]; do
            sleep 1
        done
    fi
    # An agent whose supervisor was killed.
    [ ! -S "$SOCKET" ] || "$MODDIR/agent" stop --socket "$SOCKET" >/dev/null 2>&1
    return 0
}

# after DELAY: the delay behind DELAY, in seconds.
after() {
    if [ "$1" -lt 150 ]; then
        echo $(($1 * 2))
    else
        echo 300
    fi
}
