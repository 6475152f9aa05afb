package ops_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/doctor"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// report is that of a doctor who found this.
func report(findings ...doctor.Finding) *doctor.Report {
	r := &doctor.Report{Findings: findings, Counts: map[doctor.Result]int{}}
	for i := range findings {
		r.Counts[findings[i].Result]++
	}
	return r
}

// examine has a doctor look beside the test who makes these reports, and the last one from then on. It returns how often it has looked.
func examine(t *testing.T, m *ops.Metrics, log io.Writer, reports ...*doctor.Report) *int {
	t.Helper()
	looked := new(int)
	beside(t, func(ctx context.Context) {
		m.Examine(ctx, func(context.Context) *doctor.Report {
			r := reports[min(*looked, len(reports)-1)]
			*looked++
			return r
		}, zerolog.New(log))
	})
	return looked
}

func TestExamine(t *testing.T) {
	t.Parallel()
	fsync := doctor.Finding{Check: "postgres.fsync", Result: doctor.Warn}
	disk := doctor.Finding{Check: "target.disk", Result: doctor.Fail}
	t.Run("every five minutes, and a finding is logged once until it is mended", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var log strings.Builder
			looked := examine(t, streaming(), &log, report(fsync), report(fsync), report(fsync, disk), report(disk), report(fsync, disk))
			for i, want := range []string{"postgres.fsync", "", "target.disk", "", "postgres.fsync", ""} {
				synctest.Wait()
				if n := strings.Count(log.String(), "\n"); *looked != i+1 || want == "" && n > 0 || want != "" && (n != 1 || !strings.Contains(log.String(), want)) {
					t.Errorf("look %d of %d: it logged %q, want %q", i+1, *looked, log.String(), want)
				}
				log.Reset()
				after(5 * time.Minute)
			}
		})
	})
	t.Run("soon again while a database is away", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			var log strings.Builder
			m := streaming()
			away := report(fsync, doctor.Finding{Check: "clickhouse.reachable", Result: doctor.Fail})
			looked := examine(t, m, &log, away, away, report(fsync))
			after(20 * time.Second)
			if *looked != 2 || log.Len() > 0 {
				t.Errorf("it looked %d times and logged %q, want 2 and nothing", *looked, log.String())
			}
			after(20 * time.Second)
			has(t, log.String(), "postgres.fsync")
			has(t, shown(t, pageOf(m, healthy(), true)), "0 failed, 1 warned")
		})
	})
	t.Run("soon again while the daemon has not begun", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := ops.NewMetrics(cli.Build{})
			m.State(pipeline.Starting, "")
			looked := examine(t, m, io.Discard, report(fsync))
			after(20 * time.Second)
			m.State(pipeline.Streaming, "")
			after(5 * time.Minute)
			if *looked != 3 {
				t.Errorf("it looked %d times, want 3: before and after it began, and not again for five minutes", *looked)
			}
		})
	})
}
