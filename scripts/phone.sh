#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# phone.sh AGENT [INTERFACE [EXPRESSION]]: the agent's main job on a real rooted
# phone: the one that "adb devices" shows, or ANDROID_SERIAL. Ctrl-C ends the
# capture, which is left in the current directory. Default: wlan0 "port 443".
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lab/lib.sh
. "$here/lab/lib.sh"

agent=${1:?usage: phone.sh AGENT [INTERFACE [EXPRESSION]]}
need_agent "$agent"
need adb tshark

tmp=$(mktemp -d)
# shellcheck disable=SC2034  # for lib.sh
keep=. want=frame
trap cleanup EXIT

mapfile -t phones < <(adb devices | awk 'NR > 1 && NF == 2 {print $1, $2}')
if [[ -z ${ANDROID_SERIAL-} ]]; then
    ((${#phones[@]} > 0)) || die "no phone: connect one with USB debugging on, then see that \"adb devices\" lists it"
    ((${#phones[@]} == 1)) || die "more than one phone, set ANDROID_SERIAL to one of: ${phones[*]}"
    export ANDROID_SERIAL=${phones[0]% *}
fi
state=$(timeout 20 adb get-state 2>&1) || die "$ANDROID_SERIAL: $state"
[[ $state == device ]] || die "$ANDROID_SERIAL is $state: allow USB debugging on its screen"
abi=$(timeout 20 adb shell getprop ro.product.cpu.abi | tr -d '\r')
[[ $abi == arm64-v8a ]] || die "$ANDROID_SERIAL is $abi, the agent is for arm64-v8a"
[[ $(timeout 60 adb shell "su -c 'id -u'" | tr -d '\r') == 0 ]] || die "su gives no root on $ANDROID_SERIAL: is it rooted, and adb shell allowed in its root manager?"

trap : INT # ends the capture, not this script
capture "$agent" "${2:-wlan0}" "${3:-port 443}"
