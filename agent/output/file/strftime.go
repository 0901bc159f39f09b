// SPDX-License-Identifier: Apache-2.0

package file

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// layouts are the conversions that package time has: those of strftime(3) in the C locale.
var layouts = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'c': "Mon Jan _2 15:04:05 2006", 'd': "02", 'D': "01/02/06", 'e': "_2",
	'F': "2006-01-02", 'h': "Jan", 'H': "15", 'I': "03", 'j': "002", 'm': "01", 'M': "04", 'p': "PM", 'P': "pm", 'r': "03:04:05 PM",
	'R': "15:04", 'S': "05", 'T': "15:04:05", 'x': "01/02/06", 'X': "15:04:05", 'y': "06", 'Y': "2006", 'z': "-0700", 'Z': "MST",
}

// strftime replaces the conversions in format as strftime(3) does in the C locale. What is none stays as it is.
func strftime(format string, t time.Time) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		c := format[i]
		if c != '%' || i+1 == len(format) {
			b.WriteByte(c)
			continue
		}
		begin := i
		if i++; (format[i] == 'E' || format[i] == 'O') && i+1 < len(format) { // other ways to write the same: the C locale has none
			i++
		}
		if text, ok := convert(format[i], t); ok {
			b.WriteString(text)
		} else {
			b.WriteString(format[begin : i+1])
		}
	}
	return b.String()
}

// convert returns what %c stands for.
func convert(c byte, t time.Time) (string, bool) {
	if layout, ok := layouts[c]; ok {
		return t.Format(layout), true
	}
	isoYear, isoWeek := t.ISOWeek()
	weekday := int(t.Weekday())
	two := func(n int) (string, bool) { return fmt.Sprintf("%02d", n), true }
	switch c {
	case '%':
		return "%", true
	case 'n':
		return "\n", true
	case 't':
		return "\t", true
	case 's':
		return strconv.FormatInt(t.Unix(), 10), true
	case 'C':
		return two(t.Year() / 100)
	case 'g':
		return two(isoYear % 100)
	case 'G':
		return strconv.Itoa(isoYear), true
	case 'k':
		return fmt.Sprintf("%2d", t.Hour()), true
	case 'l':
		return fmt.Sprintf("%2d", (t.Hour()+11)%12+1), true
	case 'u':
		return strconv.Itoa((weekday+6)%7 + 1), true
	case 'w':
		return strconv.Itoa(weekday), true
	case 'U':
		return two((t.YearDay() + 6 - weekday) / 7)
	case 'V':
		return two(isoWeek)
	case 'W':
		return two((t.YearDay() + 6 - (weekday+6)%7) / 7)
	}
	return "", false
}

// dated tells whether format names a time.
func dated(format string) bool {
	const first, second = 1_000_000_000, 1_700_003_661 // they differ in each part of a time
	return strftime(format, time.Unix(first, 0)) != strftime(format, time.Unix(second, 0))
}
