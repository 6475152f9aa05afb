package decode

import (
	"fmt"
	"time"
)

// parseTime reads a timestamptz as Postgres writes it with DateStyle ISO and TimeZone UTC, which is what this package's
// connections ask for: 2026-01-02 03:04:05.678901+00. Values that have no place in time.Time (infinity, years BC or beyond 9999;
// FACTS P18) give a reason instead: such a row can't be delivered, and must not be changed without a word.
func parseTime(text []byte) (t time.Time, invalid string) {
	bad := func() (time.Time, string) {
		return time.Time{}, fmt.Sprintf("event_date_time is %.64q; ClickHouse's DateTime64(6) has no such value", text)
	}
	// date, blank, time of day, at most seven characters of fraction, +00
	const fixed = len("2026-01-02 03:04:05")
	if len(text) < fixed+len("+00") || text[4] != '-' || text[7] != '-' || text[10] != ' ' || text[13] != ':' || text[16] != ':' {
		return bad()
	}
	var parts [6]int
	for i, at := range [6]struct{ from, to int }{{0, 4}, {5, 7}, {8, 10}, {11, 13}, {14, 16}, {17, 19}} {
		for _, c := range text[at.from:at.to] {
			if c < '0' || c > '9' {
				return bad()
			}
			parts[i] = parts[i]*10 + int(c-'0')
		}
	}
	rest, nanos := text[fixed:], 0
	if rest[0] == '.' {
		rest = rest[1:]
		unit := int(time.Second)
		for len(rest) > 0 && rest[0] >= '0' && rest[0] <= '9' && unit > 1 {
			unit /= 10
			nanos += int(rest[0]-'0') * unit
			rest = rest[1:]
		}
	}
	if string(rest) != "+00" {
		return bad()
	}
	t = time.Date(parts[0], time.Month(parts[1]), parts[2], parts[3], parts[4], parts[5], nanos, time.UTC)
	hour, minute, second := t.Clock()
	if [...]int{int(t.Month()), t.Day(), hour, minute, second} != [5]int(parts[1:]) { // time.Date would have wrapped it
		return bad()
	}
	return t, ""
}
