package decode

import (
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzParseTime holds that a text is read as the time that it shows, or not at all.
func FuzzParseTime(f *testing.F) {
	for _, text := range []string{
		"2026-01-02 03:04:05+00", "2026-01-02 03:04:05.678901+00", "0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00", "infinity",
		"4713-01-01 00:00:00+00 BC", "10000-01-01 00:00:00+00", "2026-02-30 03:04:05+00", "2026-01-02 24:00:00+00", "2026-01-02 03:60:00+00", "",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		got, invalid := parseTime(text)
		if invalid != "" {
			return
		}
		whole, fraction, _ := strings.Cut(strings.TrimSuffix(string(text), "+00"), ".")
		if shown := got.Format(time.DateTime); shown != whole {
			t.Errorf("%q is read as %s", text, shown)
		}
		nanos, err := strconv.Atoi((fraction + "000000000")[:9])
		if err != nil || nanos != got.Nanosecond() {
			t.Errorf("%q is read with %d nanoseconds", text, got.Nanosecond())
		}
	})
}
