#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# kernel.sh [SUITE]: print a directory with Debian's arm64 kernel of SUITE
# (default bookworm): vmlinuz, release, modules.cpio.
#
#   bullseye 5.10, bookworm 6.1, trixie 6.12, trixie-backports the newest
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/debs.sh
. "$here/../debs.sh"

# newest_image SUITE: the package name of its newest signed, generic image.
newest_image() {
    debs_ready "$1" arm64
    debs_apt "$1" arm64 apt-cache search --names-only '^linux-image-[0-9].*-arm64$' |
        awk '{print $1}' | grep -vE -- '-(rt|16k|cloud)-' | sort -V | tail -n1
}

# image_packages SUITE IMAGE: IMAGE and, since 6.19, where linux-image-* is an
# empty package, the ones that hold the kernel and its modules.
image_packages() {
    printf '%s\n' "$2"
    debs_apt "$1" arm64 apt-cache depends "$2" | awk '$1 == "Depends:" && $2 ~ /^linux-(binary|modules|image)-/ {print $2}'
}

# index DIR RELEASE: depmod; newer kernels come without some files it would like.
index() { depmod -b "$1" "$2" 2> >(grep -v '^depmod: WARNING: could not open modules\.' >&2); }

# modules DIR RELEASE OUT: a cpio archive of the modules in modules.list and
# those they depend on, decompressed, for busybox's modprobe.
modules() {
    local root=$1 release=$2 out=$3 tmp=$1/initrd name file to
    local dst=$tmp/lib/modules/$release
    mkdir -p "$dst"
    while read -r name; do
        # A module that this kernel lacks or has built in has no insmod line.
        modprobe -d "$root" -S "$release" --show-depends "$name" 2>/dev/null || true
    done < <(sed -n 's/^[+-]//p' "$here/modules.list") | awk '$1 == "insmod" {print $2}' | sort -u | while read -r file; do
        to=$dst/${file#*"/lib/modules/$release/"}
        mkdir -p "${to%/*}"
        case $file in
        *.xz) xz -dc "$file" >"${to%.xz}" ;;
        *.zst) zstd -qdc "$file" >"${to%.zst}" ;;
        *) cp "$file" "$to" ;;
        esac
    done
    cp "$root/lib/modules/$release"/modules.{order,builtin,builtin.modinfo} "$dst/" 2>/dev/null || true
    index "$tmp" "$release"
    sed -n 's/^+//p' "$here/modules.list" >"$dst/lab.load"
    # /lib is a symbolic link in the userland.
    mkdir "$tmp/usr"
    mv "$tmp/lib" "$tmp/usr/lib"
    (cd "$tmp" && find . -mindepth 1 -print0 | cpio --null -o -H newc --owner 0:0 --quiet) >"$out"
}

build() {
    local tmp=$1 suite=$2 image release
    need depmod modprobe cpio xz zstd
    image=$(newest_image "$suite")
    [[ -n $image ]] || die "no arm64 kernel in $suite"
    mapfile -t packages < <(image_packages "$suite" "$image")
    say "$suite: ${packages[*]}"
    debs_unpack "$suite" arm64 "$tmp/root" "${packages[@]}"
    if [[ ! -d $tmp/root/lib/modules ]]; then
        mkdir -p "$tmp/root/lib"
        mv "$tmp/root/usr/lib/modules" "$tmp/root/lib/modules"
    fi
    release=$(basename "$tmp"/root/lib/modules/*)
    printf '%s\n' "$release" >"$tmp/release"
    find "$tmp/root" -type f -name 'vmlinuz*' -exec cp {} "$tmp/vmlinuz" \;
    [[ -s $tmp/vmlinuz ]] || die "no kernel in ${packages[*]}"
    index "$tmp/root" "$release"
    modules "$tmp/root" "$release" "$tmp/modules.cpio"
    rm -r "$tmp/root"
}

suite=${1:-bookworm}
cached "kernel/$suite-$(hash_of "$0" "$here/modules.list")" build "$suite"
