// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
	"droidtap/android"
)

// Selection is whose packets are wanted.
type Selection struct {
	UIDs, NotUIDs []uint32
	Apps, NotApps []string // "pkg", "user:pkg", or a glob of either
}

// Parse checks the values of --uid, --not-uid, --app and --not-app, each of which may have several values with commas
// between; its errors are usage errors of one line.
func Parse(uids, notUIDs, apps, notApps []string) (Selection, error) {
	var s Selection
	var err error
	if s.UIDs, err = each("--uid", "user id", uids, parseUID); err != nil {
		return Selection{}, err
	}
	if s.NotUIDs, err = each("--not-uid", "user id", notUIDs, parseUID); err != nil {
		return Selection{}, err
	}
	if s.Apps, err = each("--app", "package", apps, parseApp); err != nil {
		return Selection{}, err
	}
	if s.NotApps, err = each("--not-app", "package", notApps, parseApp); err != nil {
		return Selection{}, err
	}
	return s, nil
}

// each parses the values of a flag, and leaves out what is there twice.
func each[T comparable](flag, what string, values []string, parse func(flag, text string) (T, error)) (list []T, err error) {
	for _, value := range values {
		for text := range strings.SplitSeq(value, ",") {
			if text = strings.TrimSpace(text); text == "" {
				return nil, plugin.Usagef("%s needs a %s, and %q lacks one", flag, what, value)
			}
			one, err := parse(flag, text)
			if err != nil {
				return nil, err
			}
			if !slices.Contains(list, one) {
				list = append(list, one)
			}
		}
	}
	return list, nil
}

func parseUID(flag, text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n >= pcapng.UIDNone {
		return 0, plugin.Usagef("%s %q: a user id is a number from 0 to %d", flag, text, uint32(pcapng.UIDNone)-1)
	}
	// In the kernel's map these are the keys of app ids.
	if id := uint32(n); id >= AppID && id < AppID+100000 {
		return 0, plugin.Usagef("%s %s: user ids from %d to %d cannot be told apart from app ids", flag, text, uint32(AppID), uint32(AppID)+99999)
	}
	return uint32(n), nil
}

func parseApp(flag, text string) (string, error) {
	_, pattern, ok := cutUser(text)
	if !ok {
		return "", plugin.Usagef("%s %q: before the colon stands the number of a user of the phone, from 0 to %d, or *", flag, text, android.MaxUser)
	}
	if _, err := path.Match(pattern, ""); err != nil {
		return "", plugin.Usagef("%s %q: %w", flag, text, err)
	}
	plain := strings.Map(func(r rune) rune {
		if strings.ContainsRune(`*?[]^\`, r) {
			return -1
		}
		return r
	}, pattern)
	if plain == "" && pattern != "" && isGlob(pattern) {
		return text, nil
	}
	if !android.IsPackageName(plain) {
		return "", plugin.Usagef("%s %q: a package's name is of letters, digits, '.', '_' and '-' (as com.android.chrome), a pattern may have *, ? and [a-z], too", flag, text)
	}
	return text, nil
}

// everyone is what cutUser returns for all users of the phone.
const everyone = ^uint32(0)

// cutUser takes "user:pattern" apart; without a user, or with *, it is everyone's.
func cutUser(text string) (user uint32, pattern string, ok bool) {
	number, pattern, has := strings.Cut(text, ":")
	if !has {
		return everyone, text, true
	}
	if number == "*" {
		return everyone, pattern, true
	}
	n, err := strconv.ParseUint(number, 10, 32)
	return uint32(n), pattern, err == nil && n <= android.MaxUser
}

func isGlob(pattern string) bool { return strings.ContainsAny(pattern, `*?[\`) }

// All tells whether nothing was selected.
func (s Selection) All() bool {
	return len(s.UIDs)+len(s.NotUIDs)+len(s.Apps)+len(s.NotApps) == 0
}

// Others tells whether those whom it does not name are wanted, since none are said to be.
func (s Selection) Others() bool { return len(s.UIDs)+len(s.Apps) == 0 }
