package doctor

import (
	"strings"
	"time"
)

func outboxIllnesses() []illness {
	// Each has a table of its own, as the outbox but for one thing.
	table := func(with string, more ...string) []string {
		const name = "t"
		grant := `GRANT SELECT, UPDATE (processed, processed_at) ON ` + name + ` TO ` + sqlRole
		return append([]string{`CREATE TABLE ` + name + ` (LIKE event_outbox INCLUDING ALL) WITH (` + with + `)`, grant}, more...)
	}
	on := func(name string) func(*Config) {
		return func(c *Config) { c.Replication.Table = name }
	}
	drop := func(name string) []string { return []string{`DROP TABLE ` + name} }
	const full = "fillfactor = 45"
	parted := []string{
		`CREATE TABLE parted (LIKE event_outbox INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id)`,
		`CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100) WITH (fillfactor = 45)`,
		`CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200)`,
	}
	function := `CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$`
	return []illness{
		{check: "outbox.exists", seen: "no such table", want: Fail, config: on("nowhere")},
		{check: "outbox.exists", seen: "is a view", want: Fail, config: on("seen"), pg: []string{`CREATE VIEW seen AS SELECT * FROM event_outbox`}, cure: []string{`DROP VIEW seen`}},
		{
			check: "outbox.exists", seen: "may not look into schema closed", want: Fail, config: func(c *Config) { c.Replication.Schema = "closed" },
			pg: []string{`CREATE SCHEMA closed`, `CREATE TABLE closed.event_outbox (LIKE event_outbox INCLUDING ALL)`}, heals: true, cure: []string{`DROP SCHEMA closed CASCADE`},
		},
		{check: "outbox.columns", seen: "column environment is missing", want: Fail, config: on("t"), pg: table(full, `ALTER TABLE t DROP COLUMN environment`), cure: drop("t")},
		{check: "outbox.columns", seen: "event_date_time has a type", want: Fail, config: on("t"), pg: table(full, `ALTER TABLE t ALTER event_date_time TYPE date`), cure: drop("t")},
		{
			check: "outbox.columns", seen: "column processed_at is missing", want: Fail, config: on("t"),
			pg: table(full, `ALTER TABLE t DROP COLUMN processed_at`), heals: true, cure: drop("t"),
		},
		{
			check: "outbox.columns", seen: "processed has another type", want: Fail, config: on("t"),
			pg: table(full, `ALTER TABLE t DROP COLUMN processed`, `ALTER TABLE t ADD COLUMN processed integer`), cure: drop("t"),
		},
		{check: "outbox.grants", seen: "lacks SELECT", want: Fail, config: on("t"), pg: table(full, `REVOKE SELECT ON t FROM `+sqlRole), heals: true, cure: drop("t")},
		{
			check: "outbox.grants", seen: "lacks UPDATE (processed, processed_at)", want: Fail, config: on("t"),
			pg: table(full, `REVOKE UPDATE (processed, processed_at) ON t FROM `+sqlRole), heals: true, cure: drop("t"),
		},
		{
			check: "outbox.retention_grant", seen: "lacks DELETE", config: func(c *Config) { c.Retention, c.Replication.Table = time.Hour, "t" },
			pg: table(full), heals: true, cure: drop("t"),
		},
		{
			check: "outbox.retention_grant", seen: "only the owner", config: func(c *Config) { c.Retention, c.Replication.Table = time.Hour, "parted" },
			pg:   append([]string{`CREATE ROLE app_owner`}, append(parted, `ALTER TABLE parted OWNER TO app_owner`)...),
			cure: []string{`DROP TABLE parted`, `DROP ROLE app_owner`}, heals: true,
		},
		{check: "outbox.primary_key", seen: "the primary key is ()", want: Fail, config: on("t"), pg: table(full, `ALTER TABLE t DROP CONSTRAINT t_pkey`), heals: true, cure: drop("t")},
		{
			check: "outbox.primary_key", seen: "(id, event_type)", want: Fail, config: on("t"),
			pg: table(full, `ALTER TABLE t DROP CONSTRAINT t_pkey`, `ALTER TABLE t ADD PRIMARY KEY (id, event_type)`), cure: drop("t"),
		},
		{check: "outbox.logged", seen: "unlogged", want: Fail, config: on("t"), pg: table(full, `ALTER TABLE t ALTER id DROP IDENTITY`, `ALTER TABLE t SET UNLOGGED`), heals: true, cure: drop("t")},
		{
			check: "outbox.row_security", seen: "row security hides rows", want: Fail, config: on("t"), pg: table(full, `ALTER TABLE t ENABLE ROW LEVEL SECURITY`), heals: true,
			cure: []string{`DROP TABLE t`, `ALTER ROLE ` + sqlRole + ` NOBYPASSRLS`},
		},
		{
			check: "outbox.triggers", seen: "for each event that is marked: on_mark", config: on("t"),
			pg:    table(full, function, `CREATE TRIGGER on_insert BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION noted()`, `CREATE TRIGGER on_mark BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION noted()`),
			heals: true, cure: []string{`DROP TABLE t`, `DROP FUNCTION noted`},
		},
		{check: "outbox.processed_index", seen: "t_waiting", config: on("t"), pg: table(full, `CREATE INDEX t_waiting ON t (id) WHERE NOT processed`), heals: true, cure: drop("t")},
		{check: "outbox.processed_index", seen: "t_marked", config: on("t"), pg: table(full, `CREATE INDEX t_marked ON t (event_type, processed_at)`), heals: true, cure: drop("t")},
		{check: "outbox.fillfactor", seen: "fillfactor is 100", config: on("t"), pg: table("fillfactor = 100"), heals: true, cure: drop("t")},
		{check: "outbox.fillfactor", seen: "fillfactor is 100", config: on("parted"), pg: parted, cure: drop("parted")},
		{check: "outbox.autovacuum", seen: "autovacuum is off", config: on("t"), pg: table(full + ", autovacuum_enabled = false"), heals: true, cure: drop("t")},
		{check: "outbox.dead_rows", seen: "300,000 dead rows beside 500,000", plant: func(l *look) { l.outbox.dead, l.outbox.live = 300_000, 500_000 }},
		{check: "outbox.size", seen: "nothing is ever removed", plant: func(l *look) { l.outbox.bytes = 21 << 30 }},
		{
			check: "outbox.oldest_unprocessed", seen: "1 of the newest 10,000 rows",
			pg: []string{strings.Join([]string{
				`INSERT INTO event_outbox (event_type, environment, event_context, event_date_time, processed)`,
				`VALUES ('t', 'test', '{}', now() - interval '1 hour', false), ('t', 'test', '{}', now() - interval '2 hours', true)`,
			}, " ")},
			cure: []string{`DELETE FROM event_outbox`},
		},
	}
}
