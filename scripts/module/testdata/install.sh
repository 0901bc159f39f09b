#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# install.sh ZIP: stands in for a root manager's installer, as Magisk's
# documentation tells it (docs/guides.md, "Magisk Module Installer"): unpack, give all
# files their default permissions, source customize.sh, and leave the result for
# the next boot. ARCH and BOOTMODE come from the test.
umask 022
ZIPFILE=$1
TMPDIR=/dev/tmp
NVBASE=/data/adb
API=34
IS64BIT=true
MAGISK_VER_CODE=28000
export API IS64BIT MAGISK_VER_CODE

ui_print() { echo "$1"; }

abort() {
    ui_print "$1"
    [ -z "$MODPATH" ] || rm -rf "$MODPATH"
    rm -rf "$TMPDIR"
    exit 1
}

# No SELinux here: a context (the fifth word) is not looked at.
set_perm() {
    chown "$2:$3" "$1" && chmod "$4" "$1"
}

set_perm_recursive() {
    find "$1" -type d | while read -r d; do set_perm "$d" "$2" "$3" "$4"; done
    find "$1" -type f -o -type l | while read -r f; do set_perm "$f" "$2" "$3" "$5"; done
}

mkdir -p "$TMPDIR"
cd "$TMPDIR" || exit 1
unzip -o "$ZIPFILE" module.prop -d "$TMPDIR" >/dev/null || abort "! Unable to extract zip file!"
MODID=$(sed -n s/^id=//p "$TMPDIR/module.prop")
MODPATH=$NVBASE/modules_update/$MODID
rm -rf "$MODPATH"
mkdir -p "$MODPATH"
unzip -o "$ZIPFILE" customize.sh -d "$MODPATH" >/dev/null
unzip -o "$ZIPFILE" -x 'META-INF/*' -d "$MODPATH" >/dev/null
set_perm_recursive "$MODPATH" 0 0 0755 0644
# shellcheck source=/dev/null
[ ! -f "$MODPATH/customize.sh" ] || . "$MODPATH/customize.sh"

mkdir -p "$NVBASE/modules/$MODID"
touch "$NVBASE/modules/$MODID/update"
rm -f "$NVBASE/modules/$MODID/remove" "$NVBASE/modules/$MODID/disable"
cp -af "$MODPATH/module.prop" "$NVBASE/modules/$MODID/module.prop"
rm -rf "$MODPATH/customize.sh" "$MODPATH/README.md"
cd /
rm -rf "$TMPDIR"
ui_print "- Done"
