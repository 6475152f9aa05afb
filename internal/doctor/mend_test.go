package doctor

import (
	"strings"
	"testing"
)

// TestMends runs what the doctor advises, on what it advises it for.
func TestMends(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	// mends runs the statements that findings of some checks advise, those that begin with verb, and returns how many there were.
	mends := func(t *testing.T, c Config, checks, verb string) (n int) {
		t.Helper()
		for _, f := range Run(t.Context(), c).Findings {
			if !strings.HasPrefix(f.Check, checks) || f.Result == OK {
				continue
			}
			for _, s := range statements(f.Mend) {
				if !strings.HasPrefix(s, verb) {
					continue
				}
				n++
				if _, err := p.pg.Exec(t.Context(), s); err != nil {
					t.Errorf("%s: %s: %v", f.Check, s, err)
				}
			}
		}
		return n
	}
	t.Run("a publication of a schema", func(t *testing.T) {
		p.exec(t, `CREATE SCHEMA events`, `GRANT USAGE ON SCHEMA events TO sluicebox_sql`, `CREATE TABLE events.event_outbox (LIKE event_outbox INCLUDING ALL)`,
			`CREATE TABLE events.other (id int)`, `CREATE PUBLICATION whole FOR TABLES IN SCHEMA events WITH (publish = 'insert')`)
		c := p.config
		c.Replication.Publication, c.Replication.Schema = "whole", "events"
		if f := finding(t, c, "publication.other_tables"); f.Result != Warn || !strings.HasPrefix(f.Mend, "DROP PUBLICATION") {
			t.Errorf("%+v", f)
		}
	})
	t.Run("triggers and indexes of partitions", func(t *testing.T) {
		p.exec(t, `CREATE TABLE events.parted (LIKE event_outbox INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id)`,
			`CREATE TABLE events.parted_0 PARTITION OF events.parted FOR VALUES FROM (0) TO (1000)`, `CREATE INDEX parted_processed ON events.parted (processed)`,
			`CREATE FUNCTION events.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'`,
			`CREATE TRIGGER tr BEFORE UPDATE ON events.parted_0 FOR EACH ROW EXECUTE FUNCTION events.f()`)
		c := p.config
		c.Replication.Schema, c.Replication.Table = "events", "parted"
		if n := mends(t, c, "outbox.", "DROP"); n != 2 {
			t.Errorf("%d statements, want that of the trigger and that of the index", n)
		}
		if n := mends(t, c, "outbox.", "DROP"); n != 0 {
			t.Errorf("%d statements once they were run", n)
		}
	})
	t.Run("names with quotes", func(t *testing.T) {
		p.execClickHouse(t, "CREATE TABLE `it's` AS event_log",
			"INSERT INTO `it's` (id, event_type, event_date_time, environment, event_context, metadata_version) VALUES (1, 'a', now(), 'x', '{}', 1)",
			"ALTER TABLE `it's` UPDATE environment = toString(throwIf(1)) WHERE 1 SETTINGS mutations_sync = 0, allow_nondeterministic_mutations = 1")
		c := p.config
		c.TargetTable = "it's"
		if f := until(t, c, "target.mutations", Warn); p.ch.Exec(t.Context(), f.Mend) != nil {
			t.Errorf("%s is refused", f.Mend)
		}
		l := &look{}
		l.warehouse.user = "a\\` TO x; DROP TABLE event_log; --"
		if err := p.ch.Exec(t.Context(), "EXPLAIN AST GRANT SELECT ON t TO "+l.user()); err != nil {
			t.Errorf("a user with a backslash: %v", err)
		}
	})
	t.Run("a zone is how a time is shown", func(t *testing.T) {
		p.execClickHouse(t, `CREATE TABLE zone AS event_log`, `ALTER TABLE zone MODIFY COLUMN event_date_time DateTime64(6, 'Europe/Berlin')`)
		c := p.config
		c.TargetTable = "zone"
		if f := finding(t, c, "target.column_types"); f.Result != OK {
			t.Errorf("%+v", f)
		}
	})
	t.Run("what views fill", func(t *testing.T) {
		for source, create := range map[string][]string{
			"dot":   {"CREATE TABLE `a.b` (id UInt64) ENGINE = MergeTree ORDER BY id", "CREATE MATERIALIZED VIEW mv_dot TO `a.b` AS SELECT id FROM dot"},
			"space": {"CREATE TABLE `sp ace` (id UInt64) ENGINE = MergeTree ORDER BY id", "CREATE MATERIALIZED VIEW mv_space TO `sp ace` AS SELECT id FROM space"},
			"inner": {"CREATE MATERIALIZED VIEW mv_inner (id UInt64, d DateTime) ENGINE = MergeTree ORDER BY id TTL d + INTERVAL 1 DAY TO DISK 'default' AS SELECT id, now() AS d FROM `inner`"},
		} {
			p.execClickHouse(t, append([]string{"CREATE TABLE `" + source + "` AS event_log"}, create...)...)
			c := p.config
			c.TargetTable = source
			f := finding(t, c, "target.views")
			if f.Result != Warn {
				t.Errorf("%s: %+v", source, f)
			} else if err := p.ch.Exec(t.Context(), f.Mend); err != nil {
				t.Errorf("%s: %v", f.Mend, err)
			}
		}
	})
}
