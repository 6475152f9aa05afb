package doctor

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
)

// with adds a setting of the session to a ClickHouse URL.
func with(name, value string) func(*Config) {
	return func(c *Config) {
		u, err := url.Parse(c.ClickHouse)
		if err != nil {
			panic(err)
		}
		query := u.Query()
		query.Set(name, value)
		u.RawQuery = query.Encode()
		c.ClickHouse = u.String()
	}
}

func clickhouseIllnesses() []illness {
	version := func(v string) func(*look) {
		return func(l *look) { l.warehouse.version = v }
	}
	return []illness{
		{check: "clickhouse.version", seen: "has no nowInBlock", want: Fail, plant: version("21.8.15.7")},
		{check: "clickhouse.version", seen: "older than what sluicebox is tried with", plant: version("24.8.1.1")},
		{check: "clickhouse.readonly", seen: "readonly is 2", want: Fail, config: with("readonly", "2")},
		{check: "clickhouse.memory", seen: "max_memory_usage is 100 MB", config: with("max_memory_usage", "100000000")},
		{check: "clickhouse.encryption", seen: "ch.example.com:9000 is not encrypted", plant: func(l *look) {
			l.warehouse.addresses = []string{"127.0.0.1:9000", "ch.example.com:9000"}
		}},
		{check: "clickhouse.encryption", seen: "the certificate of ch.example.com:9440 is not verified", plant: func(l *look) {
			l.warehouse.addresses, l.warehouse.encrypted = []string{"ch.example.com:9440"}, true
		}},
	}
}

func targetIllnesses() []illness {
	all := []string{
		`source LowCardinality(String)`, `id UInt64`, `event_type LowCardinality(String)`, `event_date_time DateTime64(6, 'UTC')`,
		`environment LowCardinality(String)`, `event_context String`, `metadata_version UInt32`, `trace_id String`, `lsn UInt64`, `ordinal UInt32`,
		`write_deadline DateTime('UTC') MATERIALIZED toDateTime('2106-02-07 00:00:00', 'UTC')`,
	}
	columns := strings.Join(all, ", ")
	const constraint, index = `CONSTRAINT written_in_time CHECK write_deadline >= nowInBlock()`, `INDEX lsn_minmax lsn TYPE minmax GRANULARITY 1`
	const order, window = `ORDER BY (event_type, event_date_time, id)`, `non_replicated_deduplication_window = 10000`
	const month = `PARTITION BY toYYYYMM(event_date_time)`
	create := func(parts []string, rest ...string) []string {
		return []string{`CREATE TABLE t (` + strings.Join(parts, ", ") + `) ` + strings.Join(rest, " ")}
	}
	whole := []string{columns, index, constraint}
	const merge = `ENGINE = MergeTree`
	const settings = `SETTINGS ` + window + `, fsync_after_insert = 1`
	on := func(c *Config) { c.TargetTable = "t" }
	drop := []string{`DROP TABLE t`}
	ill := func(check, seen string, want Result, heals bool, ch []string) illness {
		return illness{check: check, seen: seen, want: want, ch: ch, chHeals: heals, config: on, chCure: drop}
	}
	without := func(name string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(all), func(column string) bool { return strings.HasPrefix(column, name+" ") }), ", ")
	}
	view := func(name, to, engine string) []string {
		return append(create(whole, merge, month, order, settings), `CREATE MATERIALIZED VIEW `+name+to+engine+` AS SELECT event_type, count() AS n FROM t GROUP BY event_type`)
	}
	return []illness{
		{check: targetExists, seen: "no such table", want: Fail, config: func(c *Config) { c.TargetTable = "nowhere" }},
		ill("target.engine", "ReplacingMergeTree changes or drops rows", Warn, false, create(whole, `ENGINE = ReplacingMergeTree`, month, order, settings)),
		ill("target.engine", "Memory does not remember tokens", Fail, false, create([]string{columns}, `ENGINE = Memory`)),
		ill(targetColumns, "lacks columns: environment", Fail, false, create([]string{without("environment")}, merge, `ORDER BY id`, settings)),
		ill("target.column_types", "column id is UInt32", Warn, false, create([]string{strings.Replace(columns, "id UInt64", "id UInt32", 1)}, merge, `ORDER BY event_type`, settings)),
		ill("target.column_types", "column event_date_time is DateTime64(3", Warn, true, create([]string{strings.Replace(columns, "DateTime64(6", "DateTime64(3", 1)}, merge, `ORDER BY id`, settings)),
		ill("target.column_types", "column metadata_version is UInt16", Warn, true, create([]string{strings.Replace(columns, "metadata_version UInt32", "metadata_version UInt16", 1)}, merge, `ORDER BY id`, settings)),
		ill("target.position_columns", "can't tell streams apart", Warn, true, create([]string{without("ordinal")}, merge, order, settings)),
		ill("target.window", "no deduplication window", Warn, true, create(whole, merge, month, order)),
		ill("target.partition_key", "partitioned by toDate(event_date_time)", Warn, false, create(whole, merge, `PARTITION BY toDate(event_date_time)`, order, settings)),
		ill("target.deadline", "has no constraint written_in_time", Warn, true, create([]string{without("write_deadline"), index}, merge, month, order, settings)),
		ill("target.sorting_key", "sorted by (environment)", Warn, false, create(whole, merge, month, `ORDER BY environment`, settings)),
		ill("target.position_index", "no index on lsn", Warn, true, create([]string{columns, constraint}, merge, month, order, settings)),
		ill("target.ttl", "toDateTime(event_date_time) + toIntervalDay(30)", Warn, true, create(whole, merge, month, order, `TTL toDateTime(event_date_time) + toIntervalDay(30)`, settings)),
		ill("target.fsync", "before they are on disk", Warn, true, create(whole, merge, month, order, `SETTINGS `+window)),
		ill("target.window_size", "the tokens of 100 inserts", Warn, true, create(whole, merge, month, order, `SETTINGS non_replicated_deduplication_window = 100`)),
		ill("target.mutations", "fails again and again", Warn, true, append(create(whole, merge, month, order, settings),
			`INSERT INTO t (id, event_type, event_date_time, environment) VALUES (1, 'x', now(), 'test')`,
			`ALTER TABLE t UPDATE environment = toString(throwIf(id > 0, 'planted')) WHERE 1 SETTINGS mutations_sync = 0`)),
		{
			check: "target.views", seen: "v fills ", config: on, ch: view("v", "", ` ENGINE = SummingMergeTree ORDER BY event_type`), chHeals: true,
			chCure: []string{`DROP TABLE v`, `DROP TABLE t`},
		},
		{
			check: "target.views", seen: "counts`, which has no deduplication window", config: on, chHeals: true,
			ch:     append([]string{`CREATE TABLE counts (event_type String, n UInt64) ENGINE = SummingMergeTree ORDER BY event_type`}, view("v", " TO counts", "")...),
			chCure: []string{`DROP TABLE v`, `DROP TABLE counts`, `DROP TABLE t`},
		},
	}
}

// TestUsers has users with fewer rights than the tests' own.
func TestUsers(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{Password: "least-privilege", Users: map[string][]string{
		"writer": {`GRANT SELECT, INSERT ON default.event_log`}, "reader": {`GRANT SELECT ON default.event_log`},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience) //nolint:usetesting // cleaning up comes after the test's context
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(server.URL("default"))
	if err != nil {
		t.Fatal(err)
	}
	postgres := testdb.New(t).PostgresURL // only ClickHouse's migrations matter
	if _, err := migrations.Apply(t.Context(), postgres, u.String(), migrations.Single); err != nil {
		t.Fatal(err)
	}
	as := func(user string) Config {
		config := p.config
		u.User = url.UserPassword(user, "least-privilege")
		config.ClickHouse = u.String()
		return config
	}
	t.Run("one that may write and look up is all that is needed", func(t *testing.T) {
		for _, f := range Run(t.Context(), as("writer")).Findings {
			clickhouse := strings.HasPrefix(f.Check, "clickhouse.") || strings.HasPrefix(f.Check, "target.")
			hidden := f.Result == Skip && strings.Contains(f.Seen, "this user")
			if clickhouse && f.Result != OK && !hidden {
				t.Errorf("%s %s: %s", f.Result, f.Check, f.Seen)
			}
		}
	})
	t.Run("one that may not write is told of", func(t *testing.T) {
		f := finding(t, as("reader"), "target.grants")
		if f.Result != Fail || f.Seen != "reader lacks INSERT" || f.Mend != "GRANT INSERT ON `default`.`event_log` TO `reader`" {
			t.Errorf("%+v", f)
		}
	})
	t.Run("a wrong password is told of", func(t *testing.T) {
		config := as("reader")
		u.User = url.UserPassword("reader", "wrong-pass-word")
		config.ClickHouse = u.String()
		f := finding(t, config, clickhouseReachable)
		if f.Result != Fail || f.Mend != "check user and password in CLICKHOUSE_URL" || strings.Contains(f.Seen, "wrong-pass-word") {
			t.Errorf("%+v", f)
		}
	})
}

// TestParts lets parts pile up.
func TestParts(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.execClickHouse(t, `ALTER TABLE event_log MODIFY SETTING parts_to_throw_insert = 10, parts_to_delay_insert = 9`, `SYSTEM STOP MERGES event_log`)
	id := 0
	insert := func(n int) {
		for range n {
			id++ // the same row again would be dropped
			p.execClickHouse(t, fmt.Sprintf(`INSERT INTO event_log (id, event_type, event_date_time, environment) VALUES (%d, 'x', '2026-01-01 00:00:00', 'test')`, id))
		}
	}
	until(t, p.config, "target.parts", OK)
	insert(5)
	until(t, p.config, "target.parts", Warn)
	insert(4)
	until(t, p.config, "target.parts", Fail)
}

func settingsIllnesses() []illness {
	return []illness{
		{check: "settings.admin_addr", seen: "0.0.0.0:8081", config: func(c *Config) { c.AdminAddr = "0.0.0.0:8081" }},
		{check: "settings.batch_rows", seen: "10 events at most", config: func(c *Config) { c.BatchRows = 10 }},
		{check: "settings.max_slot_wal", seen: "is not below max_slot_wal_keep_size", pg: system("max_slot_wal_keep_size", "'1GB'"), cure: reset("max_slot_wal_keep_size")},
	}
}
