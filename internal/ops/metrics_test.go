package ops_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/testdoc"
)

// TestTable holds that docs/metrics.md names what /metrics shows, with type and labels, and nothing else.
func TestTable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, holdTable)
}

func holdTable(t *testing.T) {
	t.Helper()
	m := ops.NewMetrics(cli.Build{})
	m.State(pipeline.Streaming, "")
	m.Leads(1)
	m.Attempt("ok", time.Second)
	m.Settled(&batch.Batch{SealedBy: batch.ByRows}, time.Second, time.Second)
	m.Incident("slot_lost")
	(&server{}).write(m, 60, 1, 1000)
	survey(t, m, found{parts: 1, window: 1})
	surveyLedger(t, m, keeper{held: 1, audits: []ledger.Audited{{Scope: ledger.AuditAll, Differences: map[string]uint64{"missing": 1}}}})
	testdoc.Metrics(t, scrape(t, m), "The daemon")
}

// table is ClickHouse, as each survey finds it, and those after the last one.
type table struct {
	found []found
}

type found struct {
	parts, window int64
	err           error
}

func (c *table) Survey(context.Context) (parts, window int64, err error) {
	f := c.found[0]
	if len(c.found) > 1 {
		c.found = c.found[1:]
	}
	return f.parts, f.window, f.err
}

// deadline is that of inserts.
const deadline = 5 * time.Minute

// survey begins to survey, in a time of the test's own. The first one is done.
func survey(t *testing.T, m *ops.Metrics, found ...found) {
	t.Helper()
	beside(t, func(ctx context.Context) { m.Survey(ctx, &table{found}, deadline) })
}

// beside runs something beside the test until its end. What it does at once is done.
func beside(t *testing.T, run func(ctx context.Context)) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	synctest.Wait()
}

// scrape is what Prometheus reads.
func scrape(t *testing.T, m *ops.Metrics) string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if answer.Code != http.StatusOK {
		t.Fatalf("/metrics: %d %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

// value is what a sample shows; shown: it does.
func value(t *testing.T, m *ops.Metrics, name string) (v float64, shown bool) {
	t.Helper()
	match := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(scrape(t, m))
	if match == nil {
		return 0, false
	}
	v, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return v, true
}

func want(t *testing.T, m *ops.Metrics, name string, v float64) {
	t.Helper()
	if got, shown := value(t, m, name); !shown || got != v {
		t.Errorf("%s is %v (shown: %t), want %v", name, got, shown, v)
	}
}

func wantNone(t *testing.T, m *ops.Metrics, name string) {
	t.Helper()
	if got, shown := value(t, m, name); shown {
		t.Errorf("%s is %v, want none", name, got)
	}
}

// look is a look at the slot that takes no time.
func look(m *ops.Metrics, end uint64) {
	m.Slot(replication.SlotState{Exists: true, WALStatus: "reserved", WALEnd: end, Now: time.Now()}, time.Now(), time.Now())
}

// after lets time pass.
func after(d time.Duration) { <-time.After(d) }

// seconds runs something once a second.
func seconds(n int, do func(i int)) {
	for i := range n {
		do(i)
		after(time.Second)
	}
}

// streaming is a daemon that leads and has delivered everything up to 1000, a second ago.
func streaming() *ops.Metrics {
	m := ops.NewMetrics(cli.Build{})
	m.State(pipeline.Starting, "")
	m.Leads(7)
	m.State(pipeline.Streaming, "")
	look(m, 1000)
	m.Progress(1000, 0)
	after(time.Second)
	return m
}

const (
	lag    = "sluicebox_lag_seconds"
	bytes  = "sluicebox_lag_bytes"
	oldest = "sluicebox_oldest_unsettled_seconds"
)

func TestLag(t *testing.T) {
	t.Parallel()
	t.Run("an idle stream is not late, as long as keepalives say so", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			seconds(30, func(i int) {
				look(m, uint64(1100+i))
				want(t, m, lag, 0)
				m.Progress(uint64(1100+i), 0)
				want(t, m, bytes, 0)
			})
			want(t, m, lag, 0)
			after(5 * time.Second) // the link is dead
			want(t, m, lag, 6)
			after(time.Hour)
			want(t, m, lag, 3606)
		})
	})
	t.Run("a start confirms nothing", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := ops.NewMetrics(cli.Build{})
			m.State(pipeline.Starting, "")
			after(time.Second)
			m.Leads(1)
			m.Progress(1000, 0)
			want(t, m, lag, 1)
			look(m, 1000)
			want(t, m, lag, 0)
		})
	})
	t.Run("it is late while what Postgres has written does not come", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			seconds(30, func(i int) {
				look(m, uint64(1100+i))
				m.Progress(1050, 0) // keepalives come, of a walsender that is behind
			})
			want(t, m, lag, 31)
			want(t, m, bytes, 79)
			m.Progress(1119, 0)
			want(t, m, lag, 11) // since the look that saw 1119
		})
	})
	t.Run("it is late while an event waits, and says since when", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			committed := time.Now().UnixMicro()
			seconds(30, func(i int) {
				look(m, uint64(1100+i))
				m.Progress(1050, committed)
			})
			want(t, m, lag, 31)
			want(t, m, oldest, 30)
			m.Progress(1129, 0)
			want(t, m, lag, 0)
			want(t, m, oldest, 0)
		})
	})
	t.Run("events that flow are not called on time for being young", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			m.Progress(1000, time.Now().UnixMicro())
			want(t, m, lag, 1)
		})
	})
	t.Run("a standby leaves the lag to who leads, and counts from the takeover", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			m.Leads(0)
			m.State(pipeline.Standby, "another daemon leads")
			after(time.Hour)
			for _, name := range []string{lag, bytes, oldest, "sluicebox_slot_retained_wal_bytes"} {
				wantNone(t, m, name)
			}
			m.State(pipeline.Standby, "another daemon leads")
			after(time.Second)
			m.Leads(8)
			m.State(pipeline.Recovering, "")
			want(t, m, lag, 1)
			want(t, m, "sluicebox_epoch", 8)
		})
	})
	t.Run("what was delivered of another history proves nothing", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			m.Leads(0)
			wantNone(t, m, bytes)
			m.Leads(8)
			look(m, 500) // restored: its WAL ends earlier
			want(t, m, lag, 1)
			after(time.Second)
			want(t, m, lag, 2)
			m.Progress(500, 0)
			want(t, m, lag, 0)
		})
	})
	t.Run("a long outage makes it larger than it is, never smaller", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			const day = 24 * 60 * 60
			seconds(day, func(i int) { look(m, uint64(2000+i)) })
			want(t, m, lag, day+1)
			for i := 0; i < day; i += 1000 {
				m.Progress(uint64(2000+i), 1)
				late, _ := value(t, m, lag)
				if truth := float64(day - i); late < truth || late > truth+512 {
					t.Errorf("the lag is %v, in truth %v", late, truth)
				}
			}
			m.Progress(2000+day-1, 0)
			want(t, m, lag, 0)
		})
	})
	t.Run("ages are by Postgres's clock", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			theirs := time.Now().Add(-time.Hour)
			m.Slot(replication.SlotState{Exists: true, WALEnd: 1001, Now: theirs}, time.Now().Add(-time.Second), time.Now().Add(time.Second))
			m.Progress(1000, theirs.Add(-3*time.Second).UnixMicro())
			want(t, m, oldest, 3)
			m.Settled(&batch.Batch{Stored: time.Now(), Commits: []batch.Commit{
				{At: theirs.Add(-3 * time.Second).UnixMicro(), Rows: 10},
				{At: theirs.Add(time.Second).UnixMicro(), Rows: 1}, // a look is not exact
			}}, 0, 0)
			want(t, m, "sluicebox_commit_to_queryable_seconds_count", 11)
			want(t, m, "sluicebox_commit_to_queryable_seconds_sum", 30)
			want(t, m, `sluicebox_commit_to_queryable_seconds_bucket{le="0.01"}`, 1)
			want(t, m, `sluicebox_commit_to_queryable_seconds_bucket{le="2.56"}`, 1)
			want(t, m, `sluicebox_commit_to_queryable_seconds_bucket{le="5.12"}`, 11)
		})
	})
	t.Run("a slot without a limit has no end, and no slot has no size", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m := streaming()
			wantNone(t, m, "sluicebox_slot_safe_wal_bytes")
			m.Slot(replication.SlotState{}, time.Now(), time.Now())
			wantNone(t, m, "sluicebox_slot_retained_wal_bytes")
			want(t, m, lag, 0)
		})
	})
}

func TestSurvey(t *testing.T) {
	t.Parallel()
	const up, parts, window = "sluicebox_clickhouse_up", "sluicebox_clickhouse_parts", "sluicebox_clickhouse_deduplication_window_inserts"
	synctest.Test(t, func(t *testing.T) {
		m := ops.NewMetrics(cli.Build{})
		wantNone(t, m, up)
		survey(t, m, found{parts: 7, window: -1}, found{parts: 8}, found{err: errors.New("connection refused")}, found{parts: 9, window: 100})
		want(t, m, up, 1)
		want(t, m, parts, 7)
		wantNone(t, m, window)
		next := func() {
			after(15 * time.Second)
			synctest.Wait()
		}
		next()
		want(t, m, parts, 8)
		want(t, m, window, 0)
		next()
		want(t, m, up, 0)
		wantNone(t, m, parts)
		wantNone(t, m, window)
		next()
		want(t, m, up, 1)
		want(t, m, window, 100)
	})
}
