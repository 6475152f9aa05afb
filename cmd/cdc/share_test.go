package main

import (
	"fmt"
	"testing"
)

// shares are two streams that carry one outbox together.
func shares(t *testing.T) (even, odd *line) {
	t.Helper()
	even = newLine(t)
	odd = lineOn(t, even.db)
	even.extra = []string{"CDC_SHARE=0/2", "CDC_PUBLICATION=even"}
	odd.extra = []string{"CDC_SHARE=1/2", "CDC_PUBLICATION=odd"}
	return even, odd
}

// migrate runs `cdc migrate` as the owner, who alone can create a publication.
func (l *line) migrate(t *testing.T) {
	t.Helper()
	env := append([]string{"DATABASE_URL=" + l.db.Owner, "CLICKHOUSE_URL=" + l.db.ClickHouseURL, "CDC_SLOT=" + l.slot}, l.extra...)
	if m := startCDC(t, env, "migrate"); m.end(t) != 0 {
		t.Fatalf("cdc migrate: %s", m.text())
	}
}

// delivered waits until every row of a share is marked, and then looks for it in ClickHouse: once, and only from its own stream.
func (l *line) delivered(t *testing.T, remainder int) {
	t.Helper()
	eventually(t, func() string {
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE id % 2 = $1 AND NOT processed`, remainder); n > 0 {
			return fmt.Sprintf("%d rows of the share %d/2 are not processed", n, remainder)
		}
		return ""
	})
	want := uint64(l.count(t, `SELECT count(*) FROM event_outbox WHERE id % 2 = $1`, remainder))
	var rows, ids, others uint64
	if err := l.ch.QueryRow(t.Context(), `SELECT count(), uniqExact(id), countIf(id % 2 != ?) FROM event_log WHERE source = ?`, remainder, l.slot).
		Scan(&rows, &ids, &others); err != nil {
		t.Fatal(err)
	}
	if rows != want || ids != want || others != 0 {
		t.Errorf("stream %s: %d rows of %d events, %d of the other share; want %d", l.slot, rows, ids, others, want)
	}
}

func TestShares(t *testing.T) {
	t.Parallel()
	t.Run("two streams carry one outbox, from the table and from the WAL, and each heals its own", func(t *testing.T) {
		t.Parallel()
		even, odd := shares(t)
		even.migrate(t)
		odd.migrate(t)
		even.write(t, 500, 100) // before there is a slot
		d := even.start(t)
		even.delivered(t, 0)
		if n := even.count(t, `SELECT count(*) FROM event_outbox WHERE id % 2 = 1 AND processed`); n > 0 {
			t.Errorf("%d rows of the other share are marked", n)
		}
		odd.start(t)
		odd.delivered(t, 1)
		even.write(t, 1000, 7)
		even.delivered(t, 0)
		odd.delivered(t, 1)

		d.stop(t)
		even.notRead(t)
		even.exec(t, `SELECT pg_drop_replication_slot($1)`, even.slot)
		even.write(t, 1000, 50)
		even.start(t)
		even.delivered(t, 0)
		odd.delivered(t, 1)
		even.incident(t, `slot = '`+even.slot+`' AND kind = 'slot_missing' AND rows = 500`)
		for _, l := range []*line{even, odd} {
			if report := l.wantAudit(t, 0, "same"); report.Postgres != 1250 || report.Waiting != 0 {
				t.Errorf("the audit of %s counts %d events, %d waiting", l.slot, report.Postgres, report.Waiting)
			}
		}
		odd.exec(t, `UPDATE event_outbox SET processed = false WHERE id = 1`)
		for l, rows := range map[*line]int64{even: 0, odd: 1} {
			if s := l.status(t); s.Unprocessed.Rows != rows || s.Unprocessed.Newest != 1250 {
				t.Errorf("the status of %s counts %d unprocessed of %d rows, want %d of 1250", l.slot, s.Unprocessed.Rows, s.Unprocessed.Newest, rows)
			}
		}
	})

	t.Run("retention and operators touch the own share only", func(t *testing.T) {
		t.Parallel()
		even, odd := shares(t)
		even.migrate(t)
		odd.migrate(t)
		even.exec(t, `GRANT DELETE ON event_outbox TO sluicebox_daemon`)
		even.start(t, "CDC_RETENTION=2m") // it looks every 12 s; with 1h once a minute, which is most of the patience
		odd.start(t)
		even.write(t, 400, 100)
		even.delivered(t, 0)
		odd.delivered(t, 1)
		even.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, 1)`, even.slot) // of the other share
		even.exec(t, growOld)
		eventually(t, func() string {
			if n := even.count(t, `SELECT count(*) FROM event_outbox WHERE id % 2 = 0`); n > 0 {
				return fmt.Sprintf("%d old rows are left", n)
			}
			if n := even.count(t, `SELECT count(*) FROM sluicebox.redelivery`); n > 0 {
				return "a request for a row of the other share is not forgotten"
			}
			return ""
		})
		odd.delivered(t, 1)
		if n := odd.count(t, `SELECT count(*) FROM event_outbox`); n != 200 {
			t.Errorf("%d rows of the other share are left, want 200", n)
		}
		odd.arrived(t, 400)
	})

	t.Run("a stream that would carry rows of another one waits, and says what to do", func(t *testing.T) {
		t.Parallel()
		even, _ := shares(t)
		even.migrate(t)
		first := even.start(t)
		even.write(t, 10, 10)
		even.delivered(t, 0)
		whole := lineOn(t, even.db)
		d := whole.start(t) // with the publication of all rows
		d.wait(t, "the outbox has other streams that carry the same rows: "+even.slot)
		d.wait(t, "give each stream of an outbox its own CDC_SHARE")
		even.write(t, 10, 10)
		even.delivered(t, 0)
		if n := even.count(t, `SELECT count(*) FROM event_outbox WHERE id % 2 = 1 AND processed`); n > 0 {
			t.Errorf("%d rows of no share are marked", n)
		}
		first.stop(t)
		eventually(t, func() string {
			if n := whole.count(t, `SELECT count(*) FROM event_outbox WHERE NOT processed`); n > 0 {
				return fmt.Sprintf("the other stream has ended, and %d rows are not processed", n)
			}
			return ""
		})
		even.arrived(t, 20)
		second := even.start(t)
		second.wait(t, "the outbox has other streams that carry the same rows: "+whole.slot)
	})

	t.Run("a publication of another share is refused", func(t *testing.T) {
		t.Parallel()
		even, _ := shares(t)
		even.exec(t, `CREATE PUBLICATION even FOR TABLE event_outbox WHERE (id % 3 = 0) WITH (publish = 'insert')`)
		even.write(t, 12, 12)
		d := even.start(t)
		d.wait(t, `has the row filter ((id % (3)::bigint) = 0), and CDC_SHARE is 0/2`)
		d.wait(t, `ALTER PUBLICATION \"even\" SET TABLE \"public\".\"event_outbox\" WHERE (id % 2 = 0)`)
		even.exec(t, `ALTER PUBLICATION even SET TABLE event_outbox WHERE (id % 2 = 0)`)
		even.delivered(t, 0)
	})
}
