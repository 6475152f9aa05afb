package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/sink"
)

const (
	targetExists  = "target.exists"
	targetColumns = "target.columns"
)

// target is the table in ClickHouse.
type target struct {
	database   string
	engine     string
	settings   string // the whole of ENGINE …, with SETTINGS
	sortingKey string
	policy     string
	types      map[string]string // of columns
	seen       *sink.Target
	disk       string // the fullest of those it may be on
	free       int64  // bytes on it
	total      int64
}

func targetChecks() []check {
	on := []string{clickhouseReachable, targetExists, targetColumns}
	return []check{
		{targetExists, on[:1], findTarget, told},
		{"target.grants", on[:2], targetGrants, anytime},
		{"target.engine", on[:2], targetEngine, anytime},
		{targetColumns, on[:2], targetHasColumns, told},
		{"target.column_types", on, targetTypes, anytime},
		{"target.position_columns", on[:2], positionColumns, anytime},
		{"target.window", on, weakness(sink.NoWindow), told},
		{"target.partition_key", on, weakness(sink.OtherPartition), told},
		{"target.deadline", on, weakness(sink.NoDeadline), told},
		{"target.sorting_key", on[:2], sortingKey, anytime},
		{"target.position_index", on[:2], positionIndex, anytime},
		{"target.ttl", on[:2], ttl, anytime},
	}
}

// parts of the table's name; no database is that of the connection.
func (l *look) targetName() (database, table string) {
	if database, table, qualified := strings.Cut(l.config.TargetTable, "."); qualified {
		return database, table
	}
	return l.target.database, l.config.TargetTable
}

// targetSQL is the table as SQL writes it.
func (l *look) targetSQL() string {
	database, table := l.targetName()
	return name(database) + "." + name(table)
}

func findTarget(ctx context.Context, l *look) Finding {
	t := &l.target
	if err := l.ch.QueryRow(ctx, `SELECT currentDatabase()`).Scan(&t.database); err != nil {
		return unknown(err)
	}
	database, table := l.targetName()
	rows, err := l.ch.Query(ctx, `SELECT t.engine, t.engine_full, t.sorting_key, t.storage_policy, c.name, c.type
FROM system.tables t LEFT JOIN system.columns c ON c.database = t.database AND c.table = t.name WHERE t.database = ? AND t.name = ?`, database, table)
	if err != nil {
		return unknown(err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	t.types = map[string]string{}
	for rows.Next() {
		var column, kind string
		if err := rows.Scan(&t.engine, &t.settings, &t.sortingKey, &t.policy, &column, &kind); err != nil {
			return unknown(err)
		}
		t.types[column] = kind
	}
	if err := rows.Err(); err != nil {
		return unknown(err)
	}
	if t.engine == "" {
		return fail("table "+l.targetSQL(), "run `cdc migrate`, or set CDC_TARGET_TABLE; or GRANT SELECT, INSERT ON "+l.targetSQL()+" TO "+l.user(),
			"there is no such table that %s can see", l.warehouse.user)
	}
	l.readDisk(ctx)
	return ok("%s", l.targetSQL())
}

func targetGrants(ctx context.Context, l *look) Finding {
	var lacks []string
	for _, right := range []string{"SELECT", "INSERT"} {
		var has uint8
		if err := l.ch.QueryRow(ctx, `CHECK GRANT `+right+` ON `+l.targetSQL()).Scan(&has); err != nil {
			const syntaxError = 62
			if code(err) == syntaxError {
				return skip("ClickHouse %s has no CHECK GRANT", l.warehouse.version)
			}
			return unknown(err)
		}
		if has == 0 {
			lacks = append(lacks, right)
		}
	}
	if len(lacks) > 0 {
		list := strings.Join(lacks, ", ")
		return fail("SELECT and INSERT on the table", "GRANT "+list+" ON "+l.targetSQL()+" TO "+l.user(), "%s lacks %s", l.warehouse.user, list)
	}
	return ok("SELECT and INSERT")
}

func targetEngine(_ context.Context, l *look) Finding {
	plain := strings.TrimPrefix(strings.TrimPrefix(l.target.engine, "Replicated"), "Shared")
	const mend = "create a table as migrations/clickhouse defines it, and set CDC_TARGET_TABLE"
	switch {
	case plain == "MergeTree":
		return ok("%s", l.target.engine)
	case strings.HasSuffix(plain, "MergeTree"):
		return warn("MergeTree", mend, "%s changes or drops rows when it merges: counts change by themselves, and an audit finds differences", l.target.engine)
	}
	return fail("MergeTree", mend, "%s does not remember tokens: a batch that is sent again is stored again", l.target.engine)
}

// targetHasColumns asks the sink, which knows what it fills.
func targetHasColumns(ctx context.Context, l *look) Finding {
	var err error
	if l.target.seen, err = l.sink.Check(ctx); err != nil {
		refused, is := errors.AsType[*batch.Failure](err)
		if !is || refused.Class != batch.Configuration {
			return unknown(err)
		}
		return fail("the columns of an event", refused.Hint, "%v", refused.Err)
	}
	return ok("%d columns", len(l.target.types))
}

// targetTypes holds the types of columns against those that take every value of the outbox.
func targetTypes(_ context.Context, l *look) Finding {
	const text = "String"
	for _, want := range []struct {
		column string
		types  []string
	}{
		{"id", []string{"UInt64"}},
		{"event_type", []string{text}},
		{"environment", []string{text}},
		{"event_context", []string{text}},
		{"event_date_time", []string{"DateTime64(6, 'UTC')", "DateTime64(6)", "DateTime64(7)", "DateTime64(8)", "DateTime64(9)"}}, // a zone is how it is shown
		{"metadata_version", []string{"UInt32"}},
		{"lsn", []string{"UInt64", ""}},
		{"ordinal", []string{"UInt32", ""}},
	} {
		has := l.target.types[want.column]
		bare := strings.TrimSuffix(strings.TrimPrefix(has, "LowCardinality("), ")")
		if strings.HasPrefix(has, "DateTime64") {
			bare, _, _ = strings.Cut(strings.TrimSuffix(has, ")"), ",")
			bare += ")"
		}
		if !slices.Contains(want.types, bare) {
			mend := "ALTER TABLE " + l.targetSQL() + " MODIFY COLUMN " + want.column + " " + want.types[0]
			if strings.Contains(l.target.sortingKey, want.column) { // ClickHouse changes no type in the key
				mend = sink.NewTable
			}
			return warn(want.types[0], mend, "column %s is %s, which can't be filled, or does not hold every value of the outbox as it is", want.column, has)
		}
	}
	return ok("hold every value of the outbox")
}

// positionColumns are those that a table may lack.
func positionColumns(_ context.Context, l *look) Finding {
	var lacks []string
	for _, column := range []struct{ name, kind string }{{"source", "LowCardinality(String)"}, {"lsn", "UInt64"}, {"ordinal", "UInt32"}} {
		if l.target.types[column.name] == "" {
			lacks = append(lacks, "ADD COLUMN "+column.name+" "+column.kind)
		}
	}
	if len(lacks) > 0 {
		return warn("source, lsn and ordinal", "ALTER TABLE "+l.targetSQL()+" "+strings.Join(lacks, ", "),
			"the table can't tell streams apart, or readers in which order events were committed; look-ups after a crash are slower")
	}
	return ok("source, lsn and ordinal")
}

// weakness is the check for one of those that the sink knows.
func weakness(kind sink.WeaknessKind) func(context.Context, *look) Finding {
	return func(_ context.Context, l *look) Finding {
		for _, w := range l.target.seen.Weaknesses() {
			if w.Kind == kind {
				return warn("as migrations/clickhouse defines it", w.Mend, "%s", w.Seen)
			}
		}
		switch seen := l.target.seen; {
		case kind == sink.NoWindow:
			return ok("tokens of %d inserts are remembered", seen.Window)
		case kind == sink.OtherPartition && seen.Partition != "":
			return ok("%s", seen.Partition)
		case kind == sink.NoDeadline:
			return ok("inserts that are late are refused")
		}
		return ok("none")
	}
}

// sortingKey asks whether look-ups by id, by time or by position find rows without reading the whole table.
func sortingKey(_ context.Context, l *look) Finding {
	first, _, _ := strings.Cut(l.target.sortingKey, ",")
	if !slices.Contains([]string{"id", "event_type", "event_date_time", "lsn"}, strings.TrimSpace(first)) {
		return warn("(event_type, event_date_time, id)", "create a table as migrations/clickhouse defines it, fill it by INSERT INTO … SELECT, and EXCHANGE TABLES",
			"the table is sorted by (%s): looking up whether events are there reads all of it", l.target.sortingKey)
	}
	return ok("(%s)", l.target.sortingKey)
}

func positionIndex(ctx context.Context, l *look) Finding {
	if l.target.types["lsn"] == "" {
		return skip("there is no column lsn")
	}
	var n uint64
	database, table := l.targetName()
	err := l.ch.QueryRow(ctx, `SELECT count() FROM system.data_skipping_indices WHERE database = ? AND table = ? AND expr = 'lsn' AND type = 'minmax'`,
		database, table).Scan(&n)
	if err != nil {
		return unknown(err)
	}
	if n == 0 && !strings.HasPrefix(l.target.sortingKey, "lsn") {
		return warn("INDEX lsn_minmax lsn TYPE minmax", fmt.Sprintf("ALTER TABLE %[1]s ADD INDEX lsn_minmax lsn TYPE minmax GRANULARITY 1; ALTER TABLE %[1]s MATERIALIZE INDEX lsn_minmax", l.targetSQL()),
			"no index on lsn: looking up after a crash what has arrived reads whole partitions")
	}
	return ok("minmax")
}

func ttl(_ context.Context, l *look) Finding {
	if _, rule, has := strings.Cut(l.target.settings, " TTL "); has {
		rule, _, _ = strings.Cut(rule, " SETTINGS ")
		return warn("no TTL, or one that readers and auditors know of", "ALTER TABLE "+l.targetSQL()+" REMOVE TTL",
			"rows vanish by themselves (TTL %s): cdc audit calls them missing, unless CDC_RETENTION has removed them from Postgres", rule)
	}
	return ok("none")
}
