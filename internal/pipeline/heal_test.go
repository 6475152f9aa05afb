package pipeline_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// healed waits until an incident of a kind has ended and all is delivered.
func (r *rig) healed(t *testing.T, kind string) {
	t.Helper()
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.incident WHERE kind = '`+kind+`' AND ended_at > began_at AND to_lsn > '0/0' AND to_lsn >= from_lsn`)
	r.everything(t)
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.incident`)
	r.observer.mu.Lock()
	defer r.observer.mu.Unlock()
	if !slices.Equal(r.observer.incidents, []string{kind}) {
		t.Errorf("the observer was told of %q, want one %s", r.observer.incidents, kind)
	}
}

func TestIncidents(t *testing.T) {
	t.Parallel()
	// lose makes the running or stopped pipeline lose rows of the stream.
	for kind, lose := range map[string]func(t *testing.T, r *rig){
		"slot_missing": func(t *testing.T, r *rig) {
			t.Helper()
			r.exec(t, `SELECT pg_drop_replication_slot($1)`, r.slot)
			r.write(t)
		},
		"slot_moved": func(t *testing.T, r *rig) {
			t.Helper()
			r.write(t)
			r.exec(t, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, r.slot)
		},
		"publication": func(t *testing.T, r *rig) {
			t.Helper()
			r.exec(t, `ALTER PUBLICATION sluicebox DROP TABLE event_outbox`)
			r.write(t)
			r.exec(t, `ALTER PUBLICATION sluicebox ADD TABLE event_outbox`)
		},
		"cluster": func(t *testing.T, r *rig) {
			t.Helper()
			r.exec(t, `UPDATE sluicebox.stream SET system_identifier = 'another'`)
			r.write(t)
		},
		"timeline": func(t *testing.T, r *rig) {
			t.Helper()
			r.exec(t, `UPDATE sluicebox.stream SET timeline = timeline - 1`)
			r.write(t)
		},
	} {
		t.Run(kind+" at start is noticed, healed and recorded", func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.sink.deadlineIn = time.Second // another history makes the daemon wait for that long
			stop := r.run()
			r.streaming(t)
			r.write(t)
			r.everything(t)
			r.ended(t, stop)
			lose(t, r)
			r.run()
			r.healed(t, kind)
			r.wait(t, `SELECT rows = 100 FROM sluicebox.incident`)
		})
	}
	for kind, lose := range map[string]func(t *testing.T, r *rig){
		"slot_missing": func(t *testing.T, r *rig) {
			t.Helper()
			until(t, "the slot is read all the time", func() bool {
				_, err := r.pg.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, r.slot)
				if err != nil {
					t.Fatal(err)
				}
				_, err = r.pg.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, r.slot)
				return err == nil
			})
			r.write(t)
		},
		"publication": func(t *testing.T, r *rig) {
			t.Helper()
			r.exec(t, `DROP PUBLICATION sluicebox`)
			r.write(t)
			r.exec(t, `CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert')`)
			r.write(t)
		},
	} {
		t.Run(kind+" while streaming is noticed, healed and recorded", func(t *testing.T) {
			t.Parallel()
			r := delivering(t)
			lose(t, r)
			r.healed(t, kind)
		})
	}
	t.Run("the first start is none", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.write(t)
		r.run()
		r.everything(t)
		r.wait(t, `SELECT count(*) = 0 FROM sluicebox.incident`)
	})
	t.Run("one goes on over a daemon that ends while it heals", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		stop := r.run()
		r.streaming(t)
		r.ended(t, stop)
		r.exec(t, `SELECT pg_drop_replication_slot($1)`, r.slot)
		r.write(t)
		r.sink.set(func(*batch.Batch) error {
			r.abandon(t)
			return &batch.Failure{Class: batch.Unknown, Err: errors.New("gone")}
		})
		r.run()
		r.fenced(t)
		r.wait(t, `SELECT count(*) = 1 FROM sluicebox.incident WHERE ended_at IS NULL`)
		r.sink.set(nil)
		r.run()
		r.healed(t, "slot_missing")
	})
	t.Run("when they repeat, the daemon waits before the next slot, and says so", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		stop := r.run()
		r.streaming(t)
		r.ended(t, stop)
		r.exec(t, `INSERT INTO sluicebox.incident (slot, kind, reason, from_lsn, to_lsn, rows, ended_at)
			SELECT $1, 'slot_lost', 'test', '0/1', '0/2', 0, clock_timestamp() + interval '1 s' FROM generate_series(1, 3)`, r.slot)
		r.exec(t, `SELECT pg_drop_replication_slot($1)`, r.slot)
		r.write(t)
		r.run()
		r.observer.said(t, "the slot was lost 4 times within an hour; waiting")
		r.wait(t, `SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = '`+r.slot+`'`)
		r.everything(t)
	})
}

func TestMarksUndone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.sink.deadlineIn = time.Second
	stop := r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
	r.ended(t, stop)
	// As a restore of Postgres to an earlier time does; and an id comes again, for another event.
	r.exec(t, `UPDATE event_outbox SET processed = false, processed_at = NULL`)
	r.exec(t, `UPDATE event_outbox SET event_date_time = event_date_time + interval '1 minute' WHERE id = 7`)
	r.exec(t, `UPDATE sluicebox.stream SET timeline = timeline - 1`)
	r.run()
	r.wait(t, `SELECT count(*) = 100 FROM event_outbox WHERE processed`)
	var rows, ids uint64
	if err := r.ch.QueryRow(t.Context(), `SELECT count(), uniqExact(id, event_date_time) FROM event_log`).Scan(&rows, &ids); err != nil {
		t.Fatal(err)
	}
	if rows != 101 || ids != 101 {
		t.Errorf("ClickHouse has %d rows, %d of them different; want the 100 of before, and the event that took an id again", rows, ids)
	}
}

func TestDeletedOnTheWay(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{"deleted": `DELETE FROM event_outbox WHERE id % 2 = 0 AND NOT processed`, "truncated": `TRUNCATE event_outbox`} {
		t.Run("rows that are "+name+" after they were sent do not hold the stream", func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.run()
			r.streaming(t)
			deleted := make(chan struct{})
			r.sink.set(func(*batch.Batch) error {
				r.sink.set(nil)
				r.exec(t, sql)
				close(deleted)
				return nil
			})
			r.write(t)
			<-deleted
			r.wait(t, `SELECT count(*) = 0 FROM sluicebox.batch WHERE state = 'planned'`)
			r.write(t)
			r.wait(t, `SELECT count(*) >= 100 AND bool_and(processed) FROM event_outbox`)
			var rows uint64
			if err := r.ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&rows); err != nil || rows != 200 {
				t.Errorf("ClickHouse has %d events, %v; want all 200 that were committed", rows, err)
			}
		})
		t.Run("rows that are "+name+" before the next daemon finishes their batch do not hold it, and are told of", func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.sink.deadlineIn = 2 * time.Second
			r.planned(t)
			r.exec(t, sql)
			r.run()
			r.write(t)
			r.wait(t, `SELECT count(*) = 0 FROM sluicebox.batch WHERE state = 'planned'`)
			r.wait(t, `SELECT count(*) >= 100 AND bool_and(processed) FROM event_outbox`)
			var rows uint64
			if err := r.ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&rows); err != nil {
				t.Fatal(err)
			}
			r.wait(t, fmt.Sprintf(`SELECT count(*) = %d FROM sluicebox.quarantine WHERE reason LIKE 'deleted%%'`, 201-rows))
		})
	}
}

func TestSchemaChanges(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"VACUUM FULL":           `VACUUM FULL event_outbox`,
		"a rewrite":             `ALTER TABLE event_outbox ALTER metadata_version TYPE bigint`,
		"a TRUNCATE of settled": `TRUNCATE event_outbox`,
		"a wider type":          `ALTER TABLE event_outbox ALTER event_type TYPE varchar(200)`,
		"json for jsonb":        `ALTER TABLE event_outbox ALTER event_context TYPE json`,
	} {
		t.Run(name+" is passed by", func(t *testing.T) {
			t.Parallel()
			r := delivering(t)
			r.exec(t, sql)
			r.write(t)
			r.wait(t, `SELECT count(*) >= 100 AND bool_and(processed) FROM event_outbox`)
			var rows, ids uint64
			if err := r.ch.QueryRow(t.Context(), `SELECT count(), uniqExact(id) FROM event_log`).Scan(&rows, &ids); err != nil || rows != 200 || ids != 200 {
				t.Errorf("ClickHouse has %d rows of %d events, %v; want 200", rows, ids, err)
			}
			r.wait(t, `SELECT count(*) = 0 FROM sluicebox.incident`)
		})
	}
	const insert = `INSERT INTO event_outbox (event_type, event_context, environment) VALUES ('t', '{}', 'test')`
	for name, change := range map[string]struct{ away, insert, back, problem string }{
		"is dropped": {
			`ALTER TABLE event_outbox DROP COLUMN environment`, `INSERT INTO event_outbox (event_type, event_context) VALUES ('t', '{}')`,
			`ALTER TABLE event_outbox ADD COLUMN environment text NOT NULL DEFAULT 'test'`, "column environment is missing",
		},
		"is renamed": {
			`ALTER TABLE event_outbox RENAME environment TO env`,
			`INSERT INTO event_outbox (event_type, event_context, env) VALUES ('t', '{}', 'test')`, `ALTER TABLE event_outbox RENAME env TO environment`, "column environment is missing",
		},
		"gets a type that can't be read": {
			`ALTER TABLE event_outbox ALTER event_date_time TYPE timestamp`, insert,
			`ALTER TABLE event_outbox ALTER event_date_time TYPE timestamptz`, "column event_date_time has a type that can't be read",
		},
	} {
		t.Run("a required column that "+name+" stops the stream with a reason, and no event gets a NULL for it", func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.run()
			r.streaming(t)
			r.exec(t, change.away)
			r.exec(t, change.insert)
			r.observer.said(t, change.problem)
			r.exec(t, change.back)
			r.write(t)
			r.wait(t, `SELECT count(*) = 101 FROM event_outbox WHERE processed`)
			r.healed(t, "table")
			var bad uint64
			if err := r.ch.QueryRow(t.Context(), `SELECT countIf(environment != 'test' OR event_date_time < now() - 3600) FROM event_log`).Scan(&bad); err != nil || bad > 0 {
				t.Errorf("%d events lack a value, %v", bad, err)
			}
		})
	}
}

func TestFailoverSlot(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.run()
	r.streaming(t)
	r.wait(t, `SELECT current_setting('server_version_num')::int < 170000 OR (to_jsonb(s)->>'failover')::boolean
		FROM pg_replication_slots s WHERE slot_name = '`+r.slot+`'`)
}

func TestBackfillGivesWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.config.Limits.Rows = 10
	r.write(t)
	altered := make(chan error, 1)
	var once sync.Once
	sent := 0
	r.sink.set(func(*batch.Batch) error {
		if sent++; sent < 3 { // some of it is settled
			return nil
		}
		once.Do(func() {
			go func() {
				_, err := r.pg.Exec(t.Context(), `ALTER TABLE event_outbox ADD COLUMN more int`)
				altered <- err
			}()
		})
		return &batch.Failure{Class: batch.Unknown, Err: errors.New("ClickHouse is down")} // for as long as the snapshot is open
	})
	r.run()
	select {
	case err := <-altered:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("ALTER TABLE still waits for the backfill")
	}
	r.observer.said(t, "somebody waits to alter the outbox") // and not some time-out
	r.sink.set(nil)
	r.everything(t)
	r.wait(t, `SELECT count(*) = 0 FROM sluicebox.incident`)
}
