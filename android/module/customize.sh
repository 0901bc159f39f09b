#!/system/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the root manager's installer, behind the unpacking, in BusyBox's ash. It
# gives MODPATH, ARCH and BOOTMODE, and the functions ui_print, abort and set_perm.

[ "$BOOTMODE" = true ] || abort "! droidtap is installed from the root manager's app, not from recovery"
[ "$ARCH" = arm64 ] || abort "! droidtap runs on arm64 only, and this phone is $ARCH"

set_perm "$MODPATH/agent" 0 0 0755

# The agent knows best what it needs of a kernel (4.19 or later has it).
droidtap_said=$("$MODPATH/agent" doctor 2>&1)
droidtap_code=$?
if [ "$droidtap_code" -ne 0 ]; then
    echo "$droidtap_said" | tail -n 5 | while read -r droidtap_line; do
        ui_print "  $droidtap_line"
    done
    abort "! droidtap cannot capture on this kernel, $(uname -r) (agent doctor: exit code $droidtap_code)"
fi

mkdir -p /data/adb/droidtap || abort "! cannot make /data/adb/droidtap"
set_perm /data/adb/droidtap 0 0 0700
if [ -e /data/adb/droidtap/agent.args ]; then
    ui_print "- /data/adb/droidtap/agent.args stays as it is; the module's folder has the new example"
else
    cp "$MODPATH/agent.args" /data/adb/droidtap/agent.args || abort "! cannot write /data/adb/droidtap/agent.args"
    set_perm /data/adb/droidtap/agent.args 0 0 0600
fi

if [ -e /data/adb/droidtap/enabled ]; then
    ui_print "- droidtap is on: the new version captures from the next boot on"
else
    ui_print "- droidtap is off. What it captures stands in /data/adb/droidtap/agent.args."
    ui_print "- Reboot, then press the module's action to turn it on, or"
    ui_print "  su -c 'sh /data/adb/modules/droidtap/action.sh'"
fi

# The phone may lose its power before it reboots.
sync
