package sink

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// Target is what the sink found out about the table.
type Target struct {
	Window      uint64 // blocks whose tokens are remembered; 0: tokens do nothing (C2)
	Partition   string // key; empty: the table has none
	HasDeadline bool   // the table refuses inserts after their deadline (C9)
	Known       map[string]bool
	Seen        time.Time // on our clock
	ServerTime  time.Time // the same moment on ClickHouse's

	zone    string // in which the partition key counts months: that of event_date_time, or the server's
	quoted  string
	names   string // of columns, as SQL writes the list
	types   map[string]string
	columns []targetColumn
}

// deadlineColumn and its constraint are what migrations/clickhouse gives a table.
const (
	partitionKey       = "toYYYYMM(event_date_time)" // what batch.Partition computes
	deadlineColumn     = "write_deadline"
	deadlineConstraint = "written_in_time"
)

// now is ClickHouse's time. It goes on from the last look by our monotonic clock: a step of our wall clock must not end the wait for an insert
// that may still land.
func (t *Target) now() time.Time { return t.ServerTime.Add(time.Since(t.Seen)) }

func (t *Target) has(column string) bool { _, ok := t.types[column]; return ok }

func (t *Target) insertColumns() []clickhouse.ColumnNameAndType {
	list := make([]clickhouse.ColumnNameAndType, len(t.columns))
	for i, c := range t.columns {
		list[i] = clickhouse.ColumnNameAndType{Name: c.name, Type: t.types[c.name]}
	}
	return list
}

// Weakness is something about the table that weakens the promise.
type Weakness struct {
	Kind WeaknessKind
	Seen string
	Mend string // a statement, or what else to do
}

// WeaknessKind is what is weak.
type WeaknessKind string

// The kinds of weaknesses.
const (
	NoWindow       WeaknessKind = "window"
	OtherPartition WeaknessKind = "partition"
	NoDeadline     WeaknessKind = "deadline"
)

// NewTable is what mends a table whose keys or types are not as they must be: ClickHouse changes none of them in place.
const NewTable = "create a table as migrations/clickhouse defines it, fill it by INSERT INTO … SELECT while no daemon runs, and EXCHANGE TABLES"

// Weaknesses lists what weakens the promise.
func (t *Target) Weaknesses() (all []Weakness) {
	if t.Window == 0 {
		all = append(all, Weakness{
			NoWindow, "the target table has no deduplication window, so a lost reply can double a batch: delivery is at least once",
			"ALTER TABLE " + t.quoted + " MODIFY SETTING non_replicated_deduplication_window = 10000",
		})
	}
	if t.Partition != "" && t.Partition != partitionKey {
		all = append(all, Weakness{
			OtherPartition, "the target table is partitioned by " + t.Partition + " and not by " + partitionKey +
				", so one batch may become several parts, which are not written all or none",
			NewTable,
		})
	}
	if t.Partition == partitionKey && !slices.Contains([]string{"UTC", "Etc/UTC", "Etc/UCT", "UCT", "Zulu", "Universal", "GMT", "Etc/GMT"}, t.zone) {
		all = append(all, Weakness{
			OtherPartition, "the target table is partitioned by months of the zone " + t.zone + ", not of UTC, so a batch may become several parts, which are " +
				"not written all or none",
			NewTable,
		})
	}
	if !t.HasDeadline {
		all = append(all, Weakness{
			NoDeadline, "the target table has no constraint " + deadlineConstraint + ", so an insert that was paused for longer than the " +
				"deduplication window remembers can double a batch",
			"ALTER TABLE " + t.quoted + " ADD COLUMN IF NOT EXISTS " + deadlineColumn + " DateTime('UTC') MATERIALIZED toDateTime('2106-02-07 00:00:00', 'UTC'), " +
				"ADD CONSTRAINT " + deadlineConstraint + " CHECK " + deadlineColumn + " >= nowInBlock()",
		})
	}
	return all
}

// inspect asks the server about itself and the table.
func (c *ClickHouse) inspect(ctx context.Context) (*Target, error) {
	t := &Target{types: map[string]string{}, Known: map[string]bool{}}
	database, table := c.name()
	t.quoted = quote(table)
	if database != "" {
		t.quoted = quote(database) + "." + t.quoted
	}
	var now time.Time
	asked := time.Now()
	if err := c.conn.QueryRow(ctx, `SELECT now64(6, 'UTC'), timezone()`).Scan(&now, &t.zone); err != nil {
		return nil, fmt.Errorf("ask ClickHouse for its time: %w", err)
	}
	t.Seen = time.Now()
	t.ServerTime = now.Add(t.Seen.Sub(asked) / 2)

	var engine, create, settings, partition string
	err := c.conn.QueryRow(ctx, `SELECT engine, engine_full, create_table_query, partition_key FROM system.tables
WHERE database = if(? = '', currentDatabase(), ?) AND name = ?`, database, database, table).Scan(&engine, &settings, &create, &partition)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, &batch.Failure{
			Class: batch.Configuration, Err: fmt.Errorf("ClickHouse has no table %s", c.table),
			Hint: "run `cdc migrate`, which creates it, or set CDC_TARGET_TABLE",
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look at table %s: %w", c.table, err)
	}
	if create == "" { // what is asked for below would look absent, and the promise weaker than it is
		return nil, &batch.Failure{
			Class: batch.Configuration, Err: fmt.Errorf("ClickHouse does not tell how table %s is defined: it cannot read the table's metadata file", c.table),
			Hint: "a full disk of ClickHouse can cost that file, and a restart then costs the table: docs/situations.md tells how to bring it back",
		}
	}
	t.Window = window(engine, settings)
	t.Partition = partition
	if err := c.inspectColumns(ctx, t, database, table); err != nil {
		return nil, err
	}
	if _, after, ok := strings.Cut(t.types["event_date_time"], "'"); ok {
		t.zone, _, _ = strings.Cut(after, "'")
	}
	t.HasDeadline = t.has(deadlineColumn) && strings.Contains(create, "CONSTRAINT "+deadlineConstraint)
	if err := t.plan(c.table); err != nil {
		return nil, err
	}
	rows, err := c.conn.Query(ctx, `SELECT name FROM system.settings WHERE has(?, name)`, known())
	if err != nil {
		return nil, fmt.Errorf("ask ClickHouse for its settings: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("ask ClickHouse for its settings: %w", err)
		}
		t.Known[name] = true
	}
	return t, rows.Err()
}

// name is the table's; no database is that of the connection.
func (c *ClickHouse) name() (database, table string) {
	if database, table, ok := strings.Cut(c.table, "."); ok {
		return database, table
	}
	return "", c.table
}

func (c *ClickHouse) inspectColumns(ctx context.Context, t *Target, database, table string) error {
	rows, err := c.conn.Query(ctx, `SELECT name, type FROM system.columns
WHERE database = if(? = '', currentDatabase(), ?) AND table = ? AND (default_kind IN ('', 'DEFAULT') OR name = '`+deadlineColumn+`')`, database, database, table)
	if err != nil {
		return fmt.Errorf("look at the columns of table %s: %w", c.table, err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	for rows.Next() {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			return fmt.Errorf("look at the columns of table %s: %w", c.table, err)
		}
		t.types[name] = kind
	}
	return rows.Err()
}

// plan decides which columns are written.
func (t *Target) plan(table string) error {
	var missing, names []string
	for _, column := range allColumns() {
		switch {
		case column.name == deadlineColumn && !t.HasDeadline:
		case t.has(column.name) && !clientReads(t.types[column.name]):
			return &batch.Failure{
				Class: batch.Configuration, Err: fmt.Errorf("column %s of table %s has type %s, which can't be filled", column.name, table, t.types[column.name]),
				Hint: "make it a LowCardinality(String)",
			}
		case t.has(column.name):
			t.columns = append(t.columns, column)
			names = append(names, quote(column.name))
		case column.required:
			missing = append(missing, column.name)
		}
	}
	if len(missing) > 0 {
		return &batch.Failure{
			Class: batch.Configuration, Err: fmt.Errorf("table %s lacks columns: %s", table, strings.Join(missing, ", ")),
			Hint: "add them as migrations/clickhouse defines them",
		}
	}
	t.names = strings.Join(names, ", ")
	return nil
}

// window reads how many blocks' tokens a table remembers. Replicated tables always remember some.
func window(engine, settings string) uint64 {
	name, none := "non_replicated_deduplication_window", uint64(0)
	if strings.HasPrefix(engine, "Replicated") || strings.HasPrefix(engine, "Shared") {
		name, none = "replicated_deduplication_window", 10_000
	}
	match := regexp.MustCompile(`\b` + name + ` = '?(\d+)`).FindStringSubmatch(settings)
	if match == nil {
		return none
	}
	n, err := strconv.ParseUint(match[1], 10, 64)
	if err != nil {
		return none
	}
	return n
}

func quote(identifier string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(identifier) + "`"
}
