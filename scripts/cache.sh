# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced by the other scripts: messages, and a build cache outside the tree.
set -euo pipefail
# Without this a failing command inside $(...) would not end the script.
shopt -s inherit_errexit

DROIDTAP_CACHE=${DROIDTAP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/droidtap}
mkdir -p "$DROIDTAP_CACHE"
DROIDTAP_CACHE=$(cd "$DROIDTAP_CACHE" && pwd)

# Messages go to stderr: stdout carries a script's result (a path).
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}

# need COMMAND...: end with what to do when a host tool is missing.
need() {
    local c
    for c in "$@"; do
        command -v "$c" >/dev/null || die "$c not found: run scripts/deps.sh as root"
    done
}

# hash_of FILE...: a short key that changes with the files' content.
hash_of() { cat "$@" | sha256sum | cut -c1-12; }

# cached NAME FUNC [ARG...]: print $DROIDTAP_CACHE/NAME, after "FUNC DIR
# ARG..." has filled it if it is not there. The directory appears by one
# rename, so an interrupted build leaves nothing; the lock makes a second
# process wait for the first instead of building the same thing.
cached() {
    local dir=$DROIDTAP_CACHE/$1 make=$2
    shift 2
    if [[ ! -d $dir ]]; then
        (
            mkdir -p "$(dirname "$dir")"
            exec 9>"$dir.lock"
            flock 9
            [[ ! -d $dir ]] || exit 0
            part=$(mktemp -d "$dir.part.XXXXXX")
            trap 'rm -rf "$part"' EXIT
            chmod 755 "$part"
            "$make" "$part" "$@" >&2 9>&-
            mv -T "$part" "$dir"
        )
    fi
    printf '%s\n' "$dir"
}
