package pipeline_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// unready is a ClickHouse that is not there yet.
type unready struct{ pipeline.Sink }

func (unready) Ready(context.Context) ([]string, error) {
	return nil, &batch.Failure{Class: batch.Unknown, Err: errors.New("ClickHouse is not up")}
}

// The disk guard looks at the slot before anybody has looked whose it is.
func TestDiskGuardSparesTheSlotOfAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.config.MaxSlotWAL = 1
	r.exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, r.slot) // by another product, before this one ever ran
	r.write(t)
	r.sink.Sink = unready{r.sink.Sink}
	r.run()
	until(t, "neither refused nor dropped", func() bool {
		var dropped bool
		if err := r.pg.QueryRow(t.Context(), `SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = $1`, r.slot).Scan(&dropped); err != nil {
			t.Fatal(err)
		}
		if dropped {
			t.Error("the slot of another was dropped")
			return true
		}
		r.observer.mu.Lock()
		defer r.observer.mu.Unlock()
		return slices.Contains(r.observer.states, "paused: replication slot "+r.slot+" exists and was not created by sluicebox; "+
			"choose another CDC_SLOT, or, if nothing needs that slot, SELECT pg_drop_replication_slot('"+r.slot+"')")
	})
}

// Postgres was restored to an earlier time: ids come again, and so do positions. What ClickHouse has of the lost history is no
// delivery of what came after.
func TestLookUpOfALostHistory(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.planned(t)
	if err := r.ch.Exec(t.Context(), `INSERT INTO event_log (source, id, event_type, event_date_time, lsn, ordinal) SELECT ?, ?, 'of the lost history', now() - 60, ?, 1`,
		r.slot, r.one(t, `SELECT max(id) FROM event_outbox`), r.one(t, `SELECT (end_lsn - '0/0'::pg_lsn)::bigint FROM sluicebox.batch WHERE state = 'planned'`)); err != nil {
		t.Fatal(err)
	}
	r.run()
	r.wait(t, `SELECT count(*) = 101 FROM event_outbox WHERE processed`)
	var n uint64
	if err := r.ch.QueryRow(t.Context(), `SELECT count() FROM event_log WHERE event_type = 't'`).Scan(&n); err != nil || n != 101 {
		t.Errorf("ClickHouse has %d of the 101 events that are marked, %v", n, err)
	}
}

// one is the number that a query gives.
func (r *rig) one(t *testing.T, sql string) (n int64) {
	t.Helper()
	if err := r.pg.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Operators ask for more events again than a batch may have poison, and nothing was mended.
func TestRequestOfPoison(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.refuse(t)
	r.run()
	r.streaming(t)
	for range 2 {
		r.writeBad(t, 100, 1, 20, 40, 60, 80, 100)
	}
	r.quarantined(t, 12)
	r.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) SELECT slot, id FROM sluicebox.quarantine`)
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.batch WHERE sealed_by = 'request'`)
	r.write(t)
	r.soon(t, `SELECT count(*) = 0 FROM sluicebox.redelivery`)
	r.soon(t, `SELECT count(*) = 288 FROM event_outbox WHERE processed`)
}

// soon is wait for what should take a second or two.
func (r *rig) soon(t *testing.T, query string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(40 * time.Second)
	for {
		var ok bool
		if err := r.pg.QueryRow(t.Context(), query).Scan(&ok); err != nil {
			t.Fatal(err)
		}
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("not true: " + query)
		}
	}
}

// Marking takes longer than the heartbeat waits for the row that it holds.
func TestSlowMarks(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(t, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.4); RETURN new; END'`)
	r.exec(t, `CREATE TRIGGER slow BEFORE UPDATE ON event_outbox FOR EACH ROW EXECUTE FUNCTION slow()`)
	r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t) // 40 s of marks; settling may take two minutes
}

// A loss in ClickHouse that nobody has repaired is no longer an incident once enough new batches have come.
func TestUnrepairedLoss(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.config.Limits.Rows = 1
	stop := r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
	r.ended(t, stop)
	if err := r.ch.Exec(t.Context(), `TRUNCATE TABLE event_log`); err != nil {
		t.Fatal(err)
	}
	stop = r.run()
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.incident WHERE kind = 'clickhouse' AND ended_at IS NULL`)
	r.write(t)
	r.wait(t, `SELECT count(*) = 200 FROM event_outbox WHERE processed`)
	r.ended(t, stop)
	r.run()
	r.write(t)
	r.wait(t, `SELECT count(*) = 300 FROM event_outbox WHERE processed`)
	if r.one(t, `SELECT count(*) FROM sluicebox.incident WHERE ended_at IS NULL`) != 1 {
		t.Error("the incident has ended, and 100 events are still missing")
	}
}

// A failover to an asynchronous standby loses the plan of a batch whose insert is still on its way.
func TestFailoverWithAnInsertOnItsWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.sink.deadlineIn = 6 * time.Second
	stop := r.run()
	r.streaming(t)
	through := r.sink.Sink
	sent := make(chan batch.Batch, 1)
	r.sink.set(func(b *batch.Batch) error {
		select {
		case sent <- *b:
		default:
		}
		return &batch.Failure{Class: batch.Unknown, Err: errors.New("the reply is lost")}
	})
	r.write(t)
	late := <-sent
	r.abandon(t)
	_ = stop()
	r.sink.set(nil)
	r.notRead(t)
	r.exec(t, `DELETE FROM sluicebox.batch WHERE state = 'planned'`) // the standby has the events, and not the plan
	r.exec(t, `UPDATE sluicebox.stream SET timeline = timeline - 1`)
	r.run()
	r.wait(t, `SELECT count(*) = 100 FROM event_outbox WHERE processed`)
	if err := through.Write(t.Context(), &late); err == nil {
		t.Error("the late insert was taken after its events had been delivered again")
	}
	r.everything(t)
}

// A target without the columns that are not required.
func TestTargetWithoutPositions(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, sql := range []string{`ALTER TABLE event_log DROP INDEX lsn_minmax`, `ALTER TABLE event_log DROP COLUMN lsn`, `ALTER TABLE event_log DROP COLUMN ordinal`} {
		if err := r.ch.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	stop := r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
	r.ended(t, stop)
	r.run()
	r.write(t)
	r.soon(t, `SELECT count(*) = 200 FROM event_outbox WHERE processed`)
	if r.one(t, `SELECT count(*) FROM sluicebox.incident`) != 0 {
		t.Error("ClickHouse is said to lack what it has")
	}
}

// Rows of a planned batch that became such as ClickHouse can't take.
func TestPlannedRowTurnsInvalid(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"time": `UPDATE event_outbox SET event_date_time = 'infinity' WHERE id = 50`,
		"null": `UPDATE event_outbox SET environment = NULL WHERE id = 50`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.exec(t, `ALTER TABLE event_outbox ALTER environment DROP NOT NULL`)
			r.sink.deadlineIn = 2 * time.Second
			r.planned(t)
			r.exec(t, sql)
			r.run()
			r.soon(t, `SELECT count(*) = 0 FROM sluicebox.batch WHERE state = 'planned'`)
			r.everything(t)
			if r.one(t, `SELECT count(*) FROM sluicebox.quarantine WHERE id = 50`) != 1 {
				t.Error("the event is not in quarantine")
			}
			var bad uint64
			if err := r.ch.QueryRow(t.Context(), `SELECT count() FROM event_log WHERE event_type = '' OR environment = '' OR event_date_time < now() - 3600`).Scan(&bad); err != nil || bad != 0 {
				t.Errorf("%d events without their values, %v", bad, err)
			}
		})
	}
}

// An event that commits while the backfill runs, and whose id is below that of one that can't be printed.
func TestInnocentNeighbourOfTheUnprintable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.write(t)
	r.exec(t, `INSERT INTO event_outbox (id, event_type, environment, event_context) OVERRIDING SYSTEM VALUE
		SELECT 200, 't', 'test', jsonb_agg(1e131071) FROM generate_series(1, 8300)`)
	var once sync.Once
	r.sink.set(func(*batch.Batch) error {
		once.Do(func() {
			r.exec(t, `INSERT INTO event_outbox (id, event_type, environment, event_context) OVERRIDING SYSTEM VALUE VALUES (150, 't', 'test', '{}')`)
		})
		return nil
	})
	r.run()
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.quarantine WHERE id = 200`)
	r.streaming(t)
	r.soon(t, `SELECT processed FROM event_outbox WHERE id = 150`)
}

// What a constraint says of a row contains the row.
func TestContentThatLooksLikeAnExpiredDeadline(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log ADD CONSTRAINT good CHECK environment NOT LIKE 'bad%'`); err != nil {
		t.Fatal(err)
	}
	r.run()
	r.streaming(t)
	r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('t', 'bad written_in_time', '{}')`)
	r.soon(t, `SELECT count(*) = 1 FROM sluicebox.quarantine`)
}

// A request is on its way when the daemon dies, and its event is still refused.
func TestRequestAfterACrash(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.sink.deadlineIn = time.Second
	r.refuse(t)
	stop := r.run()
	r.streaming(t)
	r.writeBad(t, 100, 37)
	r.quarantined(t, 1)
	r.ended(t, stop)
	r.config.HaltOnPoison = true
	r.sink.set(func(*batch.Batch) error {
		r.abandon(t)
		return &batch.Failure{Class: batch.Unknown, Err: errors.New("gone")}
	})
	r.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) SELECT slot, id FROM sluicebox.quarantine`)
	r.run()
	r.fenced(t)
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.batch WHERE state = 'planned'`)
	r.sink.set(nil)
	r.run()
	r.write(t)
	r.soon(t, `SELECT count(*) = 199 FROM event_outbox WHERE processed`)
}

// Requests that are left are for the next start.
func TestStopDuringRedelivery(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.config.Limits.Rows = 1
	stop := r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
	if err := r.ch.Exec(t.Context(), `TRUNCATE TABLE event_log`); err != nil {
		t.Fatal(err)
	}
	sending, stopped := make(chan struct{}), make(chan struct{})
	sent := 0
	r.sink.set(func(*batch.Batch) error {
		if sent++; sent == 1 {
			close(sending)
			<-stopped
		}
		return nil
	})
	r.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, id FROM event_outbox`, r.slot)
	<-sending
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	r.observer.said(t, "streaming") // no event tells that ctx is done; stop does not wait for the write
	close(stopped)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if sent > 5 {
		t.Errorf("%d batches of requests were sent after the daemon was asked to stop", sent)
	}
}

// The state that a crash leaves between the end of a backfill and that of its incident.
func TestIncidentLeftOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := r.run()
	r.streaming(t)
	r.ended(t, stop)
	r.exec(t, `INSERT INTO sluicebox.incident (slot, kind, reason, from_lsn) VALUES ($1, 'slot_lost', 'test', '0/1')`, r.slot)
	r.run()
	r.write(t)
	r.everything(t)
	r.soon(t, `SELECT count(*) = 0 FROM sluicebox.incident WHERE ended_at IS NULL`)
}

// A computed column that fails by the content, with a code that is in no list.
func TestContentCodeThatIsNotListed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log ADD COLUMN n UInt64 MATERIALIZED arraySum((a, b) -> a + b, range(length(environment)), range(4))`); err != nil {
		t.Fatal(err)
	}
	r.run()
	r.streaming(t)
	r.writeBad(t, 100, 37) // 'bad' has three characters
	r.wait(t, `SELECT count(*) = 99 FROM event_outbox WHERE processed`)
	r.everything(t)
}

// Requests are read whole, whatever their size.
func TestRequestsInMemory(t *testing.T) { //nolint:paralleltest // it looks at the memory of the process
	r := newRig(t)
	r.config.Limits.Rows = 10_000
	r.run()
	r.streaming(t)
	r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context)
		SELECT 't', 'test', jsonb_build_object('a', repeat('x', 1000000)) FROM generate_series(1, 100)`)
	r.wait(t, `SELECT count(*) = 100 FROM event_outbox WHERE processed`)
	var most uint64
	r.sink.set(func(*batch.Batch) error {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most = max(most, m.HeapAlloc)
		return nil
	})
	if err := r.ch.Exec(t.Context(), `TRUNCATE TABLE event_log`); err != nil {
		t.Fatal(err)
	}
	r.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, id FROM event_outbox`, r.slot)
	r.wait(t, `SELECT count(*) = 0 FROM sluicebox.redelivery`)
	if most > 60<<20 {
		t.Errorf("%d MiB of memory for batches of %d", most>>20, r.config.Limits.Bytes>>20)
	}
}

// What was repaired has a position beyond the newest batch, if the position moved without one.
func TestRepairedLoss(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stop := r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
	r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context, event_date_time) VALUES ('t', 'bad', '{}', 'infinity')`)
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.quarantine`)
	r.ended(t, stop)
	if err := r.ch.Exec(t.Context(), `TRUNCATE TABLE event_log`); err != nil {
		t.Fatal(err)
	}
	stop = r.run()
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.incident WHERE ended_at IS NULL`)
	r.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, id FROM event_outbox WHERE processed`, r.slot)
	r.wait(t, `SELECT count(*) = 0 FROM sluicebox.redelivery`)
	r.everything(t)
	r.ended(t, stop)
	r.run()
	r.soon(t, `SELECT count(*) = 0 FROM sluicebox.incident WHERE ended_at IS NULL`)
}

// The first and the last times that an event may have, read from the table.
func TestBackfillOfTheOutermostTimes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context, event_date_time)
		VALUES ('t', 'test', '{}', '1900-01-01 00:00:00+00'), ('t', 'test', '{}', '2262-04-10 23:59:59.999999+00')`)
	r.run()
	r.soon(t, `SELECT count(*) = 2 FROM event_outbox WHERE processed`)
	r.everything(t)
}

// No batch was ever settled that could tell whether a look-up sees.
func TestTokenKnownButRowsAbsentInTheFirstBatch(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	first := true
	r.sink.set(func(b *batch.Batch) error {
		if !first {
			return nil
		}
		first = false
		if err := r.ch.Exec(t.Context(), `INSERT INTO event_log (source, id, event_type, event_date_time)
			SETTINGS async_insert = 0, insert_deduplication_token = '`+b.Token+`' SELECT 'other', 1000000, 'x', now()`); err != nil {
			t.Error(err)
		}
		return &batch.Failure{Class: batch.Unknown, Err: errors.New("the server has died")}
	})
	r.run()
	r.streaming(t)
	r.write(t)
	r.soon(t, `SELECT count(*) = 100 FROM event_outbox WHERE processed`)
}

// More blocks than the window remembers could come before the deadline of an insert that is on its way.
func TestWindowOutlivesALateInsert(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.sink.deadlineIn = 5 * time.Second
	if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log MODIFY SETTING non_replicated_deduplication_window = 20`); err != nil {
		t.Fatal(err)
	}
	r.config.Limits.Rows = 1
	r.run()
	r.streaming(t)
	through := r.sink.Sink
	var late *batch.Batch
	sent := 0
	r.sink.set(func(b *batch.Batch) error {
		if late == nil {
			c := *b
			late = &c
			return &batch.Failure{Class: batch.Unknown, Err: errors.New("the reply is lost")}
		}
		if sent++; sent == 15 { // more than half of the window
			if err := through.Write(t.Context(), late); err == nil {
				t.Error("the late insert was taken after so many others")
			}
		}
		return nil
	})
	r.write(t)
	r.everything(t)
	if sent < 15 {
		t.Error("too few batches were sent; the test proves nothing")
	}
}
