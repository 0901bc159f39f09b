#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check-static.sh BINARY : fails unless the phone's binary is a static, stripped
# arm64 executable of at most 8 MB: a phone has no loader and no libraries for it.
# Nor has it templates, which keep all that is exported, 1 MB: cli.App.Run would bring
# them back unseen (agent/args.go).
set -euo pipefail

binary=${1:?binary}
most=8000000
bad() {
    echo "$binary: $*" >&2
    exit 1
}

readelf -h "$binary" | grep -q 'Machine:.*AArch64' || bad "not for arm64"
readelf -lW "$binary" | grep -q INTERP && bad "has an interpreter"
readelf -dW "$binary" | grep -q 'no dynamic section' || bad "has a dynamic section"
readelf -SW "$binary" | grep -qE '\.(symtab|debug_info)' && bad "is not stripped"
! grep -qF 'text/template.(*Template).' "$binary" || bad "has text/template"
size=$(stat -c %s "$binary")
((size <= most)) || bad "$size bytes, more than $most"
echo "$binary: static, stripped, $size bytes"
