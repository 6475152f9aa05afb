// Package sink is the ClickHouse side of delivery: one batch becomes one block in one partition under one token.
//
// A write either surely stored the whole block, or it failed in one of the ways that [batch.Class] lists. The sink never tries
// again by itself: what a failure means is for the pipeline to decide, which has the ledger.
package sink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	columns "github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/churl"
	"github.com/sluicebox/sluicebox/internal/loopback"
	"github.com/sluicebox/sluicebox/outbox"
)

// ClickHouse writes to one table. It is safe for one writer at a time.
type ClickHouse struct {
	conn     driver.Conn // for questions
	inserts  driver.Conn // one connection: it keeps buffers of a batch's size, and ClickHouse gets one insert at a time
	table    string
	source   string
	deadline time.Duration // how long after planning the table accepts a batch

	mu     sync.Mutex
	target *Target // nil: must be looked at before the next write

	ignored []string // columns of the newest batch that the table lacks
}

const (
	// dialTimeout bounds opening a connection.
	dialTimeout = 10 * time.Second
	// queryTimeout bounds look-ups, which read one partition through a skip index.
	queryTimeout = time.Minute
	// writeTimeout bounds an insert. Beyond it the outcome is unknown and the connection is given up.
	writeTimeout = time.Minute
	// sendAt is how many bytes of a block are gathered before they are sent, as long as whole columns allow it.
	sendAt = 256 << 10
)

// DefaultDeadline is how long after planning ClickHouse accepts a batch, unless told otherwise: long enough for a few tries.
const DefaultDeadline = 5 * time.Minute

// New makes a sink. It does not connect: a server that is down now is a write that fails later.
//
// url gives a clickhouse:// or http:// URL as [churl.Parse] takes it, and is called again for each connection, since a password may have been
// changed; source is written into each row; deadline is how long after planning
// the table accepts a batch, from 1 s on.
func New(url func() string, table, source string, deadline time.Duration) (*ClickHouse, error) {
	options, err := churl.Parse(url())
	if err != nil {
		return nil, fmt.Errorf("parse the ClickHouse URL: %w", err)
	}
	if options.DialTimeout == 0 {
		options.DialTimeout = dialTimeout
	}
	if options.ReadTimeout == 0 || options.ReadTimeout > writeTimeout {
		options.ReadTimeout = writeTimeout
	}
	compress(options)
	options.MaxCompressionBuffer = sendAt
	churl.Follow(options, url)
	options.ConnMaxLifetime = time.Hour
	options.ClientInfo.Products = append(options.ClientInfo.Products, struct{ Name, Version string }{"sluicebox", ""})
	c := &ClickHouse{table: table, source: source, deadline: deadline}
	for _, pool := range []struct {
		conn       *driver.Conn
		open, idle int
	}{{&c.conn, 3, 2}, {&c.inserts, 1, 1}} {
		own := *options
		own.MaxOpenConns, own.MaxIdleConns = pool.open, pool.idle
		if *pool.conn, err = clickhouse.Open(&own); err != nil {
			return nil, fmt.Errorf("open ClickHouse: %w", err)
		}
	}
	return c, nil
}

// compress has blocks compressed, unless the URL says how: it costs processor time and memory on both sides, and pays on a network only.
func compress(options *clickhouse.Options) {
	if options.Compression == nil && slices.ContainsFunc(options.Addr, func(addr string) bool { return !loopback.Host(addr) }) {
		options.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	}
}

// Close gives all connections up.
func (c *ClickHouse) Close() error { return errors.Join(c.conn.Close(), c.inserts.Close()) }

// Clock gives ClickHouse's time, and the deadline of a batch that is planned now: the time after which ClickHouse must refuse it;
// zero when the table has no such constraint.
func (c *ClickHouse) Clock(ctx context.Context) (now, deadline time.Time, err error) {
	target, err := c.look(ctx)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	now = target.now()
	if target.HasDeadline {
		deadline = now.Add(c.deadline).Truncate(time.Second)
	}
	return now, deadline, nil
}

// Window is how many blocks the table remembers the tokens of.
func (c *ClickHouse) Window(ctx context.Context) (int, error) {
	target, err := c.look(ctx)
	if err != nil {
		return 0, err
	}
	return int(min(target.Window, math.MaxInt32)), nil
}

// Survey tells of the table what its operator should know: how many active parts the partition has that has most, and how many inserts'
// tokens are remembered, as far as that is known already; -1: it is not. It changes nothing that a writer goes by.
func (c *ClickHouse) Survey(ctx context.Context) (parts, window int64, err error) {
	const timeout = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var most uint64
	database, table := c.name()
	err = c.conn.QueryRow(ctx, `SELECT max(n) FROM (
    SELECT count() AS n FROM system.parts WHERE active AND database = if(? = '', currentDatabase(), ?) AND table = ? GROUP BY partition_id
)`, database, database, table).Scan(&most)
	if err != nil {
		return 0, 0, fmt.Errorf("count the parts of table %s: %w", c.table, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.target == nil {
		return int64(most), -1, nil
	}
	return int64(most), int64(min(c.target.Window, math.MaxInt64)), nil
}

// SeesAll says whether this user surely sees every row of the table: not with a row policy, and not through an engine that keeps the rows
// elsewhere. It may be false while others write.
func (c *ClickHouse) SeesAll(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	target, err := c.look(ctx)
	if err != nil {
		return false, err
	}
	var all *uint64
	var seen uint64
	database, table := c.name()
	err = c.conn.QueryRow(ctx, `SELECT total_rows, (SELECT count() FROM `+target.quoted+`) FROM system.tables
WHERE database = if(? = '', currentDatabase(), ?) AND name = ?`, database, database, table).Scan(&all, &seen)
	if err != nil {
		return false, classify(fmt.Errorf("count the rows of table %s: %w", c.table, err))
	}
	return all != nil && *all == seen, nil
}

// Write inserts the rows of a planned batch. The error is a *[batch.Failure]; nil means that the rows are stored, or were
// already, by an earlier insert under the same token.
func (c *ClickHouse) Write(ctx context.Context, b *batch.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, min(writeTimeout, c.deadline)) // a late reply is worth less than another try
	defer cancel()
	target, err := c.look(ctx)
	if err != nil {
		return err
	}
	if rejected := target.outOfTime(b); len(rejected) > 0 {
		return fmt.Errorf("write batch %d: %w", b.Seq, rejected.failure())
	}
	carried, ignored := target.carry(b)
	if !slices.Equal(ignored, c.ignored) { // the table may have got the columns since it was looked at
		if target, err = c.Check(ctx); err != nil {
			return err
		}
		carried, c.ignored = target.carry(b)
	}
	b.Ignored = c.ignored
	if err := c.write(ctx, target, b, carried); err != nil {
		c.forget()
		return classify(fmt.Errorf("write batch %d: %w", b.Seq, err))
	}
	return nil
}

// outOfTime are the rows whose time event_date_time can't hold: a DateTime, which a table of the operator's own may have, holds less than
// [batch.Reject] allows, and the client wraps what is beyond.
func (t *Target) outOfTime(b *batch.Batch) rejecting {
	kind := t.types["event_date_time"]
	if inner, ok := unwrap(kind, "Nullable"); ok {
		kind = inner
	}
	if kind != "DateTime" && !strings.HasPrefix(kind, "DateTime(") {
		return nil
	}
	rejected := rejecting{}
	for i := range b.Rows {
		if at := b.Rows[i].Time.Unix(); at < 0 || at > math.MaxUint32 {
			rejected.add(&b.Rows[i], "event_date_time", "has a value that a "+kind+" can't hold")
		}
	}
	return rejected
}

// write sends the batch, and with it the columns at some places of More.
func (c *ClickHouse) write(ctx context.Context, target *Target, b *batch.Batch, carried []int) error {
	settings := clickhouse.Settings{}
	for name, value := range pinned {
		if target.Known[name] {
			settings[name] = value
		}
	}
	settings["insert_deduplication_token"] = b.Token
	columns, names := target.insertColumns(), target.names
	more := make([][]any, len(carried))
	rejected := rejecting{}
	for i, place := range carried {
		var err error
		if more[i], err = target.values(b, place, rejected); err != nil {
			return err
		}
		name := b.Rows[0].More[place].Name
		columns = append(columns, clickhouse.ColumnNameAndType{Name: name, Type: target.types[name]})
		names += ", " + quote(name)
	}
	if len(rejected) > 0 {
		return rejected.failure()
	}
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(settings), clickhouse.WithColumnNamesAndTypes(columns))
	insert, err := c.inserts.PrepareBatch(ctx, `INSERT INTO `+target.quoted+` (`+names+`)`)
	if err != nil {
		return err
	}
	raw := insert.Columns()
	for i, column := range target.columns {
		if err := column.fill(c, b, insert.Column(i), raw[i]); err != nil {
			return unfit(column.name, target.types[column.name], joinAbort(insert, err))
		}
	}
	for i, values := range more {
		column := insert.Column(len(target.columns) + i)
		for j, value := range values {
			if err := column.AppendRow(value); err != nil {
				name := b.Rows[j].More[carried[i]].Name
				return unfit(name, target.types[name], joinAbort(insert, err))
			}
		}
	}
	return insert.Send() // exactly one block: never Flush (FACTS C12b)
}

// unfit is an error of the client that fills a column: nothing was sent. What it says of a value that doesn't fit repeats the value.
func unfit(column, kind string, err error) error {
	switch {
	case errors.As(err, new(*columns.ColumnConverterError)):
		return &batch.Failure{
			Class: batch.Configuration, Err: fmt.Errorf("column %s of the table in ClickHouse has type %s, which can't be filled", column, kind),
			Hint: "compare the table with migrations/clickhouse",
		}
	case strings.Contains(kind, "Enum"), strings.Contains(kind, "FixedString"): // none of the names, or longer
		return &batch.Failure{Class: batch.Data, Err: fmt.Errorf("column %s has a value that a %s can't hold", column, kind)}
	}
	return fmt.Errorf("encode column %s: %w", column, err)
}

// Find returns which rows of a batch ClickHouse has. Where all positions are known, it reads by position and id, through the skip
// index (FACTS C10); otherwise by event time and id, in the order of the table. A row is the same one if its id is, and its event time or
// its position, unless neither is known: after a restore of Postgres ids come again.
func (c *ClickHouse) Find(ctx context.Context, b *batch.Batch) (map[int64]struct{}, error) {
	found := make(map[int64]struct{}, len(b.Rows))
	if len(b.Rows) == 0 {
		return found, nil
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	target, err := c.look(ctx)
	if err != nil {
		return nil, err
	}
	query, args := target.find(b.Rows)
	if target.has("source") {
		query += ` AND source = ?`
		args = append(args, c.source)
	}
	rows, err := c.conn.Query(clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"max_execution_time": 0})), query, args...)
	if err != nil {
		c.forget()
		return nil, classify(fmt.Errorf("look up batch %d: %w", b.Seq, err))
	}
	defer func() { _ = rows.Close() }() // rows.Err has told
	wanted := make(map[int64]*outbox.Row, len(b.Rows))
	for i := range b.Rows {
		wanted[b.Rows[i].ID] = &b.Rows[i]
	}
	for rows.Next() {
		var id uint64
		var at time.Time
		var position outbox.Position
		if err := rows.Scan(&id, &at, &position.CommitLSN, &position.Ordinal); err != nil {
			return nil, classify(fmt.Errorf("look up batch %d: %w", b.Seq, err))
		}
		want, ours := wanted[int64(id)]
		if ours && (want.Time.IsZero() || want.Time.Sub(at).Abs() < timePrecision || want.Position == position && position.Ordinal > 0) {
			found[int64(id)] = struct{}{}
		}
	}
	if err := rows.Err(); err != nil {
		c.forget()
		return nil, classify(fmt.Errorf("look up batch %d: %w", b.Seq, err))
	}
	return found, nil
}

// timePrecision is the coarsest precision that a table may keep event times with.
const timePrecision = time.Second

// find is the query for rows, without their source.
func (t *Target) find(rows []outbox.Row) (query string, args []any) {
	low, high := rows[0], rows[0]
	byTime := !t.has("lsn") // or a position is not known
	for i := range rows {
		r := &rows[i]
		low.ID, high.ID = min(low.ID, r.ID), max(high.ID, r.ID)
		low.Position.CommitLSN = min(low.Position.CommitLSN, r.Position.CommitLSN)
		high.Position.CommitLSN = max(high.Position.CommitLSN, r.Position.CommitLSN)
		low.Type, high.Type = min(low.Type, r.Type), max(high.Type, r.Type)
		if r.Time.Before(low.Time) {
			low.Time = r.Time
		}
		if r.Time.After(high.Time) {
			high.Time = r.Time
		}
		byTime = byTime || r.Position.Ordinal == 0
	}
	lsn, ordinal := "toUInt64(0)", "toUInt32(0)"
	if t.has("lsn") && t.has("ordinal") {
		lsn, ordinal = "lsn", "ordinal"
	}
	query = `SELECT id, event_date_time, ` + lsn + `, ` + ordinal + ` FROM ` + t.quoted + ` WHERE id BETWEEN ? AND ?`
	args = []any{uint64(low.ID), uint64(high.ID)}
	const few, sparse = 10_000, 4
	if len(rows) <= few && high.ID-low.ID > int64(sparse*len(rows)) { // ClickHouse would send all that lie between
		ids := make([]uint64, len(rows))
		for i := range rows {
			ids[i] = uint64(rows[i].ID)
		}
		query += ` AND id IN (?)`
		args = append(args, ids)
	}
	if !byTime {
		return query + ` AND lsn BETWEEN ? AND ?`, append(args, low.Position.CommitLSN, high.Position.CommitLSN)
	}
	if low.Time.IsZero() {
		return query, args // only ids are known
	}
	from, to := low.Time.Add(-timePrecision), high.Time.Add(timePrecision)
	if from.Before(batch.MinTime) {
		from = batch.MinTime
	}
	if !to.Before(batch.MaxTime) {
		to = batch.MaxTime.Add(-time.Microsecond)
	}
	query += ` AND event_type BETWEEN ? AND ? AND event_date_time BETWEEN fromUnixTimestamp64Micro(?, 'UTC') AND fromUnixTimestamp64Micro(?, 'UTC')`
	return query, append(args, low.Type, high.Type, from.UnixMicro(), to.UnixMicro())
}

// look returns what is known of the table, and looks at it if nothing is.
func (c *ClickHouse) look(ctx context.Context) (*Target, error) {
	c.mu.Lock()
	target := c.target
	c.mu.Unlock()
	if target != nil && time.Since(target.Seen) < lookAgain {
		return target, nil
	}
	return c.Check(ctx)
}

// lookAgain is how long what is known of the table is trusted: its clock drifts, and operators alter tables.
const lookAgain = time.Minute

// forget makes the next call look at the table again: a failed write may mean that it has changed.
func (c *ClickHouse) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = nil
}

// Check looks at the server and the table. The error is a *[batch.Failure].
func (c *ClickHouse) Check(ctx context.Context) (*Target, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	target, err := c.inspect(ctx)
	if err != nil {
		return nil, classify(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = target
	return target, nil
}

// Ready says whether batches can be written now, and warns of what weakens the promise.
func (c *ClickHouse) Ready(ctx context.Context) (warnings []string, err error) {
	target, err := c.Check(ctx)
	if err != nil {
		return nil, err
	}
	for _, weakness := range target.Weaknesses() {
		warnings = append(warnings, weakness.Seen+"; to mend it: "+weakness.Mend)
	}
	return warnings, nil
}

func joinAbort(insert driver.Batch, err error) error {
	_ = insert.Abort() // gives the connection up; the error that led here says more
	return err
}

// pinned settings go with every insert, as far as the server knows them: whatever a profile says, one batch stays one
// synchronous block whose token counts.
var pinned = clickhouse.Settings{ //nolint:gochecknoglobals // a constant table
	"async_insert":                                       0,                           // on by default from 26.2 (C1)
	"insert_deduplicate":                                 1,                           //
	"deduplicate_insert":                                 "enable",                    // where there is one, it overrides the former
	"max_insert_block_size":                              1_048_449,                   // the limits at which the server cuts blocks (C4): far above ours
	"max_insert_block_size_bytes":                        0,                           //
	"min_insert_block_size_rows":                         1_048_449,                   //
	"min_insert_block_size_bytes":                        268_435_456,                 //
	"use_strict_insert_block_limits":                     0,                           //
	"max_insert_threads":                                 1,                           //
	"max_insert_parallel_threads":                        1,                           //
	"insert_allow_materialized_columns":                  1,                           // the deadline column (C9)
	"deduplicate_blocks_in_dependent_materialized_views": 1,                           // (C7)
	"max_execution_time":                                 int(writeTimeout.Seconds()), // the server gives up when we do
	"wait_end_of_query":                                  1,                           // over HTTP: no success before the end
}

// known lists the names of pinned.
func known() []string {
	names := make([]string, 0, len(pinned))
	for name := range pinned {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
