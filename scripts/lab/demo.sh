#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh AGENT: the agent's main job on the emulated phone, step by step, with
# the commands one would type for a real one. AGENT is the arm64 binary.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lab/lib.sh
. "$here/lib.sh"

agent=${1:?usage: demo.sh AGENT}
need_agent "$agent"
need adb tshark

tmp=$(mktemp -d)
# shellcheck disable=SC2034  # for lib.sh
keep=$tmp want='tcp.port == 443'
trap 'cleanup "$here/phone.sh" -d "$tmp/phone" down' EXIT
trap 'exit 130' INT TERM

step "Boot a phone: Debian's arm64 kernel under emulation, with wlan0 and adbd"
show "$here/phone.sh" -d "$tmp/phone" up "${LAB_SUITE:-bookworm}"
eval "$("$here/phone.sh" -d "$tmp/phone" env)"

capture "$agent" wlan0 "port 443" adb shell /lab/phone fetch -n 3 https://192.168.49.2/
