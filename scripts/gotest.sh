#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# gotest.sh ARGS... : go test, in brief. With CI=true a test that skips fails the
# run: what the tests need is there, so a skip is a hole. Elsewhere (an older kernel
# without TCX, say) it is said aloud.
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
# Again at the end, where whoever sees no more than the end of CI's output finds it:
# what each failed test said last.
if [[ $failed -ne 0 ]]; then
    echo "failed:"
    awk '/^=== (RUN|NAME|CONT)|^[[:space:]]*--- (PASS|SKIP)|^ok/ { n = 0; next }
         /^[[:space:]]*--- FAIL/ { print; for (i = n > 6 ? n - 6 : 0; i < n; i++) print "    " said[i]; n = 0; next }
         { said[n++] = $0 }' "$log"
fi
if [[ $skipped -ne 0 ]]; then
    echo "skipped:" >&2
    grep -E -A1 '^[[:space:]]*--- SKIP' "$log" >&2
    if [[ ${CI:-} == true ]]; then
        echo "in CI a skipped test is a failed one" >&2
        exit 1
    fi
fi
exit "$status"
