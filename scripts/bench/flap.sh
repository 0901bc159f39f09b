#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# flap.sh AGENT [ARG...]: how soon it is back where somebody deleted clsact or the interface (scripts/lab/phone/flaps.go).
# In a network namespace of its own.
set -euo pipefail
agent=$(realpath "$1")
shift
cd "$(dirname "$0")/../.."

tmp=$(mktemp -d)
ns=droidtap-flap-$$
trap 'ip netns del "$ns" 2>/dev/null || true; rm -rf "$tmp"' EXIT
CGO_ENABLED=0 go build -o "$tmp/phone" ./scripts/lab/phone
ip netns add "$ns"
ip -n "$ns" link set lo up
ip netns exec "$ns" "$tmp/phone" flaps -agent "$agent" "$@"
