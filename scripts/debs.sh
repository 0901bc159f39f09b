# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Sourced: Debian packages of any suite and architecture, unpacked and never
# installed. Each suite and architecture has an apt state of its own in the
# cache, so neither the host's apt nor its dpkg is touched and root is not
# needed. The mirror is the one the host's apt uses.

# shellcheck source=scripts/cache.sh
. "${BASH_SOURCE[0]%/*}/cache.sh"

# debs_mirror: the URI of Debian's main archive, ending in a slash.
debs_mirror() {
    local uri
    # Labels are known only after an "apt-get update"; without one (a fresh
    # container) take the first archive that is not the security one.
    # shellcheck disable=SC2016  # the dollars are apt's
    uri=$({ apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' 'Label: Debian'
            apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | grep -v security
          } | sed -n 1p) || true
    # Debian's cloud images name a file with a list of mirrors.
    if [[ $uri == mirror+file:* ]]; then
        local list=${uri#mirror+file:}
        uri=$(sed -n '/^[a-z]/{s/[[:space:]].*//;p;q}' "${list%/}")
    fi
    [[ -n $uri ]] || die "apt on this host has no source for Debian's main archive"
    printf '%s/\n' "${uri%/}"
}

# debs_apt SUITE ARCH TOOL ARG...: apt-get or apt-cache on the private state.
debs_apt() {
    local dir=$DROIDTAP_CACHE/apt/$1-$2 arch=$2 tool=$3
    shift 3
    "$tool" -o Dir::Cache="$dir/cache" -o Dir::State="$dir/state" -o Dir::State::status="$dir/status" \
        -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o APT::Architecture="$arch" -o APT::Architectures="$arch" \
        -o APT::Sandbox::User=root -o APT::Get::AllowUnauthenticated=false "$@"
}

# debs_update SUITE ARCH: fetch the package lists.
debs_update() {
    local dir=$DROIDTAP_CACHE/apt/$1-$2 key=/usr/share/keyrings/debian-archive-keyring.gpg
    [[ -r $key ]] || die "$key not found: install debian-archive-keyring"
    mkdir -p "$dir"/cache/archives/partial "$dir"/state/lists/partial
    : >"$dir/status"
    printf 'deb [signed-by=%s] %s %s main\n' "$key" "$(debs_mirror)" "$1" >"$dir/sources.list"
    debs_apt "$1" "$2" apt-get -qq -o APT::Update::Error-Mode=any update || die "cannot fetch the package lists of $1/$2"
    touch "$dir/ready"
}

# debs_ready SUITE ARCH: make sure that there are package lists.
debs_ready() {
    mkdir -p "$DROIDTAP_CACHE/apt"
    (
        exec 8>"$DROIDTAP_CACHE/apt/$1-$2.lock"
        flock 8
        [[ -e $DROIDTAP_CACHE/apt/$1-$2/ready ]] || debs_update "$1" "$2"
    )
}

# debs_closure SUITE ARCH PKG...: the packages and all they depend on, one a
# line, against an empty dpkg status (nothing counts as installed).
debs_closure() {
    local suite=$1 arch=$2
    shift 2
    debs_ready "$suite" "$arch"
    debs_apt "$suite" "$arch" apt-get -s -o Debug::NoLocking=1 --no-install-recommends install "$@" | awk '/^Inst/ {print $2}'
}

# debs_fetch SUITE ARCH PKG...: download the current versions, check them
# against the signed lists, print the files.
debs_fetch() {
    local suite=$1 arch=$2 uri file size sum uris dir=$DROIDTAP_CACHE/debs/$1-$2
    shift 2
    debs_ready "$suite" "$arch"
    mkdir -p "$dir"
    (
        exec 8>"$DROIDTAP_CACHE/apt/$suite-$arch.lock"
        flock 8
        cd "$dir"
        # Lists from an earlier point release name files that are gone by now.
        debs_apt "$suite" "$arch" apt-get -qq download "$@" >&2 || {
            debs_update "$suite" "$arch"
            debs_apt "$suite" "$arch" apt-get -qq download "$@" >&2 || die "cannot download from $suite/$arch: $*"
        }
        # apt leaves out what is already in the current directory.
        uris=$(cd / && debs_apt "$suite" "$arch" apt-get -qq --print-uris download "$@")
        [[ $(wc -l <<<"$uris") -eq $# ]] || die "$suite/$arch lacks one of: $*"
        # shellcheck disable=SC2034  # uri and size are there to be skipped
        while read -r uri file size sum; do
            [[ $sum == SHA256:* ]] || die "no SHA256 for $file in the package lists"
            sha256sum --quiet -c <<<"${sum#SHA256:}  $file" >&2 || die "checksum of $dir/$file is wrong: remove it and try again"
            printf '%s\n' "$dir/$file"
        done <<<"$uris"
    )
}

# debs_unpack SUITE ARCH DEST PKG...: unpack exactly these packages into DEST.
debs_unpack() {
    local suite=$1 arch=$2 dest=$3 files file
    shift 3
    files=$(debs_fetch "$suite" "$arch" "$@")
    mkdir -p "$dest"
    while read -r file; do
        dpkg-deb -x "$file" "$dest"
    done <<<"$files"
}

# debs_source POOL_PATH SHA256 DEST: one file of the archive's pool.
debs_source() {
    local uri
    uri=$(debs_mirror)$1
    say "fetching ${1##*/}"
    /usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root download-file "$uri" "$3" "SHA256:$2" >&2 ||
        die "cannot fetch ${1##*/} from the mirror, or its SHA256 is not $2"
}
