package sink_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/sink"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/outbox"
)

// createOwn creates a table of an operator's own, whose columns are other than those of migrations/clickhouse.
func createOwn(t *testing.T, ch driver.Conn, table string, columns map[string]string) {
	t.Helper()
	var list []string
	for _, column := range []struct{ name, kind string }{
		{"id", "UInt64"},
		{"event_type", "String"},
		{"event_date_time", "DateTime64(6, 'UTC')"},
		{"environment", "String"},
		{"event_context", "String"},
		{"metadata_version", "UInt32"},
	} {
		if kind := columns[column.name]; kind != "" {
			column.kind = kind
		}
		list = append(list, column.name+" "+column.kind)
	}
	err := ch.Exec(t.Context(), `CREATE TABLE `+table+` (`+strings.Join(list, ", ")+`) ENGINE = MergeTree PARTITION BY toYYYYMM(event_date_time) ORDER BY id
		SETTINGS non_replicated_deduplication_window = '100'`) // as a text, which is allowed
	if err != nil {
		t.Fatal(err)
	}
}

func TestOwnTable(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
		t.Helper()
		at := func(when string) func(*outbox.Row) {
			return func(r *outbox.Row) { r.Time = mustParse(t, when) }
		}
		secret := func(r *outbox.Row) { r.Type = "secret" }
		for i, c := range []struct {
			column, kind string
			change       func(*outbox.Row)
			class        batch.Class // of the failure; none: it is stored
		}{
			{"event_date_time", "DateTime('UTC')", at("1960-01-01T00:00:00Z"), batch.Data},
			{"event_date_time", "DateTime('UTC')", at("2200-01-01T00:00:00Z"), batch.Data},
			{"event_date_time", "DateTime('UTC')", at("2106-02-07T06:28:15Z"), ""},
			{"event_date_time", "DateTime64(3, 'UTC')", at("1969-12-31T23:59:59.9999Z"), ""},
			{"id", "Int64", secret, batch.Configuration},
			{"metadata_version", "Int32", secret, batch.Configuration},
			{"event_type", "Enum8('a' = 1)", secret, batch.Data},
			{"event_type", "FixedString(3)", secret, batch.Data},
		} {
			table := fmt.Sprintf("own_%d", i)
			createOwn(t, ch, table, map[string]string{c.column: c.kind})
			s := open(t, address, table)
			b := newBatch(t, s, 1, 1)
			c.change(&b.Rows[0])
			err := s.Write(t.Context(), b)
			var failure *batch.Failure
			if c.class != "" {
				if !errors.As(err, &failure) || failure.Class != c.class || strings.Contains(err.Error(), "secret") {
					t.Errorf("%s %s: %v, want class %s and no value", c.column, c.kind, err, c.class)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s %s: %v", c.column, c.kind, err)
				continue
			}
			var partition string
			if err := ch.QueryRow(t.Context(), `SELECT _partition_id FROM `+table).Scan(&partition); err != nil || partition != b.Rows[0].Time.Format("200601") {
				t.Errorf("%s %s: %s is in partition %q, %v", c.column, c.kind, b.Rows[0].Time, partition, err)
			}
			if window, err := s.Window(t.Context()); err != nil || window != 100 {
				t.Errorf("the window is %d, %v", window, err)
			}
			if found, err := s.Find(t.Context(), b); err != nil || len(found) != 1 {
				t.Errorf("%s %s: found %d, %v", c.column, c.kind, len(found), err)
			}
		}
		createOwn(t, ch, "mixed", map[string]string{"event_type": `Enum8('\'' = 1, 'ab' = 2, 'b' = 3)`}) // the client would store an ab for each b
		_, err := open(t, address, "mixed").Check(t.Context())
		var failure *batch.Failure
		if !errors.As(err, &failure) || failure.Class != batch.Configuration {
			t.Errorf("an Enum that the client mixes up: %v", err)
		}
	})
}

func mustParse(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestZoneOfPartition has months that begin at another moment than in UTC, by which batches are made: one batch becomes two parts.
func TestZoneOfPartition(t *testing.T) {
	t.Parallel()
	db := testdb.Migrated(t)
	ch := db.ClickHouse(t)
	createOwn(t, ch, "tokyo", map[string]string{"event_date_time": "DateTime64(6, 'Asia/Tokyo')"})
	createOwn(t, ch, "utc", map[string]string{"event_date_time": "DateTime64(6, 'Etc/UTC')"})
	for table, want := range map[string]uint64{"tokyo": 2, "utc": 1} {
		s := open(t, db.Warehouse, table)
		b := newBatch(t, s, 1, 2)
		b.Rows[0].Time, b.Rows[1].Time = mustParse(t, "2026-03-31T14:59:59Z"), mustParse(t, "2026-03-31T15:00:00Z")
		if err := s.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		var parts uint64
		if err := ch.QueryRow(t.Context(), `SELECT uniq(_partition_id) FROM `+table).Scan(&parts); err != nil || parts != want {
			t.Errorf("%s: %d partitions, %v; want %d", table, parts, err, want)
		}
		target, err := s.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		weak := slices.ContainsFunc(target.Weaknesses(), func(w sink.Weakness) bool { return w.Kind == sink.OtherPartition })
		if weak != (want > 1) {
			t.Errorf("%s: %d partitions, and said to be weak: %v", table, parts, weak)
		}
	}
}
