package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// scene is two databases in which everything is as it must be, and an oracle that has found nothing yet.
type scene struct {
	oracle
	found []string
	keys  []uint64 // of the committed events, by id
}

const sceneEvents = 30

// newScene writes events, delivers them as a daemon without fault would, and lets the oracle see that all is well.
func newScene(t *testing.T) *scene {
	t.Helper()
	db := testdb.Migrated(t)
	s := &scene{}
	s.oracle = oracle{pg: db.Postgres(t), ch: db.ClickHouse(t), slot: db.Slot(t), journal: newJournal(), report: func(v string) { s.found = append(s.found, v) }}
	w := &writer{l: newLoad(&stage{journal: s.journal}), number: 1}
	var rows []row
	for n := range sceneEvents {
		r := row{typ: "thing has happened", at: time.Now().UTC().Truncate(time.Microsecond)}
		r.key = w.l.s.journal.add(func(key uint64) event {
			agg, number := uint32(1+n%3), uint32(1+n/3)
			r.context = contextOf(key, 1, agg, number, personal)
			return event{hash: contentHash(r.typ, environment, r.context, version), micros: r.at.UnixMicro(), agg: agg, n: number}
		})
		rows, s.keys = append(rows, r), append(s.keys, r.key)
	}
	if err := pgx.BeginFunc(t.Context(), s.pg, func(tx pgx.Tx) error { return insertRows(t.Context(), tx, rows) }); err != nil {
		t.Fatal(err)
	}
	var end string
	if err := s.pg.QueryRow(t.Context(), `SELECT pg_current_wal_insert_lsn()::text`).Scan(&end); err != nil {
		t.Fatal(err)
	}
	lsn, err := pglogrepl.ParseLSN(end)
	if err != nil {
		t.Fatal(err)
	}
	s.journal.end(s.keys, committed, uint64(lsn))
	for i, r := range rows {
		s.deliver(t, uint64(i+1), r)
	}
	s.exec(t, `UPDATE event_outbox SET processed = true`)
	s.exec(t, `SELECT pg_create_logical_replication_slot('`+s.slot+`', 'pgoutput')`)
	s.exec(t, `INSERT INTO sluicebox.stream (slot, phase, acked_lsn) VALUES ('`+s.slot+`', 'stream', pg_current_wal_lsn())`)
	if s.look(t); len(s.found) > 0 {
		t.Fatalf("nothing is wrong, and the oracle says %q", s.found)
	}
	return s
}

func (s *scene) deliver(t *testing.T, id uint64, r row) {
	t.Helper()
	s.inClickHouse(t, fmt.Sprintf(`
INSERT INTO event_log (source, id, event_type, event_date_time, environment, event_context, metadata_version, lsn, ordinal)
VALUES ('%s', %d, '%s', fromUnixTimestamp64Micro(%d, 'UTC'), '%s', '%s', %d, 1000, %d)`,
		s.slot, id, r.typ, r.at.UnixMicro(), environment, r.context, version, id))
}

func (s *scene) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := s.pg.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (s *scene) inClickHouse(t *testing.T, sql string) {
	t.Helper()
	if err := s.ch.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// look does everything that the oracle does while a run lasts, and at its end.
func (s *scene) look(t *testing.T) {
	t.Helper()
	checks := []func(context.Context) error{s.once, s.tail, s.marks, s.flushed, func(ctx context.Context) error { _, err := s.compare(ctx, 0); return err }}
	for _, check := range checks {
		if err := check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// lose is a loss that only shows in the event with an id.
const lose = `DELETE FROM event_log WHERE id = 7 SETTINGS lightweight_deletes_sync = 2`

// TestOracle plants damage, and wants the oracle to name it.
func TestOracle(t *testing.T) {
	t.Parallel()
	rewrite := func(change string) string {
		return `INSERT INTO event_log (source, id, event_type, event_date_time, environment, event_context, metadata_version, lsn, ordinal)
SELECT * REPLACE (` + change + `) FROM (SELECT source, id, event_type, event_date_time, environment, event_context, metadata_version, lsn, ordinal
FROM event_log WHERE id = 7)`
	}
	replace := func(change string) func(*testing.T, *scene) { // the event is another one now
		return func(t *testing.T, s *scene) {
			t.Helper()
			s.inClickHouse(t, rewrite("id + 1000 AS id, "+change))
			s.inClickHouse(t, lose)
			s.inClickHouse(t, strings.ReplaceAll(rewrite("7 AS id"), "id = 7)", "id = 1007)"))
			s.inClickHouse(t, strings.ReplaceAll(lose, "= 7", "= 1007"))
		}
	}
	for _, test := range []struct {
		name   string
		damage func(*testing.T, *scene)
		want   []string // the kinds of violations, all of them
	}{
		{"a loss", func(t *testing.T, s *scene) { t.Helper(); s.inClickHouse(t, lose) }, []string{"loss", "mark"}},
		{"a loss of what the slot has given up", func(t *testing.T, s *scene) {
			t.Helper()
			s.exec(t, `UPDATE event_outbox SET processed = false WHERE id = 7`)
			s.inClickHouse(t, lose)
			s.journal.events[s.keys[6]].seen = false // it has not been there before
			s.journal.acks = slices.Clone(s.keys)
		}, []string{"flush", "loss", "mark"}},
		{"a duplicate", func(t *testing.T, s *scene) { t.Helper(); s.inClickHouse(t, rewrite("id AS id")) }, []string{"duplicate"}},
		{"a duplicate with another position", func(t *testing.T, s *scene) {
			t.Helper()
			s.inClickHouse(t, rewrite("2000 AS lsn"))
		}, []string{"duplicate", "order"}},
		{"disorder", replace("2000 AS lsn"), []string{"order"}},
		{"another content", replace("replace(event_context, 'planted', 'changed') AS event_context"), []string{"content"}},
		{"another type", replace("'another' AS event_type"), []string{"content"}},
		{"another time", replace("event_date_time + INTERVAL 1 MICROSECOND AS event_date_time"), []string{"content"}},
		{"another version", replace("9 AS metadata_version"), []string{"content"}},
		{"a mark that is missing", func(t *testing.T, s *scene) {
			t.Helper()
			s.exec(t, `UPDATE event_outbox SET processed = false WHERE id = 7`)
		}, []string{"mark"}},
		{"an event that is in quarantine and could be delivered", func(t *testing.T, s *scene) {
			t.Helper()
			s.exec(t, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal) VALUES ('`+s.slot+`', 7, 'planted', '0/0', 0)`)
		}, []string{"quarantine"}},
		{"an event that nobody wrote", func(t *testing.T, s *scene) {
			t.Helper()
			s.inClickHouse(t, rewrite(`99 AS id, '{"k": 4711, "n": 1}' AS event_context`))
		}, []string{"invented"}},
		{"an event of a transaction that was rolled back", func(t *testing.T, s *scene) {
			t.Helper()
			s.journal.resolve(s.keys[6], aborted)
			s.journal.events[s.keys[6]].seen = false
		}, []string{"commit", "ghost"}},
		{"an event that is to be rolled back", func(t *testing.T, s *scene) {
			t.Helper()
			s.inClickHouse(t, rewrite(`99 AS id, '`+ghostType+`' AS event_type`))
		}, []string{"content", "ghost", "invented"}},
		{"a commit that Postgres has lost", func(t *testing.T, s *scene) {
			t.Helper()
			s.exec(t, `DELETE FROM event_outbox WHERE id = 7`)
			s.inClickHouse(t, lose)
		}, []string{"commit"}},
		{"poison that was delivered", func(t *testing.T, s *scene) {
			t.Helper()
			s.journal.events[s.keys[6]].kind = poison
		}, []string{"poison"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t)
			test.damage(t, s)
			s.look(t)
			if s.looked.once.Load() != 2 || s.looked.marks.Load() != 2 || s.looked.flushed.Load() != 2 {
				t.Error("the oracle did not look")
			}
			var kinds []string
			for _, v := range s.found {
				kind, _, _ := strings.Cut(v, ":")
				kinds = append(kinds, kind)
			}
			slices.Sort(kinds)
			if kinds = slices.Compact(kinds); !slices.Equal(kinds, test.want) {
				t.Errorf("the oracle says %q; want %q", s.found, test.want)
			}
		})
	}
}
