#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# peers.sh amd64|arm64: print a directory with TLS clients and servers and the
# libraries that they use, for tests. Nothing is installed.
#
#   openssl-1.1.1, openssl-3.0, openssl-3.5   openssl
#   gnutls-3.7                                gnutls-cli, gnutls-serv
#   ngtcp2-0.12                               gtlsclient, gtlsserver: HTTP/3 with GnuTLS
#   boringssl-13, boringssl-14                boring: see boring/boring.c
#   go                                        plain, stripped, pie: see gopeer
#   http3                                     http3: see http3
#
# A package's programs run with the libraries beside them, of their own suite,
# whatever the host's libc:
#
#   DIR/lib/ld.so --library-path DIR/lib DIR/openssl version
#
# Go's are static.
set -euo pipefail
# shellcheck source=scripts/debs.sh
. "$(dirname "$0")/../debs.sh"
here=$(cd "$(dirname "$0")" && pwd)

# libraries ROOT DEST: the shared libraries of an unpacked root, in one directory.
libraries() {
    local f
    mkdir -p "$2"
    for f in "$1"/{,usr/}lib/"$triplet"{,/android}/*.so.*; do
        [[ ! -f $f ]] || cp -L "$f" "$2/"
    done
    # Of bullseye's libc the file is a link to its version.
    cp -L "$2"/ld-linux-*.so.[0-9] "$2/ld.so"
}

# packaged DEST SUITE PACKAGES PROGRAM...: programs of packages, and the libraries of all that these depend on.
packaged() {
    local dest=$1 suite=$2 packages p
    IFS=, read -ra packages <<<"$3"
    shift 3
    mapfile -t all < <(debs_closure "$suite" "$arch" "${packages[@]}" | grep -vE "$drop")
    ((${#all[@]} > ${#packages[@]})) || die "$suite/$arch lacks one of: ${packages[*]}"
    debs_unpack "$suite" "$arch" "$dest.root" "${all[@]}"
    libraries "$dest.root" "$dest/lib"
    for p; do cp "$dest.root"/usr/{,s}bin/"$p" "$dest/" 2>/dev/null || [[ -e $dest/$p ]] || die "${packages[*]}: no $p"; done
    rm -rf "$dest.root"
}

# boringssl DEST SUITE: the client and server of ours, with Android's library of the suite.
boringssl() {
    local dest=$1 suite=$2
    mapfile -t all < <(debs_closure "$suite" "$arch" android-libboringssl)
    debs_unpack "$suite" "$arch" "$dest.root" "${all[@]}" android-libboringssl-dev
    libraries "$dest.root" "$dest/lib"
    # The library's own symbol versions may be of a libc that is newer than the linker's.
    "$cc" -O2 -Wall -Werror -I "$dest.root/usr/include/android" -o "$dest/boring" "$here/boring/boring.c" \
        "$dest"/lib/libssl.so.0 "$dest"/lib/libcrypto.so.0 -Wl,--allow-shlib-undefined
    rm -rf "$dest.root"
}

# golang DEST: the client and server in Go, in the ways in which programs are linked; and those that talk HTTP/3.
golang() {
    local dest=$1 go=${GO:-go}
    mkdir -p "$dest/go" "$dest/http3"
    export CGO_ENABLED=0 GOOS=linux GOARCH=$arch
    (
        cd "$here/gopeer"
        "$go" build -o "$dest/go/plain" .
        "$go" build -trimpath -ldflags '-s -w' -o "$dest/go/stripped" .
        "$go" build -trimpath -ldflags '-s -w' -buildmode pie -o "$dest/go/pie" .
        cd "$here/http3"
        "$go" build -trimpath -ldflags '-s -w' -o "$dest/http3/http3" .
    )
}

build() {
    local tmp=$1
    packaged "$tmp/openssl-1.1.1" bullseye openssl openssl
    packaged "$tmp/openssl-3.0" bookworm openssl openssl
    packaged "$tmp/openssl-3.5" trixie openssl openssl
    packaged "$tmp/gnutls-3.7" bookworm gnutls-bin gnutls-cli gnutls-serv
    packaged "$tmp/ngtcp2-0.12" bookworm ngtcp2-client,ngtcp2-server gtlsclient gtlsserver
    boringssl "$tmp/boringssl-13" bookworm
    boringssl "$tmp/boringssl-14" trixie
    golang "$tmp"
}

# What only maintainer scripts need.
drop='^(perl-base|debconf|dpkg|tar|passwd|adduser|ssl-cert|libpam.*|libaudit.*|libacl1|libselinux1|libsem.*|libsepol.*|libdb5.*|libpcre2.*|libbz2.*|liblzma5|.*-base)$'
arch=${1-}
case $arch in
amd64) triplet=x86_64-linux-gnu ;;
arm64) triplet=aarch64-linux-gnu ;;
*)
    say "usage: peers.sh amd64|arm64"
    exit 2
    ;;
esac
cc=$triplet-gcc
need "$cc" "${GO:-go}"
cached "tls/$arch-$(hash_of "$0" "$here"/{boring,gopeer,http3}/* <("${GO:-go}" version))" build
