package cli_test

import (
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
)

func TestSpan(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second:                     "0.0 s",
		430 * time.Millisecond:           "0.4 s",
		45 * time.Second:                 "45 s",
		3*time.Minute + 20*time.Second:   "3 min",
		125 * time.Minute:                "2 h 5 min",
		76*time.Hour + 59*time.Minute:    "3 d 4 h",
		47*time.Hour + 59*time.Minute:    "47 h 59 min",
		119*time.Second + 999e6:          "119 s",
		10*time.Second - time.Nanosecond: "10.0 s",
	} {
		if got := cli.Span(d); got != want {
			t.Errorf("cli.Span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text  string
		limit int
		want  string
	}{
		{"short", 10, "short"},
		{"as long as", 10, "as long as"},
		{"longer than that", 10, "longer th…"},
		{"größer als das", 10, "größer al…"},
		{"any length", 0, "any length"},
		{"tab\tline\nescape\x1b[31m", 0, "tab line escape [31m"},
	} {
		if got := cli.OneLine(c.text, c.limit); got != c.want {
			t.Errorf("cli.OneLine(%q, %d) = %q, want %q", c.text, c.limit, got, c.want)
		}
	}
}
