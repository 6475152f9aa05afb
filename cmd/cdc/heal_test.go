package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// incident waits until one incident is as it should be. It ends after its rows are marked.
func (l *line) incident(t *testing.T, like string) {
	t.Helper()
	eventually(t, func() string {
		if n := l.count(t, `SELECT count(*) FROM sluicebox.incident WHERE `+like); n != 1 {
			return fmt.Sprintf("%d incidents are recorded, want 1", n)
		}
		return ""
	})
}

func TestDiskGuard(t *testing.T) {
	t.Parallel()
	// fill makes WAL wait for the daemon, more than it may.
	fill := func(t *testing.T, l *line) {
		t.Helper()
		l.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context)
			SELECT 't', 'test', jsonb_build_object('x', (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 50) m)) FROM generate_series(1, 3000) n`)
	}
	noSlot := func(t *testing.T, l *line) {
		t.Helper()
		eventually(t, func() string {
			if l.count(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, l.slot) > 0 {
				return "the slot still holds WAL"
			}
			return ""
		})
	}
	healed := func(t *testing.T, l *line) {
		t.Helper()
		l.allMarked(t)
		l.incident(t, `kind = 'disk_guard' AND ended_at IS NOT NULL AND rows = 3000`)
	}
	t.Run("the slot is dropped when too much WAL waits, not created while ClickHouse is down, and healed then", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnSinkLine(t)
		d := l.start(t, "CDC_MAX_SLOT_WAL=1MiB")
		l.write(t, 10, 10)
		l.allMarked(t)
		server.Kill()
		fill(t, l)
		d.wait(t, "dropping the slot, so that Postgres's disk does not fill up")
		noSlot(t, l)
		d.wait(t, "ClickHouse is not ready")
		noSlot(t, l)
		if code, body := d.get(t, "/readyz"); code != 503 || !strings.Contains(body, "paused") {
			t.Errorf("/readyz: %d %s", code, body)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		healed(t, l)
	})
	t.Run("it is dropped also by a daemon that has not seen ClickHouse since its start", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnSinkLine(t)
		d := l.start(t)
		l.write(t, 10, 10)
		l.allMarked(t)
		d.stop(t)
		server.Kill()
		d = l.start(t, "CDC_MAX_SLOT_WAL=1MiB")
		d.wait(t, "ClickHouse is not ready")
		fill(t, l)
		d.wait(t, "dropping the slot, so that Postgres's disk does not fill up")
		noSlot(t, l)
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		healed(t, l)
	})
	t.Run("without a limit the slot is kept", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnSinkLine(t)
		d := l.start(t)
		l.write(t, 10, 10)
		l.allMarked(t)
		server.Kill()
		fill(t, l)
		d.wait(t, "is ClickHouse up, and CLICKHOUSE_URL right?")
		if n := l.count(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active`, l.slot); n != 1 {
			t.Error("the slot is gone")
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.allMarked(t)
		if n := l.count(t, `SELECT count(*) FROM sluicebox.incident`); n != 0 {
			t.Errorf("%d incidents are recorded, want none", n)
		}
	})
}

// TestClickHouseRestored holds that a ClickHouse which lacks what it had confirmed is noticed at start, and healed on request.
func TestClickHouseRestored(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	d := l.start(t)
	d.wait(t, `"message":"streaming"`)
	l.write(t, 50, 50)
	l.allMarked(t)
	var yesterday string // the end of what a backup would have
	if err := l.pg.QueryRow(t.Context(), `SELECT max(id)::text FROM event_outbox`).Scan(&yesterday); err != nil {
		t.Fatal(err)
	}
	l.write(t, 100, 10)
	l.allMarked(t)
	d.stop(t)
	l.execClickHouse(t, `DELETE FROM event_log WHERE id > `+yesterday+` SETTINGS lightweight_deletes_sync = 2`)
	d = l.start(t)
	d.wait(t, "ClickHouse lacks events that it had confirmed")
	if _, metrics := d.get(t, "/metrics"); !strings.Contains(metrics, `sluicebox_incidents_total{kind="clickhouse"} 1`) {
		t.Error("the metrics do not tell of the incident")
	}
	open := `SELECT count(*) FROM sluicebox.incident WHERE kind = 'clickhouse' AND ended_at IS NULL`
	if n := l.count(t, open); n != 1 {
		t.Errorf("%d incidents are open, want 1", n)
	}
	l.write(t, 10, 10) // the stream goes on
	l.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, id FROM event_outbox WHERE processed ON CONFLICT DO NOTHING`, l.slot)
	eventually(t, func() string {
		if l.count(t, `SELECT count(*) FROM sluicebox.redelivery`) > 0 {
			return "not all requests are served"
		}
		return ""
	})
	l.allMarked(t)
	d.stop(t)
	l.start(t).wait(t, `"message":"streaming"`)
	if n := l.count(t, open); n != 0 {
		t.Error("the incident is still open although ClickHouse has everything again")
	}
}

// TestTimeline puts Postgres on another timeline, as a promotion does, and keeps its slot.
func TestTimeline(t *testing.T) {
	t.Parallel()
	l, server := newOwnLine(t, map[string]string{"restore_command": "false"})
	d := l.start(t)
	d.wait(t, `"message":"streaming"`) // the end of the backfill records it, after the marks
	l.write(t, 100, 10)
	l.allMarked(t)
	timeline := `SELECT timeline FROM sluicebox.stream WHERE slot = $1`
	if n := l.count(t, timeline, l.slot); n != 1 {
		t.Fatalf("timeline %d is recorded, want 1", n)
	}
	d.stop(t)
	server.Kill()
	signal := filepath.Join(server.Dir, "data", "recovery.signal")
	if err := os.WriteFile(signal, nil, 0o644); err != nil { //nolint:gosec // the server runs as another user
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.pg.Reset()
	eventually(t, func() string {
		if l.count(t, `SELECT CASE WHEN pg_is_in_recovery() THEN 1 ELSE 0 END`) > 0 {
			return "Postgres is still in recovery"
		}
		return ""
	})
	l.write(t, 100, 10)
	l.start(t, "CDC_INSERT_DEADLINE=2s").wait(t, "an insert whose outcome is unknown may still land")
	l.allMarked(t)
	eventually(t, func() string { // the rows are marked before that
		if n := l.count(t, timeline, l.slot); n != 2 {
			return fmt.Sprintf("timeline %d is recorded, want 2", n)
		}
		return ""
	})
	l.incident(t, `kind IN ('timeline', 'slot_missing') AND ended_at IS NOT NULL`)
}

func TestSlotInvalidated(t *testing.T) {
	t.Parallel()
	l, _ := newOwnLine(t, map[string]string{"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"})
	lost := func(t *testing.T) {
		t.Helper()
		eventually(t, func() string {
			l.exec(t, `SELECT pg_switch_wal()`)
			l.exec(t, `CREATE TABLE IF NOT EXISTS filler (x int)`)
			l.exec(t, `INSERT INTO filler VALUES (1)`)
			l.exec(t, `CHECKPOINT`)
			if l.count(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND wal_status = 'lost'`, l.slot) == 0 {
				return "the slot is not lost"
			}
			return ""
		})
	}
	d := l.start(t)
	l.write(t, 100, 10)
	l.allMarked(t)
	d.wait(t, "streaming") // a backfill that did not end would begin anew instead
	d.stop(t)
	l.notRead(t)
	l.write(t, 100, 10)
	lost(t)
	l.start(t)
	l.allMarked(t)
	l.incident(t, `kind = 'slot_lost' AND rows = 100 AND to_lsn > from_lsn`)
}
