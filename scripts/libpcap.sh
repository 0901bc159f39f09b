#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# libpcap.sh host|arm64: print the prefix (include/, lib/) of a static libpcap
# that compiles filters and does nothing else. Debian's own libpcap.a needs
# D-Bus and systemd, of which the latter has no static library.
set -euo pipefail
# shellcheck source=scripts/debs.sh
. "$(dirname "$0")/debs.sh"

version=1.10.3
sha256=2a8885c403516cf7b0933ed4b14d6caa30e02052489ebd414dc75ac52e7559e6

build() {
    local tmp=$1 cc=$2
    shift 2
    need "$cc" make flex bison
    debs_source "pool/main/libp/libpcap/libpcap_$version.orig.tar.gz" "$sha256" "$tmp/orig.tar.gz"
    tar -xzf "$tmp/orig.tar.gz" -C "$tmp"
    say "building libpcap $version with $cc"
    (
        cd "$tmp/libpcap-$version"
        # --with-pcap=null: no capture code at all, the agent has its own.
        # Sections let the linker drop what the agent does not call. Nothing unwinds C's stack.
        CC=$cc CFLAGS="-O2 -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables" ./configure -q "$@" \
            --with-pcap=null --without-libnl --disable-dbus --disable-rdma --disable-bluetooth --disable-usb \
            --disable-remote --disable-netmap --without-dag --without-snf --without-septel --without-turbocap \
            --without-dpdk --disable-shared
        make -s -j"$(nproc)" libpcap.a
        mkdir -p "$tmp/include" "$tmp/lib"
        # The inner headers: the one way to compile as a live capture does without one. See
        # agent/filter/compile_cgo.go.
        cp -r pcap.h pcap-bpf.h pcap-namedb.h pcap pcap-int.h varattrs.h fmtutils.h portability.h "$tmp/include/"
        cp libpcap.a "$tmp/lib/"
    )
    rm -r "$tmp/libpcap-$version" "$tmp/orig.tar.gz"
}

key=$(hash_of "$0" "${0%/*}/musl.sh")
case ${1-} in
host) cached "libpcap/host-$(uname -m)-$key" build gcc ;;
arm64) cached "libpcap/arm64-$key" build "$("${0%/*}/musl.sh")" --host=aarch64-linux-gnu ;;
*)
    say "usage: libpcap.sh host|arm64"
    exit 2
    ;;
esac
