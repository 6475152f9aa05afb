package ledger_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/migrations"
)

// repeatable is a pool as cmd/cdc makes it, of a role whose transactions are REPEATABLE READ by default.
func repeatable(t *testing.T, pool *pgxpool.Pool, role string) *pgxpool.Pool {
	t.Helper()
	exec(t, pool, `ALTER ROLE `+role+` IN DATABASE `+pool.Config().ConnConfig.Database+` SET default_transaction_isolation = 'repeatable read'`)
	config := pool.Config()
	config.ConnConfig.User = role
	config.AfterConnect = ledger.Prepare
	own, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	return own
}

// TestDropPartitionOfARoleWithSnapshots drops a partition in which a row is committed meanwhile.
func TestDropPartitionOfARoleWithSnapshots(t *testing.T) {
	t.Parallel()
	pool, slot, _ := partitioned(t)
	exec(t, pool, `UPDATE sluicebox.stream SET holder = NULL`)
	exec(t, pool, `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	l := ledger.New(repeatable(t, pool, migrations.OwnerRole), slot, "public", "event_outbox")
	lead(t, l, patience)
	exec(t, pool, `DELETE FROM event_outbox WHERE id = 5`)
	dropped := false
	for range 20 {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `INSERT INTO event_outbox (id, event_type, environment, event_context) VALUES (5, 't', 'test', '{}')`); err != nil {
			t.Fatal(err)
		}
		outcome := make(chan error, 1)
		go func() {
			var err error
			dropped, err = l.DropPartition(t.Context(), "public.p0", time.Hour)
			outcome <- err
		}()
		err = commitMeanwhile(t, pool, tx, outcome)
		if err != nil || dropped || len(ids(t, pool, `SELECT id FROM event_outbox WHERE id = 5`)) == 0 {
			t.Fatalf("dropped: %t, %v; an unsettled row may be gone", dropped, err)
		}
		exec(t, pool, `DELETE FROM event_outbox WHERE id = 5`)
	}
}

// TestPlanOfARoleWithSnapshots plans while a settlement holds the stream's row.
func TestPlanOfARoleWithSnapshots(t *testing.T) {
	t.Parallel()
	pool, slot := newPool(t)
	l := ledger.New(repeatable(t, pool, migrations.DaemonRole), slot, "public", "event_outbox")
	lead(t, l, patience)
	b := publish(t, pool, 3)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `UPDATE sluicebox.stream SET heartbeat_at = clock_timestamp()`); err != nil { // as a settlement does
		t.Fatal(err)
	}
	outcome := make(chan error, 1)
	go func() { outcome <- l.Plan(t.Context(), b) }()
	for len(outcome) == 0 && len(ids(t, pool, `SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)) == 0 {
		continue
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-outcome; err != nil {
		t.Error(err)
	}
	planned, err := l.Planned(t.Context())
	if err != nil || len(planned) != 1 {
		t.Errorf("%d batches are planned, %v; want the one", len(planned), err)
	}
}

// TestDropAskedForByAnotherShare has rows of a partition asked for by a stream that carries another share of the outbox.
func TestDropAskedForByAnotherShare(t *testing.T) {
	t.Parallel()
	pool, _, l := partitioned(t)
	exec(t, pool, `INSERT INTO sluicebox.stream (slot, phase, outbox) VALUES ('other_share', 'stream', 'public.event_outbox')`)
	exec(t, pool, `INSERT INTO sluicebox.redelivery (slot, id) VALUES ('other_share', 15)`) // by cdc audit --repair
	if got, want := dropPast(t, pool, l), "p1 p5 p6"; got != want {
		t.Errorf("left are %s, want %s", got, want)
	}
}

// TestTrimPassesOverRowsWithoutATime has rows that were imported as processed.
func TestTrimPassesOverRowsWithoutATime(t *testing.T) {
	t.Parallel()
	pool, _, l := leading(t)
	all := publish(t, pool, 9).IDs
	exec(t, pool, age, all[:8])
	exec(t, pool, `UPDATE event_outbox SET processed_at = NULL WHERE id = ANY ($1)`, all[:3]) // imported as processed, before this daemon ran
	trimAll(t, l, 3)
	if n := len(ids(t, pool, `SELECT id FROM event_outbox`)); n != 4 {
		t.Errorf("%d rows are left, want the 3 without a time, and the unprocessed one", n)
	}
}
