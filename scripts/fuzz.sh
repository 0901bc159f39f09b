#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# fuzz.sh TIME TAGS PACKAGE:TARGET... : each target for TIME, built with TAGS.
#
# Up to Go 1.26 the fuzzer now and then takes the end of TIME for a failure of the
# target and says "context deadline exceeded", with no input that fails: about once in
# 60 runs (golang/go#75804). Such a run says nothing of the target, so it is made again.
set -euo pipefail

time=$1
tags=$2
shift 2
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# A failure of a target prints its file and line, or the input it wrote, between these.
ended_late() {
    [[ $(sed -n '/^--- FAIL/,/^FAIL/p' "$log" | sed '1d;$d') == "    context deadline exceeded" ]]
}

for target in "$@"; do
    for ((run = 1; ; run++)); do
        if "${GO:-go}" test -tags "$tags" -run NONE -fuzz "^${target#*:}\$" -fuzztime "$time" -fuzzminimizetime 10x "${target%:*}" >"$log" 2>&1; then
            tail -n 3 "$log"
            break
        fi
        tail -n 40 "$log"
        if [[ $run -eq 3 ]] || ! ended_late; then
            exit 1
        fi
        echo "$target: the fuzzer's own failure (golang/go#75804): once more"
    done
done
