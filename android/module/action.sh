#!/system/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Run by the root manager when its user presses the module's action, or by hand: turns
# the capture on, from now and at each boot, or off, and says which.
case $0 in
*/*) MODDIR=${0%/*} ;;
*) MODDIR=. ;;
esac
MODDIR=$(cd "$MODDIR" && pwd -P) || exit 1
# shellcheck source=android/module/common.sh
. "$MODDIR/common.sh"

# off REASON: turn it off.
off() {
    rm -f "$ENABLED"
    stop
    echo "droidtap is off: $1"
}

# on: turn it on, and wait up to 15 seconds to see whether it captures.
on() {
    prepare && : >"$ENABLED" || return 1
    why=$(refusal)
    if [ -n "$why" ]; then
        off "$why"
        return 1
    fi
    # What was just edited, and that it is on, may be lost for half a minute from now if the power goes.
    sync
    start
    tries=15
    until [ -e "$READY" ]; do
        if [ -z "$(identity "$STARTED")" ]; then
            tail -n 3 "$LOG"
            off "it could not begin, see above"
            return 1
        fi
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then
            tail -n 3 "$LOG"
            echo "droidtap is on, but does not capture yet: it keeps trying"
            return 0
        fi
        sleep 1
    done
    echo "droidtap is on, now and after each boot:"
    "$MODDIR/agent" status --socket "$SOCKET"
    return 0
}

if [ -n "$(supervisor)" ]; then
    off "nothing is captured, not after a boot either"
else
    on
fi
