package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/churl"
	"github.com/sluicebox/sluicebox/internal/share"
)

// Columns of the target table.
const (
	columnSource      = "source"
	columnTime        = "event_date_time"
	columnVersion     = "metadata_version"
	columnTrace       = "trace_id"
	columnEnvironment = "environment"
	columnType        = "event_type"
	columnContext     = "event_context"
	columnIngested    = "ingested_at"
)

// clickHouse is the target table.
type clickHouse struct {
	conn        driver.Conn
	config      Config
	table       string // quoted
	types       map[string]string
	compared    map[string]bool
	notCompared []string
	text        string // SQL: what the hash is of
	sources     []string
	mine        share.Share
}

const (
	// dialTimeout bounds opening a connection.
	dialTimeout = 10 * time.Second
	// queryTimeout bounds adding up the whole table. The other queries take seconds.
	queryTimeout = time.Hour
	// sortMemory is what sorting the events of a run may take in ClickHouse before it goes to disk, in bytes.
	sortMemory = 256 << 20
)

// openClickHouse connects with the defaults of internal/sink, but for the time that an answer may take.
func openClickHouse(ctx context.Context, config Config) (*clickHouse, error) {
	options, err := churl.Parse(config.ClickHouseURL)
	if err != nil {
		return nil, setupError("correct the URL", "CLICKHOUSE_URL: %v", err)
	}
	if options.DialTimeout == 0 {
		options.DialTimeout = dialTimeout
	}
	if options.ReadTimeout == 0 && options.Protocol == clickhouse.HTTP {
		options.ReadTimeout = queryTimeout // HTTP has no sign of life before the first row
	}
	if options.Compression == nil {
		options.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	}
	options.ClientInfo.Products = append(options.ClientInfo.Products, struct{ Name, Version string }{"sluicebox", "audit"})
	conn, err := clickhouse.Open(options)
	if err != nil {
		return nil, fmt.Errorf("open ClickHouse: %w", err)
	}
	c := &clickHouse{conn: conn, config: config, types: map[string]string{}, compared: map[string]bool{}}
	if err := c.inspect(ctx); err != nil {
		_ = conn.Close() // the error says more
		return nil, err
	}
	return c, nil
}

func (c *clickHouse) inspect(ctx context.Context) error {
	database, table, qualified := strings.Cut(c.config.TargetTable, ".")
	c.table = quote(database) + "." + quote(table)
	if !qualified {
		database, table, c.table = "", c.config.TargetTable, quote(c.config.TargetTable)
	}
	err := c.query(ctx, "look at table "+c.config.TargetTable, nil, `SELECT name, type FROM system.columns
WHERE database = if(? = '', currentDatabase(), ?) AND table = ?`, []any{database, database, table}, func(rows driver.Rows) error {
		var name, kind string
		if err := rows.Scan(&name, &kind); err != nil {
			return err
		}
		c.types[name] = kind
		return nil
	})
	if err != nil {
		return err
	}
	if len(c.types) == 0 {
		return setupError("set CDC_TARGET_TABLE, run `cdc migrate`, or grant the user SELECT on the table", "ClickHouse has no table %s that this user can see", c.config.TargetTable)
	}
	for _, column := range []string{"id", columnTime} {
		if c.types[column] == "" {
			return setupError("add it as migrations/clickhouse defines it", "table %s lacks column %s", c.config.TargetTable, column)
		}
	}
	for _, column := range []string{columnTime, columnVersion, columnTrace, columnEnvironment, columnType, columnContext} {
		reason := c.whyNot(column)
		c.compared[column] = reason == ""
		if reason != "" {
			c.notCompared = append(c.notCompared, column+": "+reason)
		}
	}
	return nil
}

// whyNot says why a column can't be compared; empty: it can.
func (c *clickHouse) whyNot(column string) string {
	kind := c.types[column]
	text := kind == "String" || kind == "LowCardinality(String)"
	switch {
	case kind == "":
		return "the table lacks it"
	case column == columnTime && !slices.ContainsFunc([]string{"6", "7", "8", "9"}, func(precision string) bool {
		return strings.HasPrefix(kind, "DateTime64("+precision)
	}):
		return "its type " + kind + " holds no microseconds"
	case column == columnTime, column == columnVersion && strings.Contains(kind, "Int"), text:
		return ""
	}
	return "its type is " + kind
}

// canonical is the SQL of an event as text, the same to the byte as postgres.canonical.
func (c *clickHouse) canonical(compared map[string]bool) string {
	text := []string{`toString(toInt64(id))`}
	for _, column := range []struct{ name, sql string }{
		{columnTime, `toString(` + micros + `)`},
		{columnVersion, `toString(` + columnVersion + `)`},
		{columnTrace, columnTrace},
		{columnEnvironment, columnEnvironment},
		{columnType, columnType},
		{columnContext, columnContext},
	} {
		if compared[column.name] {
			text = append(text, `'\x1f'`, column.sql)
		}
	}
	return `concat(` + strings.Join(text, `, `) + `)`
}

const (
	micros = `toUnixTimestamp64Micro(toDateTime64(event_date_time, 6, 'UTC'))`
	// day is that since 1970; division alone would round times before that up.
	day = `toInt32(intDiv(` + micros + ` - positiveModulo(` + micros + `, 86400000000), 86400000000))`
)

// hash is the SQL of the first 8 bytes of an event's MD5, big-endian.
func (c *clickHouse) hash() string {
	return `reinterpretAsUInt64(reverse(substring(MD5(` + c.text + `), 1, 8)))`
}

// where limits a query to the rows of the stream, within a period, whichever stream of this outbox has delivered them: a row may have been
// marked under an earlier slot, or by an earlier share. Times are written as numbers, so nothing needs a quote.
func (c *clickHouse) where(within period) string {
	conditions := []string{`1`}
	if !within.since.IsZero() {
		conditions = append(conditions, `event_date_time >= `+instantSQL(within.since))
	}
	if !within.until.IsZero() {
		conditions = append(conditions, `event_date_time < `+instantSQL(within.until))
	}
	if c.types[columnSource] != "" {
		sources := make([]string, len(c.sources))
		for i, source := range c.sources {
			sources[i] = literal(source)
		}
		conditions = append(conditions, `source IN (`+strings.Join(sources, `, `)+`)`)
	}
	if !c.mine.Whole() {
		conditions = append(conditions, c.mine.Where(`toInt64(id)`))
	}
	return ` FROM ` + c.table + ` WHERE ` + strings.Join(conditions, ` AND `)
}

func instantSQL(t time.Time) string {
	return `fromUnixTimestamp64Micro(` + strconv.FormatInt(t.UnixMicro(), 10) + `, 'UTC')`
}

// ingested is the SQL of when a row was written. A table that does not tell has written all before any time that is asked for:
// a row that Postgres lacks is then held to be one that the retention removed.
func (c *clickHouse) ingested() string {
	if c.types[columnIngested] == "" {
		return `toDateTime64(0, 3, 'UTC')`
	}
	return columnIngested
}

// old is the SQL of whether a row was written before cut; zero: none was.
func (c *clickHouse) old(cut time.Time) string {
	if cut.IsZero() {
		return `0`
	}
	return c.ingested() + ` < ` + instantSQL(cut)
}

func (c *clickHouse) extent(ctx context.Context) (e extent, err error) {
	err = c.query(ctx, "look at the ids in ClickHouse", nil, `SELECT count(), min(toInt64(id)), max(toInt64(id))`+
		c.where(period{c.config.Since, c.config.Until}), nil, func(rows driver.Rows) error { return rows.Scan(&e.rows, &e.least, &e.most) })
	return e, err
}

// groups gives them in order.
func (c *clickHouse) groups(ctx context.Context, size buckets, cut time.Time, progress func(float64), each func(group) error) error {
	err := c.query(ctx, "add up the rows in ClickHouse", progress, `
SELECT bitShiftRight(toInt64(id), `+strconv.Itoa(int(size.shift))+`) AS bucket, `+day+` AS day, count(), sum(`+c.hash()+`),
       countIf(`+c.old(cut)+`)`+c.where(period{c.config.Since, c.config.Until})+`
GROUP BY bucket, day ORDER BY bucket, day`, nil, func(rows driver.Rows) error {
		var g group
		if err := rows.Scan(&g.bucket, &g.day, &g.rows, &g.sum, &g.old); err != nil {
			return err
		}
		return each(g)
	})
	progress(1)
	return err
}

// hashes gives the events of a range of ids in order; one that is there several times once, with the sum of the hashes.
func (c *clickHouse) hashes(ctx context.Context, from, to int64, within period, cut time.Time, each func(hashed) error) error {
	var last hashed
	err := c.query(ctx, "read the hashes in ClickHouse", nil, `
SELECT toInt64(id) AS n, `+c.hash()+`, `+day+`, toBool(`+c.old(cut)+`)`+c.where(within)+
		` AND n BETWEEN `+strconv.FormatInt(from, 10)+` AND `+strconv.FormatInt(to, 10)+` ORDER BY n`, nil, func(rows driver.Rows) error {
		h := hashed{rows: 1}
		if err := rows.Scan(&h.id, &h.hash, &h.day, &h.old); err != nil {
			return err
		}
		if last.rows > 0 && last.id == h.id {
			last.rows++
			last.hash += h.hash
			last.old = last.old && h.old
			return nil
		}
		previous := last
		last = h
		if previous.rows == 0 {
			return nil
		}
		return each(previous)
	})
	if err != nil || last.rows == 0 {
		return err
	}
	return each(last)
}

// inClickHouse is what ClickHouse says of an id.
type inClickHouse struct {
	rows     uint64
	hash     uint64 // the sum, when there are several rows
	day      int32
	young    bool
	ingested time.Time // the latest row
}

func (c *clickHouse) find(ctx context.Context, ids []int64) (map[int64]inClickHouse, error) {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = strconv.FormatInt(id, 10)
	}
	found := make(map[int64]inClickHouse, len(ids))
	err := c.query(ctx, "look at events in ClickHouse", nil, `
SELECT toInt64(id) AS n, count(), sum(`+c.hash()+`), min(`+day+`), toDateTime64(max(`+c.ingested()+`), 6, 'UTC') AS latest,
       toBool(latest > now64(6) - `+strconv.Itoa(int(youngAge.Seconds()))+`)`+c.where(period{})+
		` AND n IN (`+strings.Join(list, `,`)+`) GROUP BY n`, nil, func(rows driver.Rows) error {
		var id int64
		var at inClickHouse
		if err := rows.Scan(&id, &at.rows, &at.hash, &at.day, &at.ingested, &at.young); err != nil {
			return err
		}
		found[id] = at
		return nil
	})
	return found, err
}

// query runs a query and calls each with every row.
func (c *clickHouse) query(ctx context.Context, what string, progress func(float64), sql string, args []any, each func(driver.Rows) error) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	options := []clickhouse.QueryOption{clickhouse.WithSettings(clickhouse.Settings{"max_bytes_before_external_sort": sortMemory})}
	if progress != nil {
		var read, total uint64
		options = append(options, clickhouse.WithProgress(func(p *clickhouse.Progress) {
			read, total = read+p.Rows, total+p.TotalRows
			progress(min(float64(read)/float64(max(total, 1)), 1))
		}))
	}
	rows, err := c.conn.Query(clickhouse.Context(ctx, options...), sql, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, explain(err))
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	for rows.Next() {
		if err := each(rows); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// explain makes a [SetupError] of what the user is not allowed to do.
func explain(err error) error {
	exception, ok := errors.AsType[*clickhouse.Exception](err)
	if !ok {
		return err
	}
	const notGranted, readonly = 497, 164
	switch exception.Code {
	case notGranted:
		return setupError("grant the user SELECT on the table", "%s", exception.Message)
	case readonly:
		return setupError("give the user readonly = 2 instead of 1: it reads, but may bound time and memory of its queries", "%s", exception.Message)
	}
	return err
}

func quote(identifier string) string {
	return "`" + strings.NewReplacer(`\`, `\\`, "`", "\\`").Replace(identifier) + "`"
}

func literal(text string) string {
	return `'` + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(text) + `'`
}
