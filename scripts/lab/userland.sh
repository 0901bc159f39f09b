#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# userland.sh: print a directory with userland.cpio, a small Debian root laid
# out like Android: mksh, adbd, /system/bin, /data/local/tmp. Packages are
# unpacked and never configured, so none of their scripts runs.
set -euo pipefail
# shellcheck source=scripts/debs.sh
. "$(dirname "$0")/../debs.sh"

# All of one suite: trixie is the first stable one with adbd.
suite=trixie
packages=(busybox-static toybox mksh util-linux adbd iw iproute2 tcpdump)
# What only maintainer scripts and logins need.
drop='^(perl.*|libperl.*|debconf|dpkg|tar|passwd|adduser|usrmerge|init-system-helpers|libpam.*|libaudit.*|libsemanage.*|libsepol.*|libdb5.*|libgdbm.*|.*-base|libcap2-bin|sysvinit.*)$'
# Programs that a script for a phone expects and the packages did not bring.
applets=(awk basename cat chmod chown cmp cp cut date dd df dirname dmesg du env expr false find free grep gzip head
    hexdump hostname id ifconfig insmod kill killall ln ls lsmod md5sum mkdir mknod mktemp modprobe mount mv nc nohup
    nproc od pidof poweroff printf ps readlink realpath reboot rm rmdir rmmod route sed seq
    setsid sha256sum sleep sort stat sync tail tar tee test time timeout top touch tr true umount uname uniq uptime vi
    wc which xargs)
# Android's own; Debian's busybox has none of them or wants root.
toys=(pgrep ping ping6 pkill)

build() {
    local tmp=$1 root=$1/root d a
    need cpio
    mapfile -t all < <(debs_closure "$suite" arm64 "${packages[@]}" | grep -vE "$drop")
    ((${#all[@]} > ${#packages[@]})) || die "no packages for the userland in $suite"
    say "userland of $suite: ${#all[@]} packages"
    # /usr merged first, so that /lib/ld-linux-* is found whatever a package ships.
    mkdir -p "$root"/usr/{bin,sbin,lib}
    for d in bin sbin lib; do ln -s "usr/$d" "$root/$d"; done
    debs_unpack "$suite" arm64 "$root" "${all[@]}"
    rm -rf "$root"/usr/share/{doc,man,locale,info,lintian,bash-completion,bug,perl5,gcc} "$root"/usr/lib/*/{gconv,perl*}
    mkdir -p "$root"/{proc,sys,dev,run,tmp,root,lab,sdcard,etc,system/bin,data/local/tmp,data/misc/adb,data/adb/modules}
    for a in "${applets[@]}"; do
        [[ -e $root/usr/bin/$a || -e $root/usr/sbin/$a ]] || ln -s busybox "$root/usr/bin/$a"
    done
    for a in "${toys[@]}"; do ln -s toybox "$root/usr/bin/$a"; done
    # Android's shell is mksh. Debian's busybox sh would also run its own ip,
    # tc and su in place of the real ones.
    ln -sf mksh "$root/usr/bin/sh"
    for a in sh cat ls ps id tc ip ping pkill; do
        ln -s "$(cd "$root" && readlink -e "usr/bin/$a" "usr/sbin/$a" | sed -n "1s|^$root||p")" "$root/system/bin/$a"
    done
    printf '%s:x:%d:%d::%s:/system/bin/sh\n' root 0 0 /data shell 2000 2000 /data/local/tmp \
        u0_a123 10123 10123 /data u0_a124 10124 10124 /data >"$root/etc/passwd"
    printf '%s:x:%d:\n' root 0 shell 2000 u0_a123 10123 u0_a124 10124 >"$root/etc/group"
    # "." stays out: its mode in the archive would become that of /.
    (cd "$root" && find . -mindepth 1 -print0 | cpio --null -o -H newc --owner 0:0 --quiet) >"$tmp/userland.cpio"
    rm -r "$root"
}

cached "userland/$suite-$(hash_of "$0")" build
