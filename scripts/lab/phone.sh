#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# phone.sh [-d DIR] COMMAND: the emulated phone in the background.
#
#   up [SUITE]   boot it and wait until it is ready; prints its adb serial. With
#                LAB_DISK=MIB, /data is on a disk that outlives a boot, with ext4 or
#                LAB_FILESYSTEM=f2fs
#   reboot       end it as Android does, processes by SIGKILL, and boot it again
#   cut          cut its power in the middle of whatever it does
#   boot         boot it again
#   adb ARG...   run adb against it, ended after LAB_ADB_TIMEOUT seconds (300)
#   env          print what makes adb talk to it: eval "$(phone.sh env)"
#   down         switch it off, forget it
#
# DIR holds the phone's state; phones with different ones live side by side. A boot
# with a disk copies it to DIR/disk.before and logs all that is written to it in
# DIR/disk.log; of the boot before there are DIR/last.before and DIR/last.log.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cache.sh
. "$here/../cache.sh"

usage() {
    sed -n '4,18s/^# \{0,1\}//p' "$0" >&2
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
    local suite=${1:-bookworm}
    need qemu-system-aarch64 adb ss
    if alive; then die "a phone is up in $dir already"; fi
    down
    mkdir -p "$dir/home"
    "$here/initramfs.sh" "$suite" "$dir/initrd"
    ln -s "$("$here/kernel.sh" "$suite")/vmlinuz" "$dir/vmlinuz"
    echo "${LAB_APPEND-}" >"$dir/append"
    echo "127.0.0.1:$(free_port 0)" >"$dir/serial"
    free_port 1 >"$dir/server"
    [[ -z ${LAB_DISK-} ]] || make_disk "$LAB_DISK" "${LAB_FILESYSTEM:-ext4}"
    trap down EXIT
    start
    trap - EXIT
    cat "$dir/serial"
}

# make_disk MIB FILESYSTEM: two partitions, /data without anything in it and 1 MiB
# for marks of a test.
make_disk() {
    local mib=$1 fs=$2 disk=$dir/disk
    need "mkfs.$fs"
    truncate -s "${mib}M" "$dir/data"
    case $fs in
    ext4) mkfs.ext4 -q -b 4096 -m 0 "$dir/data" ;;
    *) "mkfs.$fs" -q "$dir/data" >/dev/null ;;
    esac
    echo "$fs" >"$dir/filesystem"
    truncate -s "$((mib + 2))M" "$disk"
    dd if="$dir/data" of="$disk" bs=1M seek=1 conv=notrunc,sparse status=none
    rm "$dir/data"
    # An entry: not bootable, no CHS, type 0x83, first sector, sectors; little-endian.
    printf '%b' "$(entry 2048 $((mib * 2048)))$(entry $(((mib + 1) * 2048)) 2048)" |
        dd of="$disk" bs=1 seek=446 conv=notrunc status=none
    printf '\x55\xaa' | dd of="$disk" bs=1 seek=510 conv=notrunc status=none
}

entry() { printf '\\0\\0\\0\\0\\x83\\0\\0\\0%s%s' "$(le32 "$1")" "$(le32 "$2")"; }
le32() { printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24)); }

# start: boot it with what is in its directory, and wait until it is ready.
start() {
    local append disk=()
    append=$(<"$dir/append")
    if [[ -e $dir/disk ]]; then
        disk=("$(<"$dir/filesystem")" "$dir/disk" "$dir/disk.log")
        if [[ -e $dir/disk.log ]]; then
            mv "$dir/disk.log" "$dir/last.log"
            mv "$dir/disk.before" "$dir/last.before"
        fi
        cp --sparse=always "$dir/disk" "$dir/disk.before"
        : >"$dir/disk.log"
    fi
    : >"$dir/console" # or ready would find what the boot before said
    # In a session of its own: a Ctrl-C at the terminal is for the caller to handle.
    LAB_APPEND=$append setsid "$here/boot.sh" "$dir/vmlinuz" "$dir/initrd" "$(sed 's/.*://' "$dir/serial")" "${disk[@]}" \
        >>"$dir/console" 2>&1 </dev/null &
    echo $! >"$dir/pid"
    ready
}

# boot: start a phone that has ended, or is about to.
boot() {
    server_env
    timeout 60 tail -f --pid="$(<"$dir/pid")" /dev/null || die "the phone in $dir does not end"
    timeout 30 adb disconnect "$ANDROID_SERIAL" >/dev/null || true
    start
}

reboot() {
    server_env
    alive || die "no phone is up in $dir"
    # The phone ends before the command does.
    timeout 60 adb shell "su -c '/lab/phone reboot'" >/dev/null 2>&1 </dev/null || true
    boot
}

cut() {
    alive || die "no phone is up in $dir"
    # The process is timeout(1), its child the phone.
    pkill -KILL -P "$(<"$dir/pid")" || die "the phone has ended by itself"
    timeout 60 tail -f --pid="$(<"$dir/pid")" /dev/null || die "the phone does not end"
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
up | reboot | cut | boot | down) "$cmd" "$@" ;;
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
