#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Stands in for what a root manager does at boot: modules marked for removal go,
# new ones take their place, and the service.sh of those that are not disabled runs.
for m in /data/adb/modules/*; do
    [ -e "$m/remove" ] || continue
    [ ! -e "$m/uninstall.sh" ] || sh "$m/uninstall.sh"
    rm -rf "$m"
done
for m in /data/adb/modules_update/*; do
    [ -d "$m" ] || continue
    rm -rf "/data/adb/modules/${m##*/}"
    mv "$m" "/data/adb/modules/${m##*/}"
done
for m in /data/adb/modules/*; do
    [ -e "$m/disable" ] || [ ! -e "$m/service.sh" ] || sh "$m/service.sh" &
done
wait
