package audit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/audit"
)

func TestSame(t *testing.T) {
	t.Parallel()
	t.Run("nothing on both sides is the same", func(t *testing.T) {
		t.Parallel()
		wantFound(t, newPair(t).run(t), none())
	})
	t.Run("equal events are the same, over both protocols, and counted by day", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 10_000)
		for _, address := range []string{p.db.ClickHouseURL, p.db.ClickHouseHTTPURL} {
			report := p.run(t, func(c *audit.Config) { c.ClickHouseURL = address })
			wantFound(t, report, none())
			if report.Postgres != 10_000 || report.ClickHouse != 10_000 || len(report.Days) != 3 {
				t.Errorf("%d and %d events in %d days; want 10000 in 3", report.Postgres, report.ClickHouse, len(report.Days))
			}
			for i, want := range []uint64{3999, 4000, 2001} {
				if day := report.Days[i]; day.Postgres != want || day.ClickHouse != want || day.Checksum.Postgres != day.Checksum.ClickHouse {
					t.Errorf("day %s: %+v; want %d events", day.Date, day, want)
				}
			}
			if len(report.NotCompared) > 0 {
				t.Errorf("not compared: %q", report.NotCompared)
			}
		}
	})
}

func TestDifferences(t *testing.T) {
	t.Parallel()
	first := func(kind audit.Kind) map[audit.Kind][]string { return map[audit.Kind][]string{kind: {"7@2026-03-01"}} }
	alter := func(assignment string) []string {
		return []string{`ALTER TABLE event_log UPDATE ` + assignment + ` WHERE id = 7 SETTINGS mutations_sync = 1`}
	}
	for name, c := range map[string]struct {
		postgres, clickhouse []string
		want                 map[audit.Kind][]string
	}{
		"a row that ClickHouse lost is missing": {
			clickhouse: []string{`DELETE FROM event_log WHERE id IN (7, 4100)`},
			want:       map[audit.Kind][]string{audit.Missing: {"7@2026-03-01", "4100@2026-03-02"}},
		},
		"a row that is there twice is duplicated, even when another one is missing": {
			clickhouse: []string{again(`id = 7`, `id AS id`), `DELETE FROM event_log WHERE id = 8`},
			want:       map[audit.Kind][]string{audit.Duplicated: {"7@2026-03-01"}, audit.Missing: {"8@2026-03-01"}},
		},
		"a row that is in ClickHouse and not marked is unmarked": {
			postgres: []string{`UPDATE event_outbox SET processed = false, processed_at = NULL WHERE id = 7`},
			want:     first(audit.Unmarked),
		},
		"a row that Postgres does not have is unknown": {
			postgres: []string{`DELETE FROM event_outbox WHERE id = 7`},
			want:     first(audit.Unknown),
		},
		"another context is different":     {clickhouse: alter(`event_context = '{}'`), want: first(audit.Different)},
		"another environment is different": {clickhouse: alter(`environment = 'test'`), want: first(audit.Different)},
		"another version is different":     {clickhouse: alter(`metadata_version = 2`), want: first(audit.Different)},
		"another trace is different":       {clickhouse: alter(`trace_id = ''`), want: first(audit.Different)},
		"another type is different": {
			clickhouse: []string{again(`id = 7`, `'other' AS event_type`), `DELETE FROM event_log WHERE id = 7 AND event_type <> 'other'`},
			want:       first(audit.Different),
		},
		"a microsecond is different": {
			postgres: []string{`UPDATE event_outbox SET event_date_time = event_date_time + interval '1 microsecond' WHERE id = 7`},
			want:     first(audit.Different),
		},
		"an event on another day is different, and neither missing nor unknown": {
			postgres: []string{`UPDATE event_outbox SET event_date_time = event_date_time - interval '80 years' WHERE id = 7`},
			want:     map[audit.Kind][]string{audit.Different: {"7@1946-03-01"}},
		},
		"an event that was marked although ClickHouse can't hold it is missing": {
			postgres:   []string{`UPDATE event_outbox SET event_date_time = 'infinity' WHERE id = 7`},
			clickhouse: []string{`DELETE FROM event_log WHERE id = 7`},
			want:       map[audit.Kind][]string{audit.Missing: {"7@infinite"}},
		},
		"all kinds at once": {
			postgres: []string{
				`UPDATE event_outbox SET processed = false WHERE id = 3`,
				`DELETE FROM event_outbox WHERE id = 4`,
				`UPDATE event_outbox SET environment = '' WHERE id = 5`,
			},
			clickhouse: []string{`DELETE FROM event_log WHERE id = 1`, again(`id = 2`, `id AS id`)},
			want: map[audit.Kind][]string{
				audit.Missing: {"1@2026-03-01"}, audit.Duplicated: {"2@2026-03-01"}, audit.Unmarked: {"3@2026-03-01"},
				audit.Unknown: {"4@2026-03-01"}, audit.Different: {"5@2026-03-01"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := delivered(t, 5000)
			for _, sql := range c.postgres {
				p.exec(t, sql)
			}
			for _, sql := range c.clickhouse {
				p.execClickHouse(t, sql)
			}
			report := p.run(t)
			wantFound(t, report, c.want)
			for _, twice := range report.Differences[audit.Duplicated].Events {
				if twice.Rows != 2 {
					t.Errorf("%d rows of a duplicated event, want 2", twice.Rows)
				}
			}
		})
	}
}

func TestNoDifferences(t *testing.T) {
	t.Parallel()
	t.Run("rows that wait, are in flight or in quarantine are counted apart", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 1000)
		p.exec(t, `UPDATE event_outbox SET processed = false WHERE id <= 40`)
		p.execClickHouse(t, `DELETE FROM event_log WHERE id <= 30`) // 1 to 30 wait, 31 to 40 are in flight
		p.exec(t, `INSERT INTO sluicebox.batch (slot, seq, epoch, token, ids, rows, bytes, end_lsn, end_ordinal, ack_lsn, partition, sealed_by)
			VALUES ($1, 1, 1, 'token', '{[25,41)}', 16, 1, '0/1', 1, '0/1', 202603, 'delay')`, slot)
		p.exec(t, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal) SELECT $1, n, 'poison', '0/1', n FROM generate_series(1, 5) n`, slot)
		report := p.run(t)
		wantFound(t, report, none())
		if report.Waiting != 35 || report.InFlight != 10 || report.Quarantined != 5 || report.Postgres != 960 {
			t.Errorf("%d wait, %d in flight, %d in quarantine, %d processed; want 35, 10, 5, 960", report.Waiting, report.InFlight, report.Quarantined, report.Postgres)
		}
		p.exec(t, `DELETE FROM event_outbox WHERE id = 40`) // a commit that a standby holds back looks so
		wantFound(t, p.run(t), none())
		p.exec(t, `UPDATE sluicebox.batch SET state = 'settled', marked = rows`)
		wantFound(t, p.run(t), map[audit.Kind][]string{
			audit.Unknown:  {"40@2026-03-01"},
			audit.Unmarked: {"31@2026-03-01", "32@2026-03-01", "33@2026-03-01", "34@2026-03-01", "35@2026-03-01", "36@2026-03-01", "37@2026-03-01", "38@2026-03-01", "39@2026-03-01"},
		})
	})
	t.Run("rows that the retention removed from Postgres are expired, those it can't have removed are unknown", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 10_000)
		p.exec(t, `DELETE FROM event_outbox WHERE id <= 5000`) // a whole day, and a part of the next one
		p.exec(t, `UPDATE sluicebox.stream SET trimmed_before = now() - interval '23 hours' WHERE slot = $1`, slot)
		report := p.run(t)
		wantFound(t, report, none())
		if report.Expired != 5000 || report.Days[0].Expired != 3999 || report.Days[1].Expired != 1001 {
			t.Errorf("%d expired, %d and %d of them on the first days; want 5000, 3999, 1001", report.Expired, report.Days[0].Expired, report.Days[1].Expired)
		}
		p.exec(t, insertEvents+` WHERE n = 100`, 1, 100, false)
		p.exec(t, `ALTER TABLE event_outbox ALTER id SET GENERATED BY DEFAULT`)
		p.exec(t, `UPDATE event_outbox SET id = 100 WHERE id > 10000`) // all that is left of its day
		wantFound(t, p.run(t), map[audit.Kind][]string{audit.Unmarked: {"100@2026-03-01"}})
		p.exec(t, `DELETE FROM event_outbox WHERE id IN (100, 6000)`)
		p.execClickHouse(t, `ALTER TABLE event_log UPDATE ingested_at = now64(3) - INTERVAL 10 HOUR WHERE id IN (1, 6000) SETTINGS mutations_sync = 1`)
		p.execClickHouse(t, `DELETE FROM event_log WHERE id = 7000`)
		p.exec(t, `UPDATE event_outbox SET processed = false WHERE id = 8000`)
		report = p.run(t)
		wantFound(t, report, map[audit.Kind][]string{
			audit.Unknown: {"1@2026-03-01", "6000@2026-03-02"}, audit.Missing: {"7000@2026-03-02"}, audit.Unmarked: {"8000@2026-03-03"},
		})
		if report.Expired != 4999 {
			t.Errorf("%d expired, want 4999", report.Expired)
		}
	})
	t.Run("rows of another stream are left alone", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 1000)
		p.execClickHouse(t, again(`id < 100`, `'another' AS source`))
		wantFound(t, p.run(t), none())
	})
}

func TestPeriod(t *testing.T) {
	t.Parallel()
	p := delivered(t, 12_000)
	at := func(text string) time.Time {
		parsed, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		return parsed
	}
	p.execClickHouse(t, `DELETE FROM event_log WHERE id IN (10, 5000, 11990)`)
	p.exec(t, `UPDATE event_outbox SET event_date_time = event_date_time + interval '20 days' WHERE id = 5001`)
	second := func(c *audit.Config) { c.Since, c.Until = at("2026-03-02T00:00:00Z"), at("2026-03-03T00:00:00Z") }

	report := p.run(t, second)
	wantFound(t, report, map[audit.Kind][]string{
		audit.Missing:   {"5000@2026-03-02"},
		audit.Different: {"5001@2026-03-22"}, // beyond the period on one side, and still found there
	})
	if report.Postgres != 3999 || report.ClickHouse != 3999 {
		t.Errorf("%d and %d events, want 3999: those of one day but for one", report.Postgres, report.ClickHouse)
	}
	p.exec(t, `UPDATE sluicebox.stream SET trimmed_before = now() WHERE slot = $1`, slot)
	if report := p.run(t, second); report.Expired > 0 || report.Differences[audit.Different].Count != 1 {
		t.Errorf("an event that Postgres has on another day is taken for one that the retention removed: %+v", report)
	}
	report = p.run(t, func(c *audit.Config) { c.Since = at("2026-03-03T12:00:00+02:00") })
	wantFound(t, report, map[audit.Kind][]string{audit.Missing: {"11990@2026-03-03"}, audit.Different: {"5001@2026-03-22"}})
}

// TestWhileDelivering audits while batches are planned, written and settled. The events look old, so no difference is looked at
// again: the order of the looks alone must tell.
func TestWhileDelivering(t *testing.T) {
	t.Parallel()
	p := delivered(t, 1000)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	var batches atomic.Int64
	go func() {
		var err error
		for n := 0; err == nil; n++ {
			err = p.deliverBatch(ctx, p.pg, n+1, 1001+50*n)
			batches.Add(1)
		}
		if ctx.Err() != nil {
			err = nil
		}
		done <- err
	}()
	for n := 0; n < 20 || batches.Load() < 20 && len(done) == 0; n++ { // an insert waits for the disk, an audit does not
		wantFound(t, p.run(t), none())
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantFound(t, p.run(t), none())
}

// TestOrderOfLooks delivers events in the midst of a look at them.
func TestOrderOfLooks(t *testing.T) {
	t.Parallel()
	ids := []int64{1001, 1025, 1050}
	type result struct {
		report *audit.Report
		err    error
	}
	look := func(t *testing.T, a *audit.Audit) <-chan result {
		t.Helper()
		done := make(chan result, 1)
		go func() {
			report, err := a.Look(t.Context(), ids)
			done <- result{report, err}
		}()
		return done
	}
	check := func(t *testing.T, r result) {
		t.Helper()
		if r.err != nil {
			t.Fatal(r.err)
		}
		wantFound(t, r.report, none())
	}
	t.Run("what ClickHouse lacked before Postgres was asked is not missing", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 1000)
		lock, err := p.pg.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = lock.Rollback(t.Context()) }()
		if _, err := lock.Exec(t.Context(), `LOCK TABLE sluicebox.batch`); err != nil {
			t.Fatal(err)
		}
		done := look(t, open(t, p.daemon, p.config()))
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for waits := false; !waits; <-tick.C {
			err := p.pg.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'sluicebox.batch'::regclass AND NOT granted)`).Scan(&waits)
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := p.deliverBatch(t.Context(), lock, 1, 1001); err != nil {
			t.Fatal(err)
		}
		if err := lock.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, <-done)
	})
	t.Run("what Postgres had not marked before ClickHouse was asked is not unmarked", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 1000)
		l, config := &link{hold: make(chan struct{}), held: make(chan struct{})}, p.config()
		config.ClickHouseURL = l.through(t, p.db.ClickHouseURL)
		a := open(t, p.daemon, config)
		l.arm()
		done := look(t, a)
		<-l.held
		if err := p.deliverBatch(t.Context(), p.pg, 1, 1001); err != nil {
			t.Fatal(err)
		}
		close(l.hold)
		check(t, <-done)
	})
}

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// deliverBatch does with 50 new events what the daemon does.
func (p *pair) deliverBatch(ctx context.Context, pg execer, seq, low int) error {
	if _, err := pg.Exec(ctx, insertEvents, low, low+49, false); err != nil {
		return err
	}
	if _, err := pg.Exec(ctx, `
INSERT INTO sluicebox.batch (slot, seq, epoch, token, ids, rows, bytes, end_lsn, end_ordinal, ack_lsn, partition, sealed_by)
VALUES ($1, $2::bigint, 1, 'token', int8multirange(int8range($3::bigint, $3::bigint + 50)), 50, 1, '0/1', 1, '0/1', 202603, 'delay')`, slot, seq, low); err != nil {
		return err
	}
	if err := p.ch.Exec(ctx, copyEvents(low, low+49)); err != nil {
		return err
	}
	_, err := pg.Exec(ctx, `
WITH marked AS (UPDATE event_outbox SET processed = true WHERE id BETWEEN $2 AND $2 + 49)
UPDATE sluicebox.batch SET state = 'settled', marked = rows WHERE slot = $1 AND seq = $3`, slot, low, seq)
	return err
}

// TestManyBuckets has so many events that they are in several buckets, read by several statements.
func TestManyBuckets(t *testing.T) {
	t.Parallel()
	const n = 300_000 // a statement is for 4 buckets of 65 536
	p := delivered(t, n)
	wantFound(t, p.run(t), none())
	p.execClickHouse(t, `DELETE FROM event_log WHERE id % 25000 = 0`)
	p.execClickHouse(t, again(`id = 299999`, `id AS id`))
	report := p.run(t)
	var missing []string
	for id := 25_000; id <= n; id += 25_000 {
		missing = append(missing, fmt.Sprintf("%d@%s", id, time.Date(2026, 3, 1+id/4000, 0, 0, 0, 0, time.UTC).Format(time.DateOnly)))
	}
	wantFound(t, report, map[audit.Kind][]string{audit.Missing: missing, audit.Duplicated: {"299999@2026-05-14"}})

	p.execClickHouse(t, `DELETE FROM event_log WHERE id BETWEEN 200001 AND 210000`)
	report = p.run(t)
	if f := report.Differences[audit.Missing]; f.Count != 10_012 || len(f.Events) != 1000 {
		t.Errorf("%d missing, %d listed; want 10012, 1000", f.Count, len(f.Events))
	}
}

func TestSparseIDs(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	// Ids with the time in their upper bits, and both ends of what an id can be.
	p.exec(t, `
INSERT INTO event_outbox (id, event_type, event_date_time, environment, event_context, processed, processed_at) OVERRIDING SYSTEM VALUE
SELECT id, 'thing has happened', '2026-03-01', 'test', '{}', true, now() - interval '1 day'
FROM (SELECT (n::bigint * 7919) << 22 AS id FROM generate_series(1, 3000) n UNION ALL VALUES (0::bigint), (9223372036854775807)) ids`)
	p.execClickHouse(t, `
INSERT INTO event_log (source, id, event_type, event_date_time, environment, event_context, metadata_version)
SELECT '`+slot+`', id, 'thing has happened', '2026-03-01', 'test', '{}', 1
FROM (SELECT bitShiftLeft(toUInt64((number + 1) * 7919), 22) AS id FROM numbers(3000) UNION ALL SELECT 0 UNION ALL SELECT 9223372036854775807)`)
	wantFound(t, p.run(t), none())
	p.execClickHouse(t, `DELETE FROM event_log WHERE id IN (0, 9223372036854775807)`)
	p.exec(t, `ALTER TABLE event_outbox ALTER id SET GENERATED BY DEFAULT`)
	p.exec(t, `UPDATE event_outbox SET id = -1 WHERE id = 7919::bigint << 22`)
	wantFound(t, p.run(t), map[audit.Kind][]string{
		audit.Missing: {"-1@2026-03-01", "0@2026-03-01", "9223372036854775807@2026-03-01"},
		audit.Unknown: {fmt.Sprintf("%d@2026-03-01", 7919<<22)},
	})
}

// TestInterrupted cuts each side off while the hashes of many events are on their way. Later connections work.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	p := delivered(t, 100_000)
	p.execClickHouse(t, `DELETE FROM event_log WHERE id IN (1, 70000)`)
	check := func(t *testing.T, pool *pgxpool.Pool, config audit.Config, l *link) {
		t.Helper()
		report, err := open(t, pool, config).Run(t.Context())
		if err == nil || report != nil {
			t.Errorf("a report although the connection was cut: %+v", report)
		}
		if !l.wasCut() {
			t.Errorf("the connection was not cut; the error is %v", err)
		}
	}
	const limit = 200_000 // of some million bytes
	t.Run("Postgres", func(t *testing.T) {
		t.Parallel()
		l := &link{limit: limit}
		pool, err := pgxpool.New(t.Context(), l.through(t, p.db.Daemon))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		check(t, pool, p.config(), l)
	})
	for name, url := range map[string]string{"ClickHouse": p.db.Warehouse, "ClickHouse over HTTP": p.db.WarehouseHTTP} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, config := &link{limit: limit}, p.config()
			config.ClickHouseURL = l.through(t, url)
			check(t, p.daemon, config, l)
		})
	}
}

func TestSetup(t *testing.T) {
	t.Parallel()
	p := delivered(t, 10)
	p.exec(t, `INSERT INTO sluicebox.stream (slot, outbox) VALUES ('other', 'public.other')`)
	p.execClickHouse(t, `CREATE TABLE bare (id UInt64, event_type String) ENGINE = MergeTree ORDER BY id`)
	for name, c := range map[string]struct {
		change func(*audit.Config)
		want   string
	}{
		"a slot that no daemon ever led":       {func(c *audit.Config) { c.Slot = "nobody" }, "no daemon has ever run"},
		"a slot of another table":              {func(c *audit.Config) { c.Slot = "other" }, "belongs to table public.other"},
		"an outbox that is not there":          {func(c *audit.Config) { c.Table = "nothing" }, "no table public.nothing"},
		"a target that is not there":           {func(c *audit.Config) { c.TargetTable = "nothing" }, "no table nothing"},
		"a target without the time":            {func(c *audit.Config) { c.TargetTable = "bare" }, "lacks column event_date_time"},
		"an address that is not of ClickHouse": {func(c *audit.Config) { c.ClickHouseURL = "://secret@h" }, "CLICKHOUSE_URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := p.config()
			c.change(&config)
			_, err := audit.Open(t.Context(), p.daemon, config)
			setup, ok := errors.AsType[*audit.SetupError](err)
			if !ok || !strings.Contains(setup.Reason, c.want) || setup.Hint == "" {
				t.Errorf("error %v, want a SetupError with %q and a hint", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

// TestOwnTables has tables with as few columns, and as other ones, as the daemon can deliver between.
func TestOwnTables(t *testing.T) {
	t.Parallel()
	p := delivered(t, 1000)
	p.exec(t, `ALTER TABLE event_outbox DROP COLUMN trace_context`)
	p.execClickHouse(t, `CREATE TABLE mine (id UInt64, event_type LowCardinality(String), event_date_time DateTime64(3), environment String,
		event_context JSON, metadata_version Int32) ENGINE = MergeTree ORDER BY id`)
	p.execClickHouse(t, `INSERT INTO mine SELECT id, event_type, event_date_time, environment, event_context, metadata_version FROM event_log`)
	mine := func(c *audit.Config) { c.TargetTable = "mine" }
	report := p.run(t, mine)
	wantFound(t, report, none())
	if len(report.NotCompared) != 3 {
		t.Errorf("not compared: %q; want the time, the trace and the context", report.NotCompared)
	}
	p.execClickHouse(t, `ALTER TABLE mine UPDATE environment = 'other' WHERE id = 7 SETTINGS mutations_sync = 1`)
	p.execClickHouse(t, `DELETE FROM mine WHERE id = 8`)
	p.exec(t, `DELETE FROM event_outbox WHERE id = 9`)
	wantFound(t, p.run(t, mine), map[audit.Kind][]string{
		audit.Different: {"7@2026-03-01"}, audit.Missing: {"8@2026-03-01"}, audit.Unknown: {"9@2026-03-01"},
	})
	p.exec(t, `UPDATE sluicebox.stream SET trimmed_before = now() - interval '1 year' WHERE slot = $1`, slot)
	report = p.run(t, mine) // the table does not tell when a row came, so it may have expired
	wantFound(t, report, map[audit.Kind][]string{audit.Different: {"7@2026-03-01"}, audit.Missing: {"8@2026-03-01"}})
}
