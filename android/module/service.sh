#!/system/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Run by the root manager at each boot, in its late_start service mode. Starts the
# supervisor if the user has turned the module on, and returns.
case $0 in
*/*) MODDIR=${0%/*} ;;
*) MODDIR=. ;;
esac
MODDIR=$(cd "$MODDIR" && pwd -P) || exit 1
# shellcheck source=android/module/common.sh
. "$MODDIR/common.sh"

[ -e "$ENABLED" ] || exit 0
start
