// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// identifier is what Magisk takes for a module's id (docs/guides.md, "module.prop").
var identifier = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9._-]+$`)

// keys are those of module.prop, in the order that Magisk's documentation calls strict.
var keys = []string{"id", "name", "version", "versionCode", "author", "description"}

// properties fills version and the versionCode in. Root managers compare the latter as
// 32-bit integers: it is in minutes since 1970, so that a later commit has a larger one
// in a shallow clone, too.
func properties(text, version string, at int64) ([]byte, error) {
	code := at / 60
	switch {
	case version == "" || strings.ContainsAny(version, "\n@"):
		return nil, fmt.Errorf("%q is no version", version)
	case code < 1 || code > math.MaxInt32:
		return nil, fmt.Errorf("%d is no time to make a versionCode of", at)
	}
	text = strings.NewReplacer("@VERSION@", version, "@CODE@", strconv.FormatInt(code, 10)).Replace(text)
	lines := strings.SplitAfter(text, "\n")
	if len(lines) != len(keys)+1 || lines[len(keys)] != "" {
		return nil, fmt.Errorf("%d lines where %s are wanted", strings.Count(text, "\n"), strings.Join(keys, ", "))
	}
	for i, key := range keys {
		value, ok := strings.CutPrefix(lines[i], key+"=")
		if value = strings.TrimSuffix(value, "\n"); !ok || value == "" {
			return nil, fmt.Errorf("line %d is %q, not %s=", i+1, lines[i], key)
		}
		if key == "id" && !identifier.MatchString(value) {
			return nil, fmt.Errorf("%q is no id of a module", value)
		}
	}
	return []byte(text), nil
}
