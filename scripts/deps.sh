#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# deps.sh: install the Debian packages that "make test" and "make demo" need
# and this host lacks. Exits 3 with the list when it may not install them.
# Go is not among them: go.mod wants a newer one than Debian 12 and 13 have.
set -euo pipefail

packages=(
    gcc libc6-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross # the agent and its tests
    make flex bison                                           # libpcap
    binutils file git shellcheck                              # checks
    ca-certificates debian-archive-keyring                    # apt's private state in debs.sh
    qemu-system-arm cpio xz-utils zstd kmod                   # the emulated phone
    adb tshark tcpdump iproute2                               # talking to it, reading captures
    busybox-static                                            # the module's scripts
    e2fsprogs f2fs-tools                                      # the phone's disk
    netbase procps ethtool                                    # names for tcpdump to look up; sysctl; offloads
    curl                                                      # a TLS client with another library than the tests bring
)

missing=()
for p in "${packages[@]}"; do
    # shellcheck disable=SC2016  # the dollar is dpkg's
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)); then
    printf 'deps.sh: not root. Run: sudo apt-get install %s\n' "${missing[*]}" >&2
    exit 3
fi

printf 'deps.sh: installing %s\n' "${missing[*]}" >&2
# tshark asks whether users may capture: the packaged answer (no) is right, the
# scripts only read files with it.
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends "${missing[@]}" >&2
