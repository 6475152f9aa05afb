package pipeline_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// exec runs a statement in Postgres.
func (r *rig) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := r.pg.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// everything waits until all committed rows are delivered, but for those in quarantine, and holds both sides against each other.
func (r *rig) everything(t *testing.T) {
	t.Helper()
	r.wait(t, `SELECT count(*) = 0 FROM event_outbox o WHERE NOT processed AND NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.id = o.id)`)
	var want int64
	if err := r.pg.QueryRow(t.Context(), `SELECT count(*) FROM event_outbox WHERE processed`).Scan(&want); err != nil {
		t.Fatal(err)
	}
	var rows, ids uint64
	if err := r.ch.QueryRow(t.Context(), `SELECT count(), uniqExact(id) FROM event_log WHERE source = ?`, r.slot).Scan(&rows, &ids); err != nil {
		t.Fatal(err)
	}
	if int64(rows) != want || int64(ids) != want {
		t.Errorf("ClickHouse has %d rows of %d events, Postgres %d that are processed", rows, ids, want)
	}
}

// delivering is a rig whose daemon streams, and has delivered some events.
func delivering(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
	return r
}

// streaming waits until the slot is complete.
func (r *rig) streaming(t *testing.T) {
	t.Helper()
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.stream WHERE phase = 'stream'`)
}

func TestSlotReplacedDuringBackfill(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(t)
	var once sync.Once
	r.sink.set(func(*batch.Batch) error {
		once.Do(func() { // as a predecessor does that was paused before it created its slot
			r.write(t)
			r.exec(t, `SELECT pg_drop_replication_slot($1)`, r.slot)
			r.exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.slot)
			r.write(t)
		})
		return nil
	})
	r.run()
	r.wait(t, `SELECT count(*) = 300 FROM event_outbox WHERE processed`)
	r.everything(t)
}

func TestTokenKnownButRowsAbsent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(t) // a batch that is settled, by backfill
	var once sync.Once
	first := true
	r.sink.set(func(b *batch.Batch) (err error) {
		if first {
			first = false
			return nil
		}
		once.Do(func() { // as a server does that dies between noting the token and storing the rows
			if insertErr := r.ch.Exec(t.Context(), `INSERT INTO event_log (source, id, event_type, event_date_time)
				SETTINGS async_insert = 0, insert_deduplication_token = '`+b.Token+`' SELECT 'other', 1000000, 'x', now()`); insertErr != nil {
				t.Error(insertErr)
			}
			err = &batch.Failure{Class: batch.Unknown, Err: errors.New("the server has died")}
		})
		return err
	})
	r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
}

// blind can't find what it has written, as with a row policy.
type blind struct{ pipeline.Sink }

func (blind) Find(context.Context, *batch.Batch) (map[int64]struct{}, error) {
	return map[int64]struct{}{}, nil
}

func TestBlindLookUpHalts(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.planned(t)
	r.sink.Sink = blind{r.sink.Sink}
	r.run()
	err := <-r.done
	r.done <- err // for the cleanup
	var halt *pipeline.HaltError
	if !errors.As(err, &halt) || pipeline.Hint(err) == "" {
		t.Errorf("ended with %v, want a HaltError with a hint", err)
	}
	var rows uint64
	if err := r.ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&rows); err != nil || rows != events+1 {
		t.Errorf("ClickHouse has %d rows, %v; want %d: nothing may be doubled on the word of a look-up that is blind", rows, err, events+1)
	}
}

func TestColumns(t *testing.T) {
	t.Parallel()
	t.Run("a null in a required column is put into quarantine, its neighbours are delivered", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.exec(t, `ALTER TABLE event_outbox ALTER environment DROP NOT NULL`)
		const null = `INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('t', NULL, '{}')`
		r.exec(t, null) // for the backfill
		r.write(t)
		r.run()
		r.streaming(t)
		r.exec(t, null) // for the stream
		r.write(t)
		r.wait(t, `SELECT count(*) = 200 FROM event_outbox WHERE processed`)
		r.everything(t)
		r.wait(t, `SELECT count(*) = 2 FROM sluicebox.quarantine WHERE reason LIKE '%null%'`)
	})
	t.Run("rows that were written while a column was away are read from the table once it is back", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.run()
		r.streaming(t)
		r.exec(t, `ALTER TABLE event_outbox RENAME environment TO env`)
		r.exec(t, `INSERT INTO event_outbox (event_type, env, event_context) VALUES ('t', 'x', '{}')`)
		r.wait(t, `SELECT phase = 'backfill' FROM sluicebox.stream`) // it has seen them
		r.exec(t, `ALTER TABLE event_outbox RENAME env TO environment`)
		r.write(t)
		r.wait(t, `SELECT count(*) = 101 FROM event_outbox WHERE processed`)
		r.everything(t)
	})
}

func TestPublicationAltered(t *testing.T) {
	t.Parallel()
	t.Run("while the daemon is down, rows that it did not publish are found", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		stop := r.run()
		r.streaming(t)
		r.ended(t, stop)
		r.exec(t, `ALTER PUBLICATION sluicebox SET (publish = 'update')`)
		r.write(t)
		r.exec(t, `ALTER PUBLICATION sluicebox SET (publish = 'insert')`)
		r.run()
		r.everything(t)
	})
	t.Run("a row filter that nobody asked for is refused, and no row is lost once it is gone", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.exec(t, `ALTER PUBLICATION sluicebox SET TABLE event_outbox WHERE (id % 2 = 0)`)
		r.run()
		r.wait(t, `SELECT count(*) = 1 FROM sluicebox.stream WHERE epoch >= 2`) // it has tried and been refused
		r.write(t)
		r.exec(t, `ALTER PUBLICATION sluicebox SET TABLE event_outbox`)
		r.everything(t)
	})
}
