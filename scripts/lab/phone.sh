#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# phone.sh [-d DIR] COMMAND: the emulated phone in the background.
#
#   up [SUITE]   boot it and wait until it is ready; prints its adb serial
#   adb ARG...   run adb against it, ended after LAB_ADB_TIMEOUT seconds (300)
#   env          print what makes adb talk to it: eval "$(phone.sh env)"
#   down         switch it off, forget it
#
# DIR holds the phone's state; phones with different ones live side by side.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cache.sh
. "$here/../cache.sh"

usage() {
    sed -n '4,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

# free_port 0|1: a port of 127.0.0.1 that nobody listens on now, an even one or an
# odd one. It comes of the process id: phones that start side by side would else
# draw the same one now and then.
free_port() {
    local port=$((20000 + ($$ * 2 + $1) % 12000))
    while [[ -n $(ss -Hltn "sport = :$port") ]]; do
        port=$((20000 + (port - 20000 + 1994) % 12000))
    done
    echo "$port"
}

# alive: is the qemu (or its timeout) of this state directory running?
alive() {
    [[ -s $dir/pid ]] && tr '\0' ' ' <"/proc/$(<"$dir/pid")/cmdline" 2>/dev/null | grep -qF "$dir/initrd"
}

up() {
    local suite=${1:-bookworm} kernel port
    need qemu-system-aarch64 adb ss
    if alive; then die "a phone is up in $dir already"; fi
    down
    mkdir -p "$dir/home"
    "$here/initramfs.sh" "$suite" "$dir/initrd"
    kernel=$("$here/kernel.sh" "$suite")
    port=$(free_port 0)
    echo "127.0.0.1:$port" >"$dir/serial"
    free_port 1 >"$dir/server"
    # In a session of its own: a Ctrl-C at the terminal is for the caller to handle.
    setsid "$here/boot.sh" "$kernel/vmlinuz" "$dir/initrd" "$port" >"$dir/console" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    trap down EXIT
    ready
    trap - EXIT
    cat "$dir/serial"
}

# ready: wait for the guest's own word on the console, then connect adb.
ready() {
    local line
    line=$(timeout "${LAB_BOOT_TIMEOUT:-180}" tail -n +1 -F --pid="$(<"$dir/pid")" "$dir/console" 2>/dev/null |
        grep -m1 -aE '^LAB (ready|failed)' || true)
    if [[ $line != "LAB ready"* ]]; then
        tail -n 30 "$dir/console" >&2
        die "the phone did not come up"
    fi
    say "${line//$'\r'/}"
    server_env
    # The server gets a home of its own for its key, and looks at nothing but
    # what it is told to connect to.
    HOME=$dir/home TMPDIR=$dir/home ADB_USB=0 ADB_MDNS=0 ADB_EMU=0 adb start-server >/dev/null 2>&1 </dev/null
    timeout 30 adb connect "$ANDROID_SERIAL" >&2
    timeout 30 adb wait-for-device
    [[ $(timeout 30 adb shell echo up) == up* ]] || die "adb shell does not answer"
}

server_env() {
    [[ -s $dir/serial ]] || die "no phone is up in $dir"
    ANDROID_ADB_SERVER_PORT=$(<"$dir/server")
    ANDROID_SERIAL=$(<"$dir/serial")
    export ANDROID_ADB_SERVER_PORT ANDROID_SERIAL
}

down() {
    [[ -d $dir ]] || return 0
    if [[ -s $dir/server ]]; then
        ANDROID_ADB_SERVER_PORT=$(<"$dir/server") timeout 10 adb kill-server >/dev/null 2>&1 || true
    fi
    if alive; then
        local pid
        pid=$(<"$dir/pid")
        kill "$pid"
        # timeout(1) follows with SIGKILL after five seconds.
        timeout 10 tail -f --pid="$pid" /dev/null || true
    fi
    rm -rf "$dir"
}

dir=$DROIDTAP_CACHE/phone
while getopts d: flag; do
    case $flag in
    d) dir=$OPTARG ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
dir=$(realpath -m "$dir")
cmd=${1-}
shift || usage
case $cmd in
up | down) "$cmd" "$@" ;;
env)
    server_env
    printf 'export ANDROID_ADB_SERVER_PORT=%s ANDROID_SERIAL=%s\n' "$ANDROID_ADB_SERVER_PORT" "$ANDROID_SERIAL"
    ;;
adb)
    server_env
    exec timeout --foreground -k 5 "${LAB_ADB_TIMEOUT:-300}" adb "$@"
    ;;
*) usage ;;
esac
