package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/testdb"
)

// TestJudge holds what each order of events between the three looks means.
func TestJudge(t *testing.T) {
	t.Parallel()
	cut := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	absent, waits, done := inPostgres{}, inPostgres{found: true, hash: 1}, inPostgres{found: true, processed: true, hash: 1}
	planned, hidden, justDone := inPostgres{found: true, planned: true, hash: 1}, inPostgres{planned: true}, done
	justDone.young = true
	none, once, twice := inClickHouse{}, inClickHouse{rows: 1, hash: 1, ingested: cut}, inClickHouse{rows: 2, hash: 2, ingested: cut}
	other, old, fresh := once, once, once
	other.hash, old.ingested, fresh.young = 3, cut.Add(-time.Second), true
	for name, c := range map[string]struct {
		before inPostgres
		ch     inClickHouse
		after  inPostgres
		want   Kind
		young  bool
	}{
		"delivered":                    {done, once, done, fine, false},
		"neither side has it any more": {absent, none, absent, fine, false},
		"it waits":                     {waits, none, waits, fine, false},
		"written, not settled":         {waits, once, planned, inFlight, false},
		"settled between the looks":    {planned, once, done, fine, false},
		"written and settled after ClickHouse was asked": {waits, none, done, settling, true},
		"committed after the first look":                 {absent, once, planned, inFlight, false},
		"the commit is held back by a standby":           {hidden, once, hidden, inFlight, false},
		"missing":                                        {done, none, done, Missing, false},
		"missing, and young":                             {justDone, none, justDone, Missing, true},
		"missing, and trimmed since":                     {done, none, absent, Missing, false},
		"twice":                                          {done, twice, done, Duplicated, false},
		"twice, and its batch is planned":                {planned, twice, planned, Duplicated, false},
		"other content":                                  {done, other, done, Different, false},
		"unmarked":                                       {waits, once, waits, Unmarked, false},
		"unmarked, and young":                            {waits, fresh, waits, Unmarked, true},
		"unknown":                                        {absent, once, absent, Unknown, false},
		"unknown, and young":                             {absent, fresh, absent, Unknown, true},
		"removed by the retention":                       {absent, old, absent, expired, false},
		"removed by the retention, and there twice":      {absent, inClickHouse{rows: 2, ingested: old.ingested}, absent, expired, false},
	} {
		if f := judge(c.before, c.ch, c.after, cut); f.kind != c.want || f.young != c.young {
			t.Errorf("%s: %q, young %v; want %q, %v", name, f.kind, f.young, c.want, c.young)
		}
	}
	if f := judge(absent, old, absent, time.Time{}); f.kind != Unknown {
		t.Errorf("without a retention: %q, want %q", f.kind, Unknown)
	}
}

func TestBuckets(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pg, ch      extent
		shift       uint
		least, most int64
	}{
		"nothing":                      {extent{}, extent{}, 16, 0, -1},
		"dense ids":                    {extent{10_000_000, 1, 10_000_000}, extent{10_000_000, 1, 10_000_000}, 16, 0, 152},
		"an outbox that was trimmed":   {extent{1000, 9_999_001, 10_000_000}, extent{10_000_000, 1, 10_000_000}, 16, 152, 152},
		"only ClickHouse has rows":     {extent{}, extent{10, 5, 99}, 16, 0, -1},
		"the whole range of ids":       {extent{2, math.MinInt64, math.MaxInt64}, extent{}, 62, -2, 1},
		"a million ids with the time":  {extent{1_000_000, 1 << 60, 1<<60 + 1<<50}, extent{}, 47, 1 << 13, 1<<13 + 8},
		"few rows with distant ids":    {extent{2, 0, 1 << 40}, extent{}, 41, 0, 0},
		"an estimate that is far off":  {extent{1, 1, 10_000_000}, extent{10_000_000, 1, 10_000_000}, 16, 0, 152},
		"ids that are below zero, too": {extent{100, -5, 5}, extent{}, 16, -1, 0},
	} {
		got := sizeBuckets(c.pg, c.ch)
		if got != (buckets{c.shift, c.least, c.most}) {
			t.Errorf("%s: %+v, want shift %d, buckets %d to %d", name, got, c.shift, c.least, c.most)
		}
	}
	if from, to := (buckets{shift: 16}).ids(run{from: -1, to: 1}); from != -65536 || to != 131071 {
		t.Errorf("ids %d to %d, want -65536 to 131071", from, to)
	}
}

func TestMain(m *testing.M) { testdb.Main(m) }

// TestTimeouts holds that a time-out of the role does not end an audit early, and is back in force afterwards.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig(testdb.Migrated(t).Daemon)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 1
	config.ConnConfig.RuntimeParams["statement_timeout"] = "1h"
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	const show = `SELECT current_setting('statement_timeout'), current_setting('transaction_read_only')`
	var timeout, readOnly string
	err = (&postgres{pool: pool}).read(t.Context(), "test", func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, show).Scan(&timeout, &readOnly)
	})
	if err != nil || timeout != "0" || readOnly != "on" {
		t.Errorf("within: statement_timeout %s, read only %s, %v; want 0, on", timeout, readOnly, err)
	}
	if err := pool.QueryRow(t.Context(), show).Scan(&timeout, &readOnly); err != nil || timeout != "1h" {
		t.Errorf("afterwards: statement_timeout %s, %v; want 1h", timeout, err)
	}
}

// TestExplain is about rights, which the embedded ClickHouse can't take from a user.
func TestExplain(t *testing.T) {
	t.Parallel()
	for code, want := range map[int32]string{497: "SELECT", 164: "readonly = 2", 60: ""} {
		refused := fmt.Errorf("query: %w", &clickhouse.Exception{Code: code, Message: "refused"})
		setup, ok := errors.AsType[*SetupError](explain(refused))
		if ok != (want != "") || ok && !strings.Contains(setup.Hint, want) {
			t.Errorf("code %d: %+v, want a hint with %q", code, setup, want)
		}
	}
}
