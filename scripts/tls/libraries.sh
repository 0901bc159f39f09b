#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# libraries.sh: print a directory with the TLS libraries of Debian's releases,
# SUITE-ARCH/NAME.so each. Packages are unpacked and never installed.
set -euo pipefail
# shellcheck source=scripts/debs.sh
. "$(dirname "$0")/../debs.sh"

# SUITE PACKAGE...: what is new in each. android-libboringssl is BoringSSL of
# Android 13 in bookworm and of Android 14 in trixie.
suites=(
    "bullseye libssl1.1"
    "bookworm android-libboringssl libssl3 libgnutls30 libnss3"
    "trixie android-libboringssl libssl3t64 libgnutls30t64 libnss3"
)

build() {
    local dir=$1 suite arch packages tmp f
    for suite in "${suites[@]}"; do
        read -r suite packages <<<"$suite"
        for arch in amd64 arm64; do
            tmp=$dir/unpacked
            # shellcheck disable=SC2086  # a list
            debs_unpack "$suite" "$arch" "$tmp" $packages
            mkdir "$dir/$suite-$arch"
            for f in "$tmp"/usr/lib/*/{android/libssl.so.0,libssl.so.*,libgnutls.so.*.*.*,libssl3.so}; do
                [[ -f $f && ! -L $f ]] || continue
                case $f in
                */android/*) mv "$f" "$dir/$suite-$arch/boringssl.so" ;;
                */libssl3.so) mv "$f" "$dir/$suite-$arch/nss.so" ;;
                */libssl.so.*) mv "$f" "$dir/$suite-$arch/openssl.so" ;;
                *) mv "$f" "$dir/$suite-$arch/gnutls.so" ;;
                esac
            done
            rm -r "$tmp"
        done
    done
}

cached "tls/libraries-$(hash_of "$0")" build
