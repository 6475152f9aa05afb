package pipeline_test

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// refuse makes ClickHouse refuse events of environment bad, by a constraint of the operator's own.
func (r *rig) refuse(t *testing.T) {
	t.Helper()
	if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log ADD CONSTRAINT good CHECK environment != 'bad'`); err != nil {
		t.Fatal(err)
	}
}

// writeBad writes events in one transaction; those at the given places, from 1, are bad.
func (r *rig) writeBad(t *testing.T, n int, bad ...int) {
	t.Helper()
	r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context)
		SELECT 't', CASE WHEN n = ANY ($2) THEN 'bad' ELSE 'test' END, '{}' FROM generate_series(1, $1) n ORDER BY n`, n, bad)
}

// quarantined holds that exactly the bad events are in quarantine, and all others delivered.
func (r *rig) quarantined(t *testing.T, n int) {
	t.Helper()
	r.everything(t)
	r.wait(t, fmt.Sprintf(`SELECT count(*) = %d FROM sluicebox.quarantine q JOIN event_outbox o USING (id)
		WHERE o.environment = 'bad' AND NOT o.processed AND q.reason LIKE 'ClickHouse refuses it:%%good%%'`, n))
	r.wait(t, fmt.Sprintf(`SELECT count(*) = %d FROM sluicebox.quarantine`, n))
}

func TestPoison(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string][]int{
		"one": {37}, "the first": {1}, "the last": {100}, "neighbours": {49, 50, 51, 52}, "several": {3, 30, 31, 64, 99, 100},
	} {
		t.Run(name+" is put into quarantine, its neighbours are delivered", func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.refuse(t)
			r.run()
			r.streaming(t)
			r.writeBad(t, 100, bad...)
			r.quarantined(t, len(bad))
			r.write(t)
			r.wait(t, fmt.Sprintf(`SELECT count(*) = %d FROM event_outbox WHERE processed`, 200-len(bad)))
			r.everything(t)
		})
	}
	t.Run("in a backfill is put into quarantine, and left alone by the next one", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.refuse(t)
		r.writeBad(t, 100, 7, 70)
		stop := r.run()
		r.streaming(t)
		r.quarantined(t, 2)
		r.ended(t, stop)
		r.exec(t, `SELECT pg_drop_replication_slot($1)`, r.slot)
		r.write(t)
		attempts := 0
		r.sink.set(func(*batch.Batch) error { attempts++; return nil })
		stop = r.run()
		r.wait(t, `SELECT count(*) = 198 FROM event_outbox WHERE processed`)
		r.ended(t, stop)
		r.quarantined(t, 2)
		if attempts != 1 {
			t.Errorf("%d inserts, want 1: what is in quarantine is not tried again", attempts)
		}
	})
	t.Run("each half is planned before it is sent, under a token of its own", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.refuse(t)
		tokens := map[string]int{}
		r.sink.set(func(b *batch.Batch) error {
			var token string
			var sending int
			if err := r.pg.QueryRow(t.Context(), `SELECT token, coalesce(sending, rows) FROM sluicebox.batch WHERE state = 'planned'`).Scan(&token, &sending); err != nil {
				t.Error(err)
			}
			if rows, sent := tokens[b.Token]; sent && rows != len(b.Rows) {
				t.Errorf("token %s was sent with %d rows, and with %d", b.Token, rows, len(b.Rows))
			}
			tokens[b.Token] = len(b.Rows)
			if token != b.Token || sending != len(b.Rows) {
				t.Errorf("sent %d rows under %s, planned are %d under %s", len(b.Rows), b.Token, sending, token)
			}
			return nil
		})
		r.run()
		r.streaming(t)
		r.writeBad(t, 100, 37)
		r.quarantined(t, 1)
		if len(tokens) < 8 {
			t.Errorf("%d tokens: the batch was not halved", len(tokens))
		}
	})
	t.Run("is found again by the next daemon when one is killed in the middle of the search", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.sink.deadlineIn = 3 * time.Second // the next one waits for that long
		r.refuse(t)
		r.run()
		r.streaming(t)
		sent := 0
		r.sink.set(func(*batch.Batch) error {
			if sent++; sent == 4 {
				r.abandon(t)
			}
			return nil
		})
		r.writeBad(t, 100, 37, 90)
		r.fenced(t)
		r.wait(t, `SELECT count(*) = 1 FROM sluicebox.batch WHERE state = 'planned' AND sending < rows`)
		r.run()
		r.quarantined(t, 2)
	})
	t.Run("is not looked for while an attempt may still land", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.sink.deadlineIn = 5 * time.Second
		r.run()
		r.streaming(t)
		through := r.sink.Sink
		var first *batch.Batch
		var halved, stored atomic.Bool
		r.sink.set(func(b *batch.Batch) error {
			switch {
			case first == nil: // its insert is on its way, for as long as it may
				copied := *b
				first = &copied
				r.refuse(t)
				return &batch.Failure{Class: batch.Unknown, Err: errors.New("the reply is lost")}
			case b.Token == first.Token: // ClickHouse refuses it
				return nil
			case !halved.Load(): // the first one lands at the last moment, since the table takes everything again
				if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log DROP CONSTRAINT good`); err != nil {
					t.Error(err)
				}
				stored.Store(through.Write(t.Context(), first) == nil)
				r.refuse(t)
				halved.Store(true)
			}
			return nil
		})
		r.writeBad(t, 100, 37)
		until(t, "the batch was not halved; the test proves nothing", func() bool { return halved.Load() })
		if stored.Load() {
			t.Fatal("a batch was halved while an earlier insert could still land")
		}
		r.quarantined(t, 1)
	})
	for _, class := range []batch.Class{batch.Unknown, batch.Configuration} {
		t.Run("is not looked for after a failure of class "+string(class), func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			failures := 3
			r.sink.set(func(b *batch.Batch) error {
				if len(b.Rows) != events {
					t.Errorf("a batch of %d rows was sent, want all %d", len(b.Rows), events)
				}
				if failures--; failures >= 0 {
					return &batch.Failure{Class: class, Err: errors.New("not now")}
				}
				return nil
			})
			r.run()
			r.streaming(t)
			r.write(t)
			r.everything(t)
			if failures >= 0 {
				t.Error("it did not fail; the test proves nothing")
			}
		})
	}
	t.Run("of more rows than may be means that the table is wrong: the stream waits, and nothing is put into quarantine", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.refuse(t)
		r.run()
		r.streaming(t)
		var bad []int
		for n := 1; n <= 100; n += 5 {
			bad = append(bad, n)
		}
		r.writeBad(t, 100, bad...)
		r.observer.said(t, "more than may be put into quarantine")
		r.wait(t, `SELECT count(*) = 0 FROM sluicebox.quarantine`)
		if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log DROP CONSTRAINT good`); err != nil {
			t.Fatal(err)
		}
		r.everything(t)
		r.wait(t, `SELECT count(*) = 100 FROM event_outbox WHERE processed`)
	})
	t.Run("in one small batch after the other means the same", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.config.Limits.Rows = 1
		r.refuse(t)
		r.run()
		r.streaming(t)
		r.writeBad(t, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
		r.observer.said(t, "more than may be put into quarantine")
		r.wait(t, `SELECT count(*) = 10 FROM sluicebox.quarantine`)
		if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log DROP CONSTRAINT good`); err != nil {
			t.Fatal(err)
		}
		r.everything(t)
		r.wait(t, `SELECT count(*) = 2 FROM event_outbox WHERE processed`)
	})
	t.Run("ends the daemon if it must not put anything aside; its neighbours are delivered", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.sink.deadlineIn = time.Second
		r.config.HaltOnPoison = true
		r.refuse(t)
		r.run()
		r.streaming(t)
		r.writeBad(t, 100, 37)
		halted(t, r)
		var n uint64
		if err := r.ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&n); err != nil || n != 99 {
			t.Errorf("ClickHouse has %d events, %v; want 99", n, err)
		}
		r.wait(t, `SELECT count(*) = 0 FROM sluicebox.quarantine`)
		r.config.HaltOnPoison = false
		r.run()
		r.quarantined(t, 1)
	})
	t.Run("that can't even be planned ends it, too", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.config.HaltOnPoison = true
		r.run()
		r.streaming(t)
		r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context, event_date_time) VALUES ('t', 'bad', '{}', 'infinity')`)
		halted(t, r)
		r.wait(t, `SELECT count(*) = 0 FROM sluicebox.quarantine`)
	})
	t.Run("that Postgres itself can't print is put into quarantine, and what is behind it in the slot is read from the table", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.run()
		r.streaming(t)
		r.write(t)
		r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context)
			SELECT 't', 'test', jsonb_agg(1e131071) FROM generate_series(1, 8300)`)
		r.write(t)
		r.wait(t, `SELECT count(*) = 1 FROM sluicebox.quarantine WHERE reason LIKE '%more text than Postgres can print%'`)
		r.wait(t, `SELECT count(*) = 200 FROM event_outbox WHERE processed`)
		r.exec(t, `INSERT INTO sluicebox.redelivery SELECT slot, id FROM sluicebox.quarantine`) // it stays so
		r.wait(t, `SELECT count(*) = 0 FROM sluicebox.redelivery`)
		r.everything(t)
	})
	t.Run("for a view behind the table is not doubled in the table", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		for _, sql := range []string{
			`CREATE TABLE numbers (n UInt64) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100`,
			`CREATE MATERIALIZED VIEW view TO numbers AS SELECT toUInt64(if(environment = 'bad', 'x', '1')) AS n FROM event_log`,
		} {
			if err := r.ch.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
		r.run()
		r.streaming(t)
		r.writeBad(t, 100, 37)
		r.everything(t)
	})
}

// halted waits until the pipeline has ended with a HaltError that says what to do.
func halted(t *testing.T, r *rig) {
	t.Helper()
	err := <-r.done
	r.done <- err // for the cleanup
	var halt *pipeline.HaltError
	if !errors.As(err, &halt) || pipeline.Hint(err) == "" {
		t.Errorf("ended with %v, want a HaltError with a hint", err)
	}
}

func TestRedelivery(t *testing.T) {
	t.Parallel()
	const request = `INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, id FROM event_outbox WHERE `
	none := `SELECT count(*) = 0 FROM sluicebox.redelivery`
	t.Run("of what was mended leaves the quarantine", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.refuse(t)
		r.run()
		r.streaming(t)
		r.writeBad(t, 100, 37, 50)
		r.quarantined(t, 2)
		r.exec(t, request+`environment = 'bad'`, r.slot) // nothing was mended
		r.wait(t, none)
		r.quarantined(t, 2)
		r.exec(t, `UPDATE event_outbox SET environment = 'test' WHERE id = (SELECT min(id) FROM sluicebox.quarantine)`)
		r.exec(t, request+`NOT processed`, r.slot)
		r.wait(t, none)
		r.quarantined(t, 1)
		r.wait(t, `SELECT count(*) = 99 FROM event_outbox WHERE processed`)
	})
	t.Run("of what ClickHouse has lost brings it back, and doubles nothing of the rest", func(t *testing.T) {
		t.Parallel()
		r := delivering(t)
		if err := r.ch.Exec(t.Context(), `DELETE FROM event_log WHERE id % 3 = 0 SETTINGS lightweight_deletes_sync = 2`); err != nil {
			t.Fatal(err)
		}
		var before string
		position := `SELECT settled_lsn::text || settled_ordinal FROM sluicebox.stream`
		if err := r.pg.QueryRow(t.Context(), position).Scan(&before); err != nil {
			t.Fatal(err)
		}
		r.exec(t, request+`true`, r.slot)
		r.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, 1000000)`, r.slot) // of which nobody has heard
		r.wait(t, none)
		r.everything(t)
		var after string
		if err := r.pg.QueryRow(t.Context(), position).Scan(&after); err != nil || before != after {
			t.Errorf("the position moved from %s to %s, %v", before, after, err)
		}
	})
	t.Run("that is killed in the middle is finished by the next daemon, and the stream goes on from where it was", func(t *testing.T) {
		t.Parallel()
		r := delivering(t)
		if err := r.ch.Exec(t.Context(), `TRUNCATE TABLE event_log`); err != nil {
			t.Fatal(err)
		}
		r.sink.set(func(*batch.Batch) error {
			r.abandon(t)
			return &batch.Failure{Class: batch.Unknown, Err: errors.New("gone")}
		})
		r.exec(t, request+`true`, r.slot)
		r.fenced(t)
		r.wait(t, `SELECT count(*) = 1 FROM sluicebox.batch WHERE state = 'planned'`)
		r.sink.set(nil)
		r.write(t)
		r.run()
		r.wait(t, none)
		r.wait(t, `SELECT count(*) = 200 FROM event_outbox WHERE processed`)
		r.everything(t)
	})
}

func TestCarriedColumns(t *testing.T) {
	t.Parallel()
	alter := func(t *testing.T, r *rig, sql string) {
		t.Helper()
		if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log `+sql); err != nil {
			t.Fatal(err)
		}
	}
	// write writes events whose tenant is their id, in a run of the stream.
	const write = `INSERT INTO event_outbox (event_type, environment, event_context, tenant_id)
		SELECT 't', 'test', '{}', n FROM generate_series(1, 100) n`
	tenants := func(t *testing.T, r *rig, want uint64) {
		t.Helper()
		r.everything(t)
		rows, err := r.pg.Query(t.Context(), `SELECT sum(tenant_id)::bigint, count(tenant_id) FROM event_outbox WHERE processed`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		var sum int64
		var n, got, filled uint64
		for rows.Next() {
			if err := rows.Scan(&sum, &n); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.ch.QueryRow(t.Context(), `SELECT toUInt64(sum(tenant_id)), countIf(tenant_id != 0) FROM event_log`).Scan(&got, &filled); err != nil {
			t.Fatal(err)
		}
		if got != uint64(sum) || filled != want || n != want {
			t.Errorf("ClickHouse has %d tenants that sum up to %d; Postgres %d, %d; want %d", filled, got, n, sum, want)
		}
	}
	t.Run("a column that both tables have flows, by stream and by backfill, with no setting", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		stop := r.run()
		r.streaming(t)
		r.write(t) // of the time before
		r.wait(t, `SELECT count(*) = 100 FROM event_outbox WHERE processed`)
		alter(t, r, `ADD COLUMN tenant_id UInt64`)
		r.exec(t, `ALTER TABLE event_outbox ADD COLUMN tenant_id bigint`)
		r.exec(t, write)
		r.wait(t, `SELECT count(*) = 200 FROM event_outbox WHERE processed`)
		tenants(t, r, 100)
		r.ended(t, stop)
		r.exec(t, write)
		r.exec(t, `SELECT pg_drop_replication_slot($1)`, r.slot)
		r.run()
		r.wait(t, `SELECT count(*) = 300 FROM event_outbox WHERE processed`)
		tenants(t, r, 200)
	})
	t.Run("one that ClickHouse lacks is ignored and counted, until it has it", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.exec(t, `ALTER TABLE event_outbox ADD COLUMN tenant_id bigint, ADD COLUMN note text`)
		r.run()
		r.streaming(t)
		r.exec(t, write)
		r.wait(t, `SELECT count(*) = 100 FROM event_outbox WHERE processed`)
		r.observer.mu.Lock()
		if r.observer.ignored != 2 {
			t.Errorf("%d columns are said to be ignored, want 2", r.observer.ignored)
		}
		r.observer.mu.Unlock()
		r.everything(t)
	})
	t.Run("one whose value ClickHouse's type can't hold puts its event into quarantine, and a null does so where none may be", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		alter(t, r, `ADD COLUMN tenant_id UInt8, ADD COLUMN note Nullable(String)`)
		r.exec(t, `ALTER TABLE event_outbox ADD COLUMN nowhere text DEFAULT 'x', ADD COLUMN tenant_id bigint, ADD COLUMN note text`)
		r.run()
		r.streaming(t)
		var sizes []int
		r.sink.set(func(b *batch.Batch) error { sizes = append(sizes, len(b.Rows)); return nil })
		r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context, tenant_id)
			SELECT 't', 'test', '{}', CASE n WHEN 5 THEN 256 WHEN 50 THEN NULL ELSE n END FROM generate_series(1, 100) n`)
		r.everything(t)
		r.wait(t, `SELECT count(*) = 2 FROM sluicebox.quarantine WHERE reason ~ '^column tenant_id (has a value that a UInt8 can.t hold|is null)'`)
		if !slices.Equal(sizes, []int{100, 98}) {
			t.Errorf("batches of %d rows were sent, want 100 and 98: the sink knows which rows are at fault", sizes)
		}
	})
	t.Run("one that is dropped no longer flows, and events go on", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		alter(t, r, `ADD COLUMN tenant_id UInt64`)
		r.exec(t, `ALTER TABLE event_outbox ADD COLUMN tenant_id bigint`)
		r.run()
		r.streaming(t)
		r.exec(t, write)
		r.exec(t, `ALTER TABLE event_outbox DROP COLUMN tenant_id`)
		r.write(t)
		r.wait(t, `SELECT count(*) = 200 FROM event_outbox WHERE processed`)
		r.everything(t)
		var filled uint64
		if err := r.ch.QueryRow(t.Context(), `SELECT countIf(tenant_id != 0) FROM event_log`).Scan(&filled); err != nil || filled != 100 {
			t.Errorf("%d events have a tenant, %v; want the 100 of before", filled, err)
		}
	})
	t.Run("a type that can't be filled stops the stream with a reason", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		alter(t, r, `ADD COLUMN tenant_id Array(UInt64)`)
		r.exec(t, `ALTER TABLE event_outbox ADD COLUMN tenant_id bigint`)
		r.run()
		r.streaming(t)
		r.exec(t, write)
		r.observer.said(t, "column tenant_id of the table in ClickHouse has type Array(UInt64)")
		alter(t, r, `MODIFY COLUMN tenant_id String`)
		r.everything(t)
	})
}
