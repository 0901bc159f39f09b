#!/system/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Run by the root manager before it deletes the module: stops what runs, and
# removes all that the module has made but the captures.
case $0 in
*/*) MODDIR=${0%/*} ;;
*) MODDIR=. ;;
esac
MODDIR=$(cd "$MODDIR" && pwd -P) || exit 1
# shellcheck source=android/module/common.sh
. "$MODDIR/common.sh"

rm -f "$ENABLED"
stop
rm -rf "$DIR"
