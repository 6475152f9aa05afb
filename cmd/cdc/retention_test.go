package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

const (
	growOld = `UPDATE event_outbox SET processed_at = now() - interval '1 day' WHERE processed`
	poison  = `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context) VALUES ('poison', 'infinity', 'test', '{}')`
)

// settled waits until every row is processed, but for some in quarantine.
func (l *line) settled(t *testing.T, quarantined int64) {
	t.Helper()
	eventually(t, func() string {
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE NOT processed`); n != quarantined {
			return fmt.Sprintf("%d rows are not processed, want %d", n, quarantined)
		}
		return ""
	})
}

// arrived fails unless ClickHouse has n events, each once.
func (l *line) arrived(t *testing.T, n uint64) {
	t.Helper()
	var rows, ids uint64
	if err := l.ch.QueryRow(t.Context(), `SELECT count(), uniqExact(id) FROM event_log`).Scan(&rows, &ids); err != nil || rows != n || ids != n {
		t.Errorf("ClickHouse has %d rows of %d events, %v; want %d", rows, ids, err, n)
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	t.Run("old settled rows go, young and unsettled ones stay, and delivery goes on", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		l.write(t, 6000, 3000) // more than one step removes
		l.exec(t, poison)
		l.settled(t, 1)
		l.exec(t, growOld)
		l.write(t, 10, 10)
		l.settled(t, 1)
		d.stop(t)

		l.exec(t, `GRANT DELETE ON event_outbox TO sluicebox_daemon`)
		d = l.start(t, "CDC_RETENTION=1h")
		l.write(t, 10, 10)
		eventually(t, func() string {
			if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n != 20 {
				return fmt.Sprintf("%d settled rows are left, want the 20 that are young", n)
			}
			return ""
		})
		l.settled(t, 1)
		l.arrived(t, 6020)
		eventually(t, func() string {
			if _, body := d.get(t, "/metrics"); !strings.Contains(body, "sluicebox_outbox_trimmed_rows_total 6000") {
				return "the metrics do not count 6000 rows"
			}
			return ""
		})
	})
	t.Run("without the right to delete it says so, delivers, and begins once it has it", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.write(t, 100, 100)
		d := l.start(t, "CDC_RETENTION=1m")
		d.wait(t, "CDC_RETENTION needs DELETE")
		l.write(t, 100, 100)
		l.allMarked(t)
		l.exec(t, growOld)
		l.exec(t, `GRANT DELETE ON event_outbox TO sluicebox_daemon`)
		eventually(t, func() string {
			if n := l.count(t, `SELECT count(*) FROM event_outbox`); n != 0 {
				return fmt.Sprintf("%d rows are left", n)
			}
			return ""
		})
		l.arrived(t, 200)
	})
	t.Run("less than a minute is refused", func(t *testing.T) {
		t.Parallel()
		d := startCDC(t, []string{"DATABASE_URL=postgres://localhost/x", "CLICKHOUSE_URL=clickhouse://localhost/x", "CDC_RETENTION=59s"}, "run")
		if code := d.end(t); code != 2 || !strings.Contains(d.text(), "CDC_RETENTION") {
			t.Errorf("code %d:\n%s", code, d.text())
		}
	})
}

// partitionSQL is the SQL of docs/partitions.md, block by block, with partitions of 100 ids.
func partitionSQL(t *testing.T) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/partitions.md")
	if err != nil {
		t.Fatal(err)
	}
	for i, part := range strings.Split(string(text), "```") {
		if sql, ok := strings.CutPrefix(part, "sql\n"); ok && i%2 == 1 {
			blocks = append(blocks, strings.ReplaceAll(sql, "bigint := 200000;", "bigint := 100;"))
		}
	}
	if all := strings.Join(blocks, ""); len(blocks) != 5 || strings.Count(all, "bigint := 100;") != 3 {
		t.Fatalf("docs/partitions.md has %d blocks of SQL:\n%s", len(blocks), all)
	}
	return blocks
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.extra = []string{"DATABASE_URL=" + l.db.PostgresURL} // only the owner may drop partitions, and create a publication
	d := l.start(t)
	l.write(t, 50, 50)
	l.settled(t, 0)

	blocks := partitionSQL(t)
	for _, sql := range append(blocks[:4:4], blocks[3]) { // creating partitions twice does no harm
		l.exec(t, sql)
	}
	if n := l.count(t, blocks[4]); n < 2500 {
		t.Errorf("partitions for %d ids, want 2500", n)
	}
	const describe = `SELECT count(*) FROM (
		SELECT reloptions::text FROM pg_class WHERE relname IN ('event_outbox_plain', 'event_outbox_600', 'event_outbox_700')
		UNION SELECT string_agg(conname || pg_get_constraintdef(oid), ',' ORDER BY contype, conname) FROM pg_constraint
		      WHERE contype = 'c' AND conrelid IN ('event_outbox'::regclass, 'event_outbox_plain'::regclass, 'event_outbox_600'::regclass) GROUP BY conrelid) d`
	if n := l.count(t, describe); n != 2 {
		t.Error("the partitions have other storage options or checks than the plain table had")
	}

	l.write(t, 250, 50) // ids 600 to 849, streamed; or read from the table where the publication was not seen to be altered yet
	l.allMarked(t)
	l.exec(t, `ALTER PUBLICATION sluicebox SET (publish_via_partition_root = false)`)
	d.wait(t, "ALTER PUBLICATION \\\"sluicebox\\\" SET (publish_via_partition_root = true)")
	l.write(t, 100, 50)
	l.exec(t, `DROP PUBLICATION sluicebox`) // the daemon creates its own
	l.allMarked(t)
	if n := l.count(t, `SELECT count(*) FROM pg_publication WHERE pubname = 'sluicebox' AND pubviaroot`); n != 1 {
		t.Error("the publication that the daemon creates names partitions")
	}
	d.stop(t)
	l.notRead(t)
	l.exec(t, `SELECT pg_drop_replication_slot($1)`, l.slot)
	l.write(t, 250, 50) // ids 950 to 1199, by backfill
	l.exec(t, poison)   // 1200
	d = l.start(t)
	d.wait(t, "backfill is complete")
	l.write(t, 250, 50) // to 1450, streamed
	l.settled(t, 1)
	l.same(t)

	l.exec(t, growOld)
	d.stop(t)
	d = l.start(t, "CDC_RETENTION=1h")
	left := func() (names string) {
		if err := l.pg.QueryRow(t.Context(), `SELECT string_agg(DISTINCT tableoid::regclass::text, ' ') FROM event_outbox`).Scan(&names); err != nil {
			t.Fatal(err)
		}
		return names
	}
	eventually(t, func() string {
		if names := left(); names != "event_outbox_1200 event_outbox_1400" {
			return "rows are left in " + names + "; want the partition that new ids go to, and the one of the row in quarantine"
		}
		return ""
	})
	l.write(t, 10, 10)
	l.settled(t, 1)
	l.arrived(t, 50+250+100+250+250+10)
	eventually(t, func() string {
		if _, body := d.get(t, "/metrics"); !strings.Contains(body, "sluicebox_outbox_trimmed_partitions_total 8") {
			return "the metrics do not count the 8 partitions that are gone"
		}
		return ""
	})
}
