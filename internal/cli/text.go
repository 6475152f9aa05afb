package cli

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/dustin/go-humanize"
)

// Span writes a duration as coarsely as people say it: 0.4 s, 45 s, 3 min, 2 h 5 min, 3 d 4 h.
func Span(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%d d %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

// Size writes a number of bytes with a unit, as 1.2 MB, which is 1.2·1000².
func Size(bytes int64) string {
	if bytes < 0 {
		return "-" + humanize.Bytes(uint64(-bytes))
	}
	return humanize.Bytes(uint64(bytes))
}

// Rows writes a number of rows: 1 row, 12,345 rows.
func Rows(n int64) string { return Count(n, "row") }

// Count writes a number of things: 1 check, 12,345 checks.
func Count(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return humanize.Comma(n) + " " + thing + "s"
}

// Stamp writes a time in UTC. Logs are in UTC too.
func Stamp(t time.Time) string { return t.UTC().Format(time.DateTime) }

// OneLine makes text that others wrote fit into a line, of at most limit characters (0: any number). Control characters could do
// anything to a terminal.
func OneLine(text string, limit int) string {
	clean := []rune(strings.Map(func(r rune) rune {
		if Harmful(r) {
			return ' '
		}
		return r
	}, text))
	if limit > 0 && len(clean) > limit {
		return string(clean[:limit-1]) + "…"
	}
	return string(clean)
}

// Harmful says whether a character does something instead of being shown: controls, line separators, and those that turn the direction of
// what follows.
func Harmful(r rune) bool {
	return unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp)
}
