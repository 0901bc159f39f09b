#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# clang.sh: print the prefix of the compiler for bpf/. It is Debian 12's, with
# its headers, whatever the host's release: the committed objects must come out
# the same byte for byte everywhere.
#
#   PREFIX/bin/{clang,llvm-strip,llvm-objdump,clang-format}
#   PREFIX/include    <linux/bpf.h>, <asm/types.h>, <bpf/bpf_helpers.h>: -isystem
set -euo pipefail
# shellcheck source=scripts/debs.sh
. "$(dirname "$0")/debs.sh"

version=14.0.6
suite=bookworm
arch=$(dpkg --print-architecture)

# What the tools load, without libc6: it has to match the host's ld.so, and the
# libc of Debian 12 or later serves.
libs=(libllvm14 libclang-cpp14 libclang-common-14-dev libedit2 libbsd0 libmd0 libz3-4 libxml2 libicu72 libtinfo6
    libffi8 zlib1g liblzma5 libstdc++6 libgcc-s1)

# wrap PREFIX TOOL: a script that gives the library path to this tool only.
wrap() {
    cat >"$1/bin/$2" <<'WRAPPER'
#!/bin/sh
# Made by scripts/clang.sh.
root=$(dirname "$(dirname "$(readlink -f "$0")")")/root
for lib in "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu "$root"/usr/lib/llvm-14/lib; do
    LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$lib
done
export LD_LIBRARY_PATH
exec "$root/usr/lib/llvm-14/bin/${0##*/}" "$@"
WRAPPER
    chmod 755 "$1/bin/$2"
}

build() {
    local tmp=$1 tool
    debs_unpack "$suite" "$arch" "$tmp/root" clang-14 llvm-14 clang-format-14 "${libs[@]}"
    # <asm/...> is that of the phones: struct user_pt_regs differs by CPU.
    debs_unpack "$suite" arm64 "$tmp/headers" linux-libc-dev libbpf-dev
    mkdir "$tmp/bin" "$tmp/include"
    cp -r "$tmp"/headers/usr/include/{linux,asm-generic,bpf} "$tmp/headers/usr/include/aarch64-linux-gnu/asm" "$tmp/include/"
    rm -r "$tmp/headers" "$tmp/root/usr/share/doc"
    for tool in clang llvm-strip llvm-objdump clang-format; do
        wrap "$tmp" "$tool"
        "$tmp/bin/$tool" --version >/dev/null || die "$tool of $suite does not run on this host"
    done
    "$tmp/bin/clang" --version | grep -q "version $version\$\|version $version " ||
        die "wanted clang $version, $suite has: $("$tmp/bin/clang" --version | sed -n 1p)"
}

cached "clang/$suite-$arch-$(hash_of "$0")" build
