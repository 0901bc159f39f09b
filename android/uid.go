// SPDX-License-Identifier: Apache-2.0

package android

// Numbers of system/core's android_filesystem_config.h: AID_USER_OFFSET, AID_APP_START and so on.
const (
	perUser       = 100000
	firstSandbox  = 20000
	lastSandbox   = 29999
	firstIsolated = 90000
)

// FirstApp is the smallest app id of an app that somebody can install.
const FirstApp uint32 = 10000

// MaxUser is the largest number that a user of the phone can have, so that no uid of his is beyond 2^31 (UserManagerService
// MAX_USER_ID).
const MaxUser = 1<<31/perUser - 1

// User returns the number of the phone's user that a uid belongs to: 0 is the first one, 10 often a work profile.
func User(uid uint32) uint32 { return uid / perUser }

// AppID returns a uid without its user. An app has the same for all users of the phone.
func AppID(uid uint32) uint32 { return uid % perUser }

// UID returns that of an app, or of its sandbox, for a user of up to MaxUser.
func UID(user, appID uint32) uint32 { return user*perUser + appID }

// IsApp tells whether a uid is an installed app's: app ids 10000 to 19999.
func IsApp(uid uint32) bool { return AppID(uid) >= FirstApp && AppID(uid) < firstSandbox }

// IsIsolated tells whether a uid is that of an isolated process, such as a browser's renderer: app ids 90000 to 99999.
// They are given out anew with each process, and no file tells whose it is.
func IsIsolated(uid uint32) bool { return AppID(uid) >= firstIsolated }

// Sandbox returns the app id of the SDK sandbox (Android 13 and later) in which the advertisers' code in an app runs, and
// false for the app id of what has none.
func Sandbox(appID uint32) (uint32, bool) {
	return appID + firstSandbox - FirstApp, IsApp(appID)
}

// SandboxOf returns the app id of the app that an SDK sandbox is of, and false for a uid that is no sandbox's.
func SandboxOf(uid uint32) (appID uint32, ok bool) {
	id := AppID(uid)
	return id - (firstSandbox - FirstApp), id >= firstSandbox && id <= lastSandbox
}

// Name returns what Android calls a uid that is no app's, as "dns" for 1051, for whichever user; "" where it has no name
// for it: those that phones' makers give out (2900-2999, 5000-7999) have theirs in files of the phone.
func Name(uid uint32) string { return aids[AppID(uid)] }

// aids are the AID_* of android_filesystem_config.h that processes run under. What are only groups is left out.
var aids = map[uint32]string{
	0: "root", 1: "daemon", 2: "bin", 3: "sys",
	1000: "system", 1001: "radio", 1002: "bluetooth", 1003: "graphics", 1004: "input", 1005: "audio", 1006: "camera",
	1007: "log", 1008: "compass", 1009: "mount", 1010: "wifi", 1011: "adb", 1012: "install", 1013: "media", 1014: "dhcp",
	1016: "vpn", 1017: "keystore", 1018: "usb", 1019: "drm", 1020: "mdnsr", 1021: "gps", 1023: "media_rw", 1024: "mtp",
	1026: "drmrpc", 1027: "nfc", 1029: "clat", 1030: "loop_radio", 1031: "mediadrm", 1036: "logd", 1037: "shared_relro",
	1038: "dbus", 1039: "tlsdate", 1040: "mediaex", 1041: "audioserver", 1042: "metrics_coll", 1043: "metricsd",
	1044: "webserv", 1045: "debuggerd", 1046: "mediacodec", 1047: "cameraserver", 1048: "firewall", 1049: "trunks",
	1050: "nvram", 1051: "dns", 1052: "dns_tether", 1053: "webview_zygote", 1054: "vehicle_network", 1058: "tombstoned",
	1060: "ese", 1061: "ota_update", 1062: "automotive_evs", 1063: "lowpan", 1064: "hsm", 1066: "statsd", 1067: "incidentd",
	1068: "secure_element", 1069: "lmkd", 1070: "llkd", 1071: "iorapd", 1072: "gpu_service", 1073: "network_stack",
	1074: "gsid", 1075: "fsverity_cert", 1076: "credstore", 1080: "context_hub", 1081: "virtualizationservice",
	1082: "artd", 1083: "uwb", 1084: "thread_network", 1085: "diced", 1086: "dmesgd", 1087: "jc_weaver",
	1088: "jc_strongbox", 1089: "jc_identitycred", 1090: "sdk_sandbox", 1092: "prng_seeder",
	2000: "shell", 2001: "cache", 2002: "diag", 9997: "everybody", 9998: "misc", 9999: "nobody",
}
