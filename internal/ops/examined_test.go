package ops_test

import (
	"context"
	"strings"
	"sync"
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

// examination is a doctor at work beside the test, and what was logged of it.
type examination struct {
	mu     sync.Mutex
	looked int
	log    strings.Builder
}

func (e *examination) Write(line []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.log.Write(line)
}

// seen is how often the doctor has looked, and what was logged since this was last asked.
func (e *examination) seen() (looked int, logged string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.log.Reset()
	return e.looked, e.log.String()
}

// examine has a doctor look beside the test who makes these reports, and the last one from then on.
func examine(t *testing.T, m *ops.Metrics, reports ...*doctor.Report) *examination {
	t.Helper()
	e := new(examination)
	beside(t, func(ctx context.Context) {
		m.Examine(ctx, func(context.Context) *doctor.Report {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.looked++
			return reports[min(e.looked, len(reports))-1]
		}, zerolog.New(e))
	})
	return e
}

func TestExamine(t *testing.T) {
	t.Parallel()
	fsync := doctor.Finding{Check: "postgres.fsync", Result: doctor.Warn}
	disk := doctor.Finding{Check: "target.disk", Result: doctor.Fail}
	t.Run("every five minutes, and a finding is logged once until it is mended", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			e := examine(t, streaming(), report(fsync), report(fsync), report(fsync, disk), report(disk), report(fsync, disk))
			for i, want := range []string{"postgres.fsync", "", "target.disk", "", "postgres.fsync", ""} {
				synctest.Wait()
				looked, logged := e.seen()
				if n := strings.Count(logged, "\n"); looked != i+1 || want == "" && n > 0 || want != "" && (n != 1 || !strings.Contains(logged, want)) {
					t.Errorf("look %d of %d: it logged %q, want %q", i+1, looked, logged, want)
				}
				after(5 * time.Minute)
			}
		})
	})
	t.Run("soon again while a database is away", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			away := report(fsync, doctor.Finding{Check: "clickhouse.reachable", Result: doctor.Fail})
			e := examine(t, m, away, away, report(fsync))
			after(20 * time.Second)
			if looked, logged := e.seen(); looked != 2 || logged != "" {
				t.Errorf("it looked %d times and logged %q, want 2 and nothing", looked, logged)
			}
			after(20 * time.Second)
			_, logged := e.seen()
			has(t, logged, "postgres.fsync")
			has(t, shown(t, pageOf(m, healthy(), true)), "0 failed, 1 warned")
		})
	})
	t.Run("soon again while the daemon has not begun", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := ops.NewMetrics(cli.Build{})
			m.State(pipeline.Starting, "")
			e := examine(t, m, report(fsync))
			after(20 * time.Second)
			m.State(pipeline.Streaming, "")
			after(5 * time.Minute)
			if looked, _ := e.seen(); looked != 3 {
				t.Errorf("it looked %d times, want 3: before and after it began, and not again for five minutes", looked)
			}
		})
	})
}
