#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# initramfs.sh SUITE OUT: the phone's root file system for that kernel. OUT is
# three archives in a row, later ones win: userland, modules, the lab's own
# files. It is not compressed: under emulation that would cost more than it saves.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/cache.sh
. "$here/../cache.sh"
need go cpio

suite=$1 out=$2
userland=$("$here/userland.sh")
kernel=$("$here/kernel.sh" "$suite")

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/lab" "$tmp/system/bin"
(cd "$here" && CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build -trimpath -ldflags '-s -w' -o "$tmp/lab/phone" ./phone)
install -m 6755 "$tmp/lab/phone" "$tmp/system/bin/su"
install -m 755 "$here/guest/init" "$tmp/init"
install -m 755 "$here"/guest/{net,module} "$tmp/lab/"
install -m 755 "$here"/guest/{getprop,setprop,resetprop} "$tmp/system/bin/"

{
    cat "$userland/userland.cpio" "$kernel/modules.cpio"
    cd "$tmp"
    find . -mindepth 1 -print0 | cpio --null -o -H newc --owner 0:0 --quiet
} >"$out"
