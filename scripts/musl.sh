#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# musl.sh: print the C compiler for phones, which is Debian's with musl as its
# libc. Of glibc's static library a program takes 0.6 MB whatever it calls
# (messages, character sets, a loader), of musl's what it calls.
set -euo pipefail
# shellcheck source=scripts/debs.sh
. "$(dirname "$0")/debs.sh"

suite=bookworm

build() {
    local tmp=$1 root=${1%.part.*}/root specs
    need aarch64-linux-gnu-gcc
    # The kernel's headers are for any libc.
    debs_unpack "$suite" arm64 "$tmp/root" musl-dev linux-libc-dev
    mv "$tmp"/root/usr/include/{linux,asm-generic,aarch64-linux-gnu/asm} "$tmp/root/usr/include/aarch64-linux-musl/"
    rm -r "$tmp/root/usr/share"
    specs=usr/lib/aarch64-linux-musl/musl-gcc.specs
    # Debian's specs are for where the package would be installed.
    sed -i -E "s#/usr/(lib|include)/aarch64-linux-musl#$root&#g" "$tmp/root/$specs"
    mkdir "$tmp/bin"
    # Outlined atomics are functions of libgcc, and those want a name that only glibc has.
    cat >"$tmp/bin/cc" <<WRAPPER
#!/bin/sh
# Made by scripts/musl.sh.
exec aarch64-linux-gnu-gcc -specs='$root/$specs' -mno-outline-atomics "\$@"
WRAPPER
    chmod 755 "$tmp/bin/cc"
}

printf '%s/bin/cc\n' "$(cached "musl/$suite-arm64-$(hash_of "$0")" build)"
