package ledger_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/migrations"
)

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func ids(t *testing.T, pool *pgxpool.Pool, query string, args ...any) []int64 {
	t.Helper()
	rows, err := pool.Query(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// witness notes of each row that is removed whether it might be: settled before the time that the ledger notes.
func witness(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, `
CREATE TABLE removed (id bigint, rightly boolean);
CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO removed SELECT OLD.id, coalesce(OLD.processed AND OLD.processed_at < trimmed_before, false) FROM sluicebox.stream;
    RETURN OLD;
END $$ SECURITY DEFINER;
CREATE TRIGGER witness BEFORE DELETE ON event_outbox FOR EACH ROW EXECUTE FUNCTION witness()`)
}

// trimAll takes steps until there is nothing more to do, and returns how many rows each has removed.
func trimAll(t *testing.T, l *ledger.Ledger, limit int) (removed []int64) {
	t.Helper()
	after := int64(math.MinInt64)
	for {
		step, err := l.TrimOutbox(t.Context(), time.Hour, after, limit)
		if ledger.Retriable(err) { // a lock time-out, on a busy machine: the next one goes on
			return removed
		}
		if err != nil {
			t.Error(err)
			return removed
		}
		removed, after = append(removed, step.Rows), step.Last
		if !step.More {
			return removed
		}
	}
}

const age = `UPDATE event_outbox SET processed = true, processed_at = now() - interval '1 day' WHERE id = ANY ($1)`

func TestTrimOutbox(t *testing.T) {
	t.Parallel()
	t.Run("removes what is settled and old, step by step, and nothing else", func(t *testing.T) {
		t.Parallel()
		pool, slot, l := leading(t)
		witness(t, pool)
		all := publish(t, pool, 12).IDs
		exec(t, pool, age, all[:10])
		exec(t, pool, `UPDATE event_outbox SET processed = false WHERE id = $1`, all[1])
		exec(t, pool, `UPDATE event_outbox SET processed_at = NULL WHERE id = $1`, all[2])
		exec(t, pool, `UPDATE event_outbox SET processed_at = now() WHERE id = $1`, all[5])
		exec(t, pool, `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, $2)`, slot, all[7])
		if diff := cmp.Diff([]int64{1, 2, 2, 1, 0}, trimAll(t, l, 3)); diff != "" {
			t.Errorf("rows removed by each step: %s", diff)
		}
		left := []int64{all[1], all[2], all[5], all[7], all[10], all[11]}
		if diff := cmp.Diff(left, ids(t, pool, `SELECT id FROM event_outbox ORDER BY id`)); diff != "" {
			t.Errorf("rows that are left: %s", diff)
		}
		if wrongly := ids(t, pool, `SELECT id FROM removed WHERE NOT rightly`); len(wrongly) > 0 {
			t.Errorf("rows %d were removed before the ledger told so", wrongly)
		}
	})
	t.Run("ends at the first window in which nothing is old enough", func(t *testing.T) {
		t.Parallel()
		pool, _, l := leading(t)
		all := publish(t, pool, 9).IDs
		exec(t, pool, age, all)
		exec(t, pool, `UPDATE event_outbox SET processed_at = now() WHERE id = ANY ($1)`, all[3:6])
		if diff := cmp.Diff([]int64{3, 0}, trimAll(t, l, 3)); diff != "" {
			t.Errorf("rows removed by each step: %s", diff)
		}
	})
	t.Run("passes over windows of rows in quarantine or asked for again", func(t *testing.T) {
		t.Parallel()
		pool, slot, l := leading(t)
		all := publish(t, pool, 9).IDs
		exec(t, pool, age, all[3:])
		exec(t, pool, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal) SELECT $1, unnest($2::bigint[]), 'r', '0/1', 1`, slot, all[:3])
		exec(t, pool, `INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, unnest($2::bigint[])`, slot, all[3:6])
		trimAll(t, l, 3)
		if diff := cmp.Diff(all[:6], ids(t, pool, `SELECT id FROM event_outbox ORDER BY id`)); diff != "" {
			t.Errorf("rows that are left: %s", diff)
		}
	})
	t.Run("does nothing once another daemon leads", func(t *testing.T) {
		t.Parallel()
		pool, _, l := leading(t)
		exec(t, pool, age, publish(t, pool, 3).IDs)
		exec(t, pool, `UPDATE sluicebox.stream SET epoch = epoch + 1`)
		if _, err := l.TrimOutbox(t.Context(), time.Hour, 0, 10); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("error is %v, want ErrFenced", err)
		}
		if n := len(ids(t, pool, `SELECT id FROM event_outbox`)); n != 3 || len(ids(t, pool, `SELECT 1 FROM sluicebox.stream WHERE trimmed_before IS NOT NULL`)) > 0 {
			t.Errorf("%d of 3 rows are left", n)
		}
	})
	t.Run("spares a row that is asked for again at the last moment", func(t *testing.T) {
		t.Parallel()
		pool, slot, l := leading(t)
		all := publish(t, pool, 2).IDs
		exec(t, pool, age, all)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		if _, err := tx.Exec(t.Context(), `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, $2)`, slot, all[0]); err != nil {
			t.Fatal(err)
		}
		outcome := make(chan error, 1)
		go func() {
			_, err := l.TrimOutbox(t.Context(), time.Hour, 0, 10)
			outcome <- err
		}()
		if err := commitMeanwhile(t, pool, tx, outcome); err != nil {
			t.Error(err)
		}
		if n := len(ids(t, pool, `SELECT id FROM event_outbox WHERE id = $1`, all[0])); n != 1 {
			t.Error("it is gone")
		}
	})
	t.Run("waits for nobody for long", func(t *testing.T) {
		t.Parallel()
		pool, _, l := leading(t)
		all := publish(t, pool, 1).IDs
		exec(t, pool, age, all)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		if _, err := tx.Exec(t.Context(), `SELECT FROM event_outbox FOR UPDATE`); err != nil {
			t.Fatal(err)
		}
		if _, err := l.TrimOutbox(t.Context(), time.Hour, 0, 10); !ledger.Retriable(err) {
			t.Errorf("error is %v, want a lock time-out", err)
		}
	})
}

func TestTrimOutboxUnderLoad(t *testing.T) {
	t.Parallel()
	pool, _, l := leading(t)
	witness(t, pool)
	const batches, rows = 60, 20
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			trimAll(t, l, 7)
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	var written []int64
	for i := range batches {
		b := publish(t, pool, rows)
		written = append(written, b.IDs...)
		if i%3 == 0 {
			continue // not settled
		}
		if err := errors.Join(l.Plan(t.Context(), b), l.Settle(t.Context(), b)); err != nil {
			t.Error(err)
		}
		exec(t, pool, age, b.IDs)
	}
	close(stop)
	<-stopped
	// Every unsettled window ends a search, so the last rows are removed in one step.
	if _, err := l.TrimOutbox(t.Context(), time.Hour, math.MinInt64, batches*rows+1); err != nil {
		t.Fatal(err)
	}
	if n := len(ids(t, pool, `SELECT id FROM event_outbox WHERE NOT processed`)); n != batches/3*rows {
		t.Errorf("%d unsettled rows are left of %d", n, batches/3*rows)
	}
	if n := len(ids(t, pool, `SELECT id FROM event_outbox WHERE processed`)); n != 0 {
		t.Errorf("%d settled rows are left", n)
	}
	if wrongly := ids(t, pool, `SELECT id FROM removed WHERE NOT rightly`); len(wrongly) > 0 {
		t.Errorf("rows %d were removed and not settled and old", wrongly)
	}
	slices.Sort(written)
	if diff := cmp.Diff(written, ids(t, pool, `SELECT id FROM event_outbox UNION ALL SELECT id FROM removed ORDER BY 1`)); diff != "" {
		t.Errorf("rows written, and rows left or removed: %s", diff)
	}
}

// partitioned is a ledger that leads, over an outbox with partitions p0 to p5 of ten ids each, where p5 is the one that new ids go to.
// Every row is settled and old.
func partitioned(t *testing.T) (*pgxpool.Pool, string, *ledger.Ledger) {
	t.Helper()
	pool, slot := newPool(t)
	exec(t, pool, `
ALTER TABLE event_outbox RENAME TO plain;
CREATE SEQUENCE ids MINVALUE 0;
CREATE TABLE event_outbox (LIKE plain INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id);
ALTER TABLE event_outbox ALTER id SET DEFAULT nextval('ids');
ALTER SEQUENCE ids OWNED BY event_outbox.id`)
	for i := range 7 {
		exec(t, pool, fmt.Sprintf(`CREATE TABLE p%d PARTITION OF event_outbox FOR VALUES FROM (%d) TO (%d)`, i, 10*i, 10*i+10))
	}
	exec(t, pool, `INSERT INTO event_outbox (event_type, environment, event_context, processed, processed_at)
		SELECT 't', 'test', '{}', true, now() - interval '1 day' FROM generate_series(0, 55)`)
	// Only an owner may drop a partition.
	exec(t, pool, `ALTER TABLE event_outbox OWNER TO sluicebox_owner; ALTER SEQUENCE ids OWNER TO sluicebox_owner`)
	for i := range 7 {
		exec(t, pool, fmt.Sprintf(`ALTER TABLE p%d OWNER TO sluicebox_owner`, i))
	}
	l := ledger.New(as(t, pool, migrations.OwnerRole), slot, "public", "event_outbox")
	lead(t, l, patience)
	return pool, slot, l
}

// dropPast drops what can be dropped and returns the names of what is left.
func dropPast(t *testing.T, pool *pgxpool.Pool, l *ledger.Ledger) string {
	t.Helper()
	past, isPartitioned, err := l.PastPartitions(t.Context())
	if err != nil || !isPartitioned {
		t.Fatalf("partitioned %t, %v", isPartitioned, err)
	}
	for _, partition := range past {
		dropped, err := l.DropPartition(t.Context(), partition, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if there := len(ids(t, pool, `SELECT 1 WHERE to_regclass($1) IS NOT NULL`, partition)) > 0; there == dropped {
			t.Errorf("%s: dropped %t, there %t", partition, dropped, there)
		}
	}
	return left(t, pool)
}

func left(t *testing.T, pool *pgxpool.Pool) (names string) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY inhrelid::regclass::text) FROM pg_inherits
		WHERE inhparent = 'event_outbox'::regclass`).Scan(&names)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// commitMeanwhile commits tx when a step waits for a lock, and returns the outcome of the step. On a busy machine the wait may be over
// before the commit: a lock time-out is as good.
func commitMeanwhile(t *testing.T, pool *pgxpool.Pool, tx pgx.Tx, outcome chan error) error {
	t.Helper()
	const waiting = `SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`
	for len(outcome) == 0 && len(ids(t, pool, waiting)) == 0 {
		continue
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := <-outcome
	if ledger.Retriable(err) {
		return nil
	}
	return err
}

func TestDropPartition(t *testing.T) {
	t.Parallel()
	t.Run("spares those that hold anything but old settled rows, and those that new ids go to", func(t *testing.T) {
		t.Parallel()
		pool, slot, l := partitioned(t)
		exec(t, pool, `UPDATE event_outbox SET processed_at = now() WHERE id = 5`)         // p0: young
		exec(t, pool, `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, 15)`, slot) // p1: asked for again
		exec(t, pool, `UPDATE event_outbox SET processed = false, processed_at = NULL WHERE id IN (29, 31, 45)`)
		exec(t, pool, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal, dropped_at) VALUES
			($1, 29, 'given up just now', '0/1', 1, now()), ($1, 31, 'not given up', '0/1', 1, NULL),
			($1, 45, 'given up long ago', '0/1', 1, now() - interval '1 day')`, slot)
		if got, want := dropPast(t, pool, l), "p0 p1 p2 p3 p5 p6"; got != want {
			t.Errorf("left are %s, want %s", got, want)
		}
		exec(t, pool, `DELETE FROM sluicebox.redelivery`)
		exec(t, pool, `UPDATE event_outbox SET processed = true, processed_at = now() - interval '1 day' WHERE id < 50`)
		if got, want := dropPast(t, pool, l), "p5 p6"; got != want {
			t.Errorf("left are %s, want %s", got, want)
		}
		if n := len(ids(t, pool, `SELECT 1 FROM sluicebox.stream WHERE trimmed_before > now() - interval '2 hours'`)); n != 1 {
			t.Error("the ledger does not tell that rows were removed")
		}
	})
	t.Run("drops nothing once another daemon leads", func(t *testing.T) {
		t.Parallel()
		pool, _, l := partitioned(t)
		exec(t, pool, `UPDATE sluicebox.stream SET epoch = epoch + 1`)
		if _, err := l.DropPartition(t.Context(), "public.p0", time.Hour); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("error is %v, want ErrFenced", err)
		}
		if got, want := left(t, pool), "p0 p1 p2 p3 p4 p5 p6"; got != want {
			t.Errorf("left are %s, want %s", got, want)
		}
	})
	t.Run("sees a row that is committed while it waits for the lock, and does not wait for long", func(t *testing.T) {
		t.Parallel()
		pool, _, l := partitioned(t)
		exec(t, pool, `DELETE FROM event_outbox WHERE id = 5`)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }()
		if _, err := tx.Exec(t.Context(), `INSERT INTO event_outbox (id, event_type, environment, event_context) VALUES (5, 't', 'test', '{}')`); err != nil {
			t.Fatal(err)
		}
		if _, err := l.DropPartition(t.Context(), "public.p0", time.Hour); !ledger.Retriable(err) {
			t.Errorf("error is %v, want a lock time-out", err)
		}
		outcome := make(chan error, 1)
		go func() {
			dropped, err := l.DropPartition(t.Context(), "public.p0", time.Hour)
			if dropped {
				err = errors.New("it was dropped")
			}
			outcome <- err
		}()
		if err := commitMeanwhile(t, pool, tx, outcome); err != nil {
			t.Error(err)
		}
		if n := len(ids(t, pool, `SELECT id FROM event_outbox WHERE id = 5`)); n != 1 {
			t.Error("an unsettled row is gone")
		}
	})
}

func TestPastPartitions(t *testing.T) {
	t.Parallel()
	pool, _, l := partitioned(t)
	for layout, want := range map[string]string{
		`ALTER SEQUENCE ids CACHE 20`:      "CACHE 1",
		`ALTER SEQUENCE ids OWNED BY NONE`: "OWNED BY",
	} {
		exec(t, pool, layout)
		if _, _, err := l.PastPartitions(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q", layout, err, want)
		}
		exec(t, pool, `ALTER SEQUENCE ids CACHE 1 OWNED BY event_outbox.id`)
	}
	exec(t, pool, `DROP TABLE event_outbox; CREATE TABLE event_outbox (LIKE plain) PARTITION BY LIST (environment)`)
	if _, _, err := l.PastPartitions(t.Context()); err == nil || !strings.Contains(err.Error(), "RANGE (id)") {
		t.Errorf("another partition key: error is %v", err)
	}
}
