package cli_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// lines reads what a logger wrote, and forgets it.
func lines(t *testing.T, out *bytes.Buffer) (all []map[string]any) {
	t.Helper()
	for line := range strings.Lines(out.String()) {
		fields := map[string]any{}
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		all = append(all, fields)
	}
	out.Reset()
	return all
}

func TestRepeatedErrorsAreFolded(t *testing.T) {
	t.Parallel()
	// folding runs a test in a time of its own.
	folding := func(t *testing.T, test func(t *testing.T, log zerolog.Logger, out *bytes.Buffer)) {
		t.Helper()
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			out := &bytes.Buffer{}
			test(t, cli.Log{LogLevel: "info", LogFormat: "json"}.FoldingLogger(out), out)
		})
	}
	// again logs an error once a second.
	again := func(log zerolog.Logger, seconds int, text func(i int) string) {
		for i := range seconds {
			log.Error().Err(errors.New(text(i))).Int("i", i).Msg("not delivered")
			<-time.After(time.Second)
		}
	}
	refused := func(int) string { return "connection refused" }

	t.Run("the first is told at once, then they are counted at growing distances", func(t *testing.T) {
		folding(t, func(t *testing.T, log zerolog.Logger, out *bytes.Buffer) {
			t.Helper()
			again(log, 4000, refused)
			var at, folded []int
			for _, line := range lines(t, out) {
				i, _ := line["i"].(float64)
				n, _ := line["folded"].(float64)
				at, folded = append(at, int(i)), append(folded, int(n))
			}
			if got, want := fmt.Sprint(at, folded), "[0 15 45 105 225 465 945 1545 2145 2745 3345 3945] [0 14 29 59 119 239 479 599 599 599 599 599]"; got != want {
				t.Errorf("told at, with: %s\nwant %s", got, want)
			}
		})
	})
	t.Run("errors that differ in numbers alone are the same", func(t *testing.T) {
		folding(t, func(t *testing.T, log zerolog.Logger, out *bytes.Buffer) {
			t.Helper()
			again(log, 10, func(i int) string { return fmt.Sprintf("read tcp 127.0.0.1:%d: reset", 9995+i) })
			if got := lines(t, out); len(got) != 1 {
				t.Errorf("told %d times: %v", len(got), got)
			}
		})
	})
	t.Run("another error, or another message, is told at once", func(t *testing.T) {
		folding(t, func(t *testing.T, log zerolog.Logger, out *bytes.Buffer) {
			t.Helper()
			again(log, 3, refused)
			log.Error().Err(errors.New("no such table")).Msg("not delivered")
			log.Warn().Err(errors.New("connection refused")).Msg("not settled")
			if got := lines(t, out); len(got) != 3 {
				t.Errorf("told %d times, want 3: %v", len(got), got)
			}
		})
	})
	t.Run("what comes again after a while is news, and what was left out before is not lost", func(t *testing.T) {
		folding(t, func(t *testing.T, log zerolog.Logger, out *bytes.Buffer) {
			t.Helper()
			again(log, 100, refused)
			lines(t, out)
			<-time.After(2 * time.Minute)
			again(log, 16, refused)
			got := lines(t, out)
			if len(got) != 2 || got[0]["folded"] != 54.0 || got[1]["folded"] != 14.0 {
				t.Errorf("told: %v", got)
			}
		})
	})
	t.Run("lines that are no errors, and warnings without one, are never left out", func(t *testing.T) {
		folding(t, func(t *testing.T, log zerolog.Logger, out *bytes.Buffer) {
			t.Helper()
			for range 10 {
				log.Info().Err(errors.New("x")).Msg("told")
				log.Warn().Int64("id", 7).Str("reason", "x").Msg("event put into quarantine")
				log.Error().Msg("told")
			}
			if got := lines(t, out); len(got) != 30 {
				t.Errorf("told %d times, want 30", len(got))
			}
		})
	})
	t.Run("only some errors are remembered, the latest", func(t *testing.T) {
		folding(t, func(t *testing.T, log zerolog.Logger, out *bytes.Buffer) {
			t.Helper()
			for i := range 100 {
				log.Error().Err(errors.New(strings.Repeat("x", i+1))).Msg("not delivered")
				<-time.After(time.Millisecond)
			}
			lines(t, out)
			log.Error().Err(errors.New(strings.Repeat("x", 100))).Msg("not delivered")
			if got := lines(t, out); len(got) != 0 {
				t.Errorf("a late one was forgotten: %v", got)
			}
			log.Error().Err(errors.New("x")).Msg("not delivered")
			if got := lines(t, out); len(got) != 1 {
				t.Errorf("the first one is remembered after a hundred: %v", got)
			}
		})
	})
	t.Run("people read the same", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			out := &bytes.Buffer{}
			log := cli.Log{LogLevel: "info", LogFormat: "console"}.FoldingLogger(out)
			again(log, 16, refused)
			if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "folded=14") {
				t.Errorf("told: %s", got)
			}
		})
	})
}
