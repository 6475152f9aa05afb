package doctor

import "testing"

func slotIllnesses() []illness {
	named := func(name string) func(*Config) {
		return func(c *Config) { c.Replication.Slot = name }
	}
	known := func(name string) string {
		return `INSERT INTO sluicebox.stream (slot, phase) VALUES ('` + name + `', 'stream')`
	}
	drop := func(name string) []string {
		return []string{`SELECT pg_drop_replication_slot('` + name + `')`, `DELETE FROM sluicebox.stream WHERE slot = '` + name + `'`}
	}
	five := int64(5 << 20)
	return []illness{
		{check: "slot.exists", seen: "the slot is missing", want: Fail, config: named("gone"), pg: []string{known("gone")}, cure: []string{`DELETE FROM sluicebox.stream WHERE slot = 'gone'`}},
		{
			check: "slot.owner", seen: "was not created by sluicebox", want: Fail, config: named("foreign_slot"),
			pg: []string{`SELECT pg_create_logical_replication_slot('foreign_slot', 'pgoutput')`}, cure: drop("foreign_slot"),
		},
		{
			check: "slot.active", seen: "nobody reads the slot", config: named("idle"),
			pg: []string{known("idle"), `SELECT pg_create_logical_replication_slot('idle', 'pgoutput')`}, cure: drop("idle"),
		},
		{check: "slot.safe_wal", seen: "may be lost after 5.2 MB", plant: func(l *look) {
			setting("max_slot_wal_keep_size", "1000", "MB")(l)
			l.slot.SafeWAL = &five
		}},
		{
			check: "slot.retained_wal", seen: "the slot keeps", config: func(c *Config) { c.Replication.Slot, c.MaxSlotWAL = "keeps", 2 },
			pg: []string{known("keeps"), `SELECT pg_create_logical_replication_slot('keeps', 'pgoutput')`}, cure: drop("keeps"),
		},
		{
			check: "slot.two_phase", seen: "streams prepared transactions", want: Fail, config: named("two"),
			pg: []string{known("two"), `SELECT pg_create_logical_replication_slot('two', 'pgoutput', false, true)`}, cure: drop("two"),
		},
		{
			check: "slot.failover", since: 17, seen: "failover is off", config: named("stays"),
			pg: []string{known("stays"), `SELECT pg_create_logical_replication_slot('stays', 'pgoutput')`}, cure: drop("stays"),
		},
	}
}

// TestLostSlot has Postgres remove WAL that a slot needs.
func TestLostSlot(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.config.Replication.Slot = "lost"
	p.exec(t, `INSERT INTO sluicebox.stream (slot, phase) VALUES ('lost', 'stream')`, `SELECT pg_create_logical_replication_slot('lost', 'pgoutput')`)
	until(t, p.config, "slot.usable", OK)
	p.leave() // the limit may take its slot, too
	p.exec(t, system("max_slot_wal_keep_size", "'1MB'")...)
	for range 3 {
		p.exec(t, `SELECT pg_logical_emit_message(false, 'test', 'x')`, `SELECT pg_switch_wal()`)
	}
	p.exec(t, `CHECKPOINT`)
	f := until(t, p.config, "slot.usable", Fail)
	if f.Mend == "" || f.Wanted == "" {
		t.Errorf("%+v", f)
	}
}

func publicationIllnesses() []illness {
	again := []string{
		`DROP PUBLICATION sluicebox`,
		`CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert', publish_via_partition_root = true)`,
	}
	return []illness{
		{check: "publication.exists", seen: "no such publication", want: Fail, config: func(c *Config) { c.Replication.Publication = "other" }},
		{check: "publication.table", seen: `lacks "public"."event_outbox"`, want: Fail, pg: []string{`ALTER PUBLICATION sluicebox DROP TABLE event_outbox`}, heals: true},
		{check: "publication.insert", seen: "inserts are not published", want: Fail, pg: []string{`ALTER PUBLICATION sluicebox SET (publish = 'delete')`}, heals: true},
		{check: "publication.only_insert", seen: "updates and truncates are published too", pg: []string{`ALTER PUBLICATION sluicebox SET (publish = 'insert, update, truncate')`}, heals: true},
		{
			check: "publication.row_filter", seen: "(id > 5)", want: Fail,
			pg: []string{`ALTER PUBLICATION sluicebox SET TABLE event_outbox WHERE (id > 5)`}, heals: true,
		},
		{
			check: "publication.row_filter", seen: "(id > 5)", want: Fail, // beside another table, which stays published
			pg: []string{`ALTER PUBLICATION sluicebox SET TABLE users, event_outbox WHERE (id > 5)`}, heals: true, cure: again,
		},
		{
			check: "publication.column_list", seen: "only some columns", want: Fail,
			pg: []string{`ALTER PUBLICATION sluicebox SET TABLE event_outbox (id, event_type)`}, heals: true,
		},
		{check: "publication.other_tables", seen: "1 other tables", pg: []string{`ALTER PUBLICATION sluicebox ADD TABLE users`}, heals: true},
		{
			check: "publication.other_tables", seen: "other tables are published",
			pg:   []string{`DROP PUBLICATION sluicebox`, `CREATE PUBLICATION sluicebox FOR ALL TABLES WITH (publish = 'insert')`},
			cure: again,
		},
		{
			check: "publication.partition_root", seen: "under the partitions' names", want: Fail, config: func(c *Config) { c.Replication.Table = "parted" },
			pg: []string{
				`CREATE TABLE parted (LIKE event_outbox INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id)`,
				`CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100)`,
				`ALTER PUBLICATION sluicebox SET TABLE parted`, `ALTER PUBLICATION sluicebox SET (publish_via_partition_root = false)`,
			},
			heals: true, cure: append([]string{`DROP TABLE parted`}, again...),
		},
	}
}
