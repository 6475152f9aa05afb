package main

import (
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

// status reads the status as JSON.
func (l *line) status(t *testing.T) (s struct {
	Summary string
	ledger.Status
},
) {
	t.Helper()
	return decode[struct {
		Summary string
		ledger.Status
	}](t, l.operate(t, "status", "--json"))
}

func TestStatus(t *testing.T) {
	t.Parallel()
	t.Run("follows a daemon from before its first start to after its end", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.write(t, 5, 5)
		l.operate(t, "status").want(t, 0, "no daemon has ever led "+l.slot+"; cdc run starts one\n",
			"slot missing", "last batch none yet", "unprocessed 5 rows\n", "incidents none")

		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.allMarked(t)
		eventually(t, func() string {
			if text := l.operate(t, "status").stdout; !strings.HasPrefix(text, "streaming; ") {
				return text
			}
			return ""
		})
		l.operate(t, "status").want(t, 0,
			"B behind; last batch ", " leads, heard ", "phase stream", "wal_status reserved", "nothing on the way",
			"last batch number 1, 5 rows, ", "unprocessed 0 rows\n", "0 rows held, 0 dropped", "redelivery no requests")
		s := l.status(t)
		if !s.Leader.Leads || s.Leader.Holder == "" || s.Phase != ledger.PhaseStream || s.LagBytes == nil ||
			s.LastBatch == nil || s.LastBatch.Rows != 5 || s.ReplicationSlot == nil || !s.ReplicationSlot.Active {
			t.Errorf("%+v", s)
		}

		d.kill(t)
		eventually(t, func() string { // until the server has ended its sessions
			if text := l.operate(t, "status").stdout; !strings.HasPrefix(text, "no daemon leads since ") {
				return text
			}
			return ""
		})
		l.operate(t, "status").want(t, 0, "none leads; ", " died or lost its session", "B behind\n")
		d = l.start(t)
		d.wait(t, `"message":"streaming"`)
		if code := d.stop(t); code != 0 {
			t.Fatalf("exit code %d, want 0", code)
		}
		l.operate(t, "status").want(t, 0, "no daemon leads since ", "none leads; the last one ended by itself")
	})
	t.Run("names the slots that are known when this one is not", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.exec(t, `INSERT INTO sluicebox.stream (slot) VALUES ('the_other_one')`)
		l.operate(t, "status").want(t, 0, "no daemon has ever led "+l.slot+"; the ledger knows the_other_one (CDC_SLOT)\n")
	})
	t.Run("tells of a backfill and why", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.lead(t, "backfill")
		l.write(t, 20, 20)
		l.exec(t, `INSERT INTO sluicebox.incident (slot, kind, reason, from_lsn)
			VALUES ($1, 'slot_missing', 'the slot is not there', '0/10')`, l.slot)
		l.operate(t, "status").want(t, 0, "backfill (slot_missing) for ", "s: 20 rows to deliver; no batch yet\n",
			"phase backfill", "open for ", "from 0/10 the slot is not there")
		if s := l.status(t); s.LagBytes != nil || s.Phase != ledger.PhaseBackfill {
			t.Errorf("phase %q, lag %v; want none in a backfill", s.Phase, s.LagBytes)
		}
	})
	t.Run("tells of a missing slot", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.lead(t, "stream")
		l.operate(t, "status").want(t, 0, "the slot is missing; the daemon creates it anew", "slot missing")
		if s := l.status(t); s.ReplicationSlot != nil {
			t.Errorf("%+v", s.ReplicationSlot)
		}
	})
	t.Run("lists the last ten incidents with gap, duration and rows", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.lead(t, "stream")
		l.exec(t, `INSERT INTO sluicebox.incident (slot, kind, reason, from_lsn, to_lsn, rows, began_at, ended_at)
			SELECT $1, 'publication', 'reason ' || n, '0/100', '0/100'::pg_lsn + 1200000, 12345,
			       now() - interval '1 day', now() - interval '1 day' + interval '3 min'
			FROM generate_series(1, 12) n`, l.slot)
		shown := l.operate(t, "status")
		shown.want(t, 0, "3 min 12,345 1.2 MB (0/100 to 0/125080) reason 12\n", "reason 3\n")
		if strings.Contains(shown.stdout, "reason 2\n") {
			t.Errorf("more than ten are listed:\n%s", shown.stdout)
		}
		s := l.status(t)
		if len(s.Incidents) != 10 || s.Incidents[0].Reason != "reason 12" ||
			*s.Incidents[0].GapBytes != 1200000 || *s.Incidents[0].Rows != 12345 {
			t.Errorf("%+v", s.Incidents)
		}
	})
	t.Run("counts planned batches, the quarantine and requests", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.lead(t, "stream")
		l.write(t, 3, 3)
		l.exec(t, `INSERT INTO sluicebox.batch
			(slot, seq, epoch, token, ids, rows, bytes, end_lsn, end_ordinal, ack_lsn, partition, sealed_by, planned_at)
			SELECT $1, n, 1, 't', '{[1,2)}', 100, 1, '0/0', 0, '0/0', 202611, 'rows', clock_timestamp() - interval '4 min'
			FROM generate_series(7, 8) n`, l.slot)
		l.exec(t, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal, dropped_at)
			VALUES ($1, 1, 'r', '0/0', 0, NULL), ($1, 2, 'r', '0/0', 0, now())`, l.slot)
		l.exec(t, `INSERT INTO sluicebox.redelivery (slot, id, requested_at) VALUES ($1, 1, now() - interval '5 min')`, l.slot)
		l.operate(t, "status").want(t, 0,
			"stuck: a batch that was planned 4 min ago is not delivered",
			"planned 2 batches of 200 rows on the way, the oldest planned 4 min ago",
			"quarantine 1 row held, 1 dropped", "redelivery 1 row requested, the oldest 5 min ago",
			"unprocessed 1 row\n") // the others are in quarantine
	})
	t.Run("looks at a bounded number of rows of the outbox", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.write(t, 100_000, 100_000)
		l.operate(t, "status").want(t, 0, "unprocessed at least 100,000 rows\n")
		l.exec(t, `UPDATE event_outbox SET processed = true WHERE id > 7`)
		l.operate(t, "status").want(t, 0, "unprocessed 7 rows of the newest 100,000\n")
	})
	t.Run("shows the rest when the outbox is locked", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		tx, err := l.pg.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }() // whatever the outcome, or the pool could not be closed
		if _, err := tx.Exec(t.Context(), `LOCK TABLE event_outbox`); err != nil {
			t.Fatal(err)
		}
		l.operate(t, "status").want(t, 0,
			"no daemon has ever led", "unprocessed not known: canceling statement due to statement timeout")
	})
}
