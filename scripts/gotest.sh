#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# gotest.sh ARGS... : go test, which fails if a test skips: on a machine that runs
# our tests everything that they need is there, so a skip is a hole.
set -euo pipefail

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
"${GO:-go}" test -count=1 -v "$@" >"$log" 2>&1 || status=$?

# What passed in silence is summed up; failures and skips are shown whole.
if [[ $status -ne 0 ]]; then
    cat "$log"
else
    grep -E '^(ok|FAIL|\?)[[:space:]]' "$log" || true
fi
passed=$(grep -cE '^[[:space:]]*--- PASS' "$log" || true)
failed=$(grep -cE '^[[:space:]]*--- FAIL' "$log" || true)
skipped=$(grep -cE '^[[:space:]]*--- SKIP' "$log" || true)
echo "$passed passed, $failed failed, $skipped skipped"
if [[ $skipped -ne 0 ]]; then
    echo "skipped tests count as failed:" >&2
    grep -E -A2 '^[[:space:]]*--- SKIP' "$log" >&2
    exit 1
fi
exit "$status"
