package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

func TestDelivery(t *testing.T) {
	t.Parallel()
	t.Run("committed events arrive once and as they are", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		l.write(t, 500, 7)
		l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context, metadata_version, trace_context) VALUES
			('user has been created', '2026-03-14 15:09:26.535897+05', 'prod', '{"email": "zoë@example.com", "n": 1e400, "deep": [[[]]], "text": "\\ \" \n 🦆 שלום"}', 7,
			 '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01')`)
		l.allMarked(t)
		var trace string
		if err := l.ch.QueryRow(t.Context(), `SELECT trace_id FROM event_log WHERE environment = 'prod'`).Scan(&trace); err != nil || trace != "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Errorf("trace_id is %q, %v", trace, err)
		}
	})
	t.Run("rolled-back and aborted transactions and savepoints leave nothing", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		l.exec(t, `BEGIN; INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('rolled back', 'test', '{}'); ROLLBACK`)
		l.exec(t, `BEGIN; INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('kept', 'test', '{}');
			SAVEPOINT s; INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('rolled back', 'test', '{}'); ROLLBACK TO s; COMMIT`)
		if _, err := l.pg.Exec(t.Context(), `BEGIN; INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('aborted', 'test', '{}'); SELECT 1/0; COMMIT`); err == nil {
			t.Fatal("the transaction was to be aborted")
		}
		l.write(t, 1, 1)
		l.allMarked(t)
		var n uint64
		if err := l.ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&n); err != nil || n != 2 {
			t.Errorf("ClickHouse has %d rows, %v; want the 2 that were committed", n, err)
		}
	})
	t.Run("rows of one COPY, which share an LSN, are cut by batches without a loss", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t, "CDC_BATCH_MAX_ROWS=7")
		conn, err := l.pg.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Release()
		lines := strings.Repeat("copied\ttest\t{\"a\": 1}\n", 1000)
		if _, err := conn.Conn().PgConn().CopyFrom(t.Context(), strings.NewReader(lines), `COPY event_outbox (event_type, environment, event_context) FROM STDIN`); err != nil {
			t.Fatal(err)
		}
		l.allMarked(t)
	})
	t.Run("a batch never spans two months", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context)
			SELECT 'dated', '2026-01-31 23:59:50+00'::timestamptz + n * interval '1 second', 'test', '{}' FROM generate_series(1, 20) n`)
		l.allMarked(t)
		if n := l.count(t, `SELECT count(*) FROM sluicebox.batch WHERE sealed_by = 'partition'`); n == 0 {
			t.Error("no batch was sealed at the change of the month")
		}
		if n := l.count(t, `SELECT count(DISTINCT partition) FROM sluicebox.batch`); n != 2 {
			t.Errorf("batches of %d partitions, want 2", n)
		}
	})
	t.Run("an HTTP URL works", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t, "CLICKHOUSE_URL="+l.db.WarehouseHTTP)
		l.write(t, 300, 100)
		l.allMarked(t)
	})
	t.Run("an event that ClickHouse can't hold is kept aside with its reason, its neighbours are delivered", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context) VALUES
			('before', now(), 'test', '{}'), ('poison', 'infinity', 'test', '{}'), ('poison', '4713-01-01 BC', 'test', '{}'), ('after', now(), 'test', '{}')`)
		eventually(t, func() string {
			if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n != 2 {
				return fmt.Sprintf("%d events are processed, want 2", n)
			}
			return ""
		})
		l.same(t)
		if n := l.count(t, `SELECT count(*) FROM sluicebox.quarantine q JOIN event_outbox o USING (id) WHERE o.event_type = 'poison' AND NOT o.processed AND q.reason <> ''`); n != 2 {
			t.Errorf("%d events are in quarantine, want 2", n)
		}
	})
}

func TestBackfill(t *testing.T) {
	t.Parallel()
	t.Run("a table that has rows is delivered, while others write, with no gap and no overlap", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.write(t, 5000, 5000)
		stop := l.keepWriting(t, 5)
		d := l.start(t, "CDC_BATCH_MAX_ROWS=400")
		d.wait(t, "backfill is complete")
		l.write(t, 10, 1)
		stop()
		l.allMarked(t)
	})
	t.Run("a slot that is dropped while the daemon runs is healed from the table", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.write(t, 100, 10)
		l.allMarked(t)
		eventually(t, func() string { // the daemon may read it again in between
			_, err := l.pg.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, l.slot)
			if err != nil {
				return err.Error()
			}
			return ""
		})
		l.write(t, 100, 10)
		l.allMarked(t)
		d.wait(t, "the slot does not hold every event any more") // found missing before it was read, or then
	})
	t.Run("a slot that somebody moved forward is healed from the table", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.write(t, 10, 10)
		l.allMarked(t)
		d.stop(t)
		l.notRead(t)
		l.write(t, 100, 10)
		l.exec(t, `SELECT pg_replication_slot_advance($1, pg_current_wal_lsn())`, l.slot)
		d = l.start(t)
		l.allMarked(t)
		d.wait(t, "moved forward")
	})
	t.Run("rows written while the table was not in the publication are found", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		l.write(t, 10, 10)
		l.allMarked(t)
		l.exec(t, `ALTER PUBLICATION sluicebox DROP TABLE event_outbox`)
		l.write(t, 50, 10)
		l.exec(t, `ALTER PUBLICATION sluicebox ADD TABLE event_outbox`)
		l.write(t, 50, 10)
		l.allMarked(t)
	})
	t.Run("a slot of somebody else is not touched", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.exec(t, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, l.slot)
		d := l.start(t)
		d.wait(t, "was not created by sluicebox")
		l.exec(t, `SELECT pg_drop_replication_slot($1)`, l.slot)
		l.write(t, 10, 10)
		l.allMarked(t) // recovered by itself
	})
}

func TestLargeTransaction(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	d := l.start(t, "CDC_BATCH_MAX_ROWS=20000")
	l.write(t, 1000, 1000)
	l.allMarked(t)
	before := d.peakMemory(t)
	l.write(t, 200_000, 200_000)
	l.allMarked(t)
	if n := l.count(t, `SELECT count(*) FROM sluicebox.batch WHERE rows > 1000`); n < 10 {
		t.Errorf("the transaction came in %d batches, want at least 10", n)
	}
	// The transaction's rows take some 40 MB as text and far more as Go values. Two batches of 20 000 rows and their encoded
	// blocks must do, so the peak stays far below what holding all of it would take.
	if grown := d.peakMemory(t) - before; grown > memoryFactor*96<<20 {
		t.Errorf("peak memory grew by %d MiB", grown>>20)
	}
}

// peakMemory is the largest resident size that the process has had, in bytes.
func (d *daemon) peakMemory(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(status), "VmHWM:")
	fields := strings.Fields(rest)
	if !ok || len(fields) == 0 {
		t.Fatal("no VmHWM in /proc/pid/status")
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

func TestIdle(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.start(t)
	l.write(t, 10, 10)
	l.allMarked(t)
	l.exec(t, `CREATE TABLE other AS SELECT n, repeat('x', 100) FROM generate_series(1, 10000) n`)
	var end string
	if err := l.pg.QueryRow(t.Context(), `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string { // traffic in other tables is acknowledged, or its WAL would be held for ever
		if l.count(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn >= $2::pg_lsn`, l.slot, end) == 0 {
			return "the slot was not acknowledged past the traffic of another table"
		}
		return ""
	})
	confirmed := l.count(t, `SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, l.slot) // first: slots know no snapshot
	if n := l.count(t, `SELECT count(*) FROM sluicebox.stream WHERE slot = $1 AND acked_lsn - '0/0'::pg_lsn < $2::bigint`, l.slot, confirmed); n != 0 {
		t.Error("more was acknowledged than was stored before")
	}
}

func TestGracefulStop(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	d := l.start(t, "CDC_BATCH_MAX_DELAY=10m")
	d.wait(t, `"message":"streaming"`)
	l.write(t, 1000, 100)
	eventually(t, func() string {
		if _, body := d.get(t, "/metrics"); !strings.Contains(body, "sluicebox_events_received_total 1000") {
			return "the events were not received"
		}
		return ""
	})
	if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n != 0 {
		t.Fatalf("%d events are processed before the batch is due", n)
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE NOT processed`); n != 0 {
		t.Errorf("%d events that were received are not delivered", n)
	}
	l.same(t)
	if n := l.count(t, `SELECT count(*) FROM sluicebox.stream WHERE slot = $1 AND holder IS NULL`, l.slot); n != 1 {
		t.Error("the lease was not released")
	}
	if n := l.count(t, `SELECT count(*) FROM sluicebox.stream s JOIN pg_replication_slots r ON r.slot_name = s.slot
		WHERE s.slot = $1 AND r.confirmed_flush_lsn >= s.settled_lsn AND r.confirmed_flush_lsn <= s.acked_lsn`, l.slot); n != 1 {
		t.Error("what was settled was not acknowledged on the way out")
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	d := l.start(t)
	eventually(t, func() string {
		if code, body := d.get(t, "/readyz"); code != 200 || !strings.Contains(body, "streaming") {
			return fmt.Sprintf("/readyz: %d %s", code, body)
		}
		return ""
	})
	for _, path := range []string{"/livez", "/startupz", "/metrics"} {
		if code, body := d.get(t, path); code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	l.operate(t, "health", "--admin-addr="+strings.TrimPrefix(d.url, "http://")).want(t, 0, "streaming")
	d.stop(t)
	l.operate(t, "health", "--admin-addr="+strings.TrimPrefix(d.url, "http://")).want(t, 1, "nothing answers on")
}
