package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/share"
)

// chunk is how many buckets one statement adds up: about 260 000 rows, a second or so.
const chunk = 4

// statementTimeout bounds a statement of the audit. It is for a server that hangs: a chunk takes seconds.
const statementTimeout = 10 * time.Minute

// postgres is the outbox and the ledger.
type postgres struct {
	pool   *pgxpool.Pool
	config Config
	table  string      // quoted
	trace  bool        // the outbox has trace_context
	utf8   bool        // texts need no conversion to be hashed as ClickHouse hashes them
	text   string      // SQL: what the hash is of
	mine   share.Share // which rows the stream carries
	slots  []string    // the stream, and those that carried the outbox before it or carry other shares of it
}

func openPostgres(ctx context.Context, pool *pgxpool.Pool, config Config) (*postgres, error) {
	p := &postgres{pool: pool, config: config, table: pgx.Identifier{config.Schema, config.Table}.Sanitize()}
	name := config.Schema + "." + config.Table
	var outbox, stream, standby bool
	var streamOutbox, filter string
	err := p.read(ctx, "look at Postgres", func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
SELECT to_regclass($1) IS NOT NULL, pg_is_in_recovery(), current_setting('server_encoding') = 'UTF8',
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = 'trace_context' AND NOT attisdropped),
       EXISTS (SELECT FROM sluicebox.stream WHERE slot = $2),
       coalesce((SELECT outbox FROM sluicebox.stream WHERE slot = $2), ''),
       coalesce((SELECT pg_get_expr(r.prqual, r.prrelid) FROM sluicebox.stream s
                 JOIN pg_publication_rel r ON r.prpubid::text = split_part(s.publication, ' ', 1) AND r.prrelid = to_regclass($1)
                 WHERE s.slot = $2), ''),
       ARRAY (SELECT slot FROM sluicebox.stream WHERE slot = $2 OR outbox = $3 ORDER BY slot)`,
			p.table, config.Slot, name).Scan(&outbox, &standby, &p.utf8, &p.trace, &stream, &streamOutbox, &filter, &p.slots)
	})
	switch {
	case err != nil:
		return nil, err
	case standby:
		return nil, setupError("name the primary in DATABASE_URL", "this Postgres is a standby: what it has not replayed yet would look like a difference")
	case !outbox:
		return nil, setupError("set CDC_TABLE, or run `cdc migrate`, which creates the table", "there is no table %s", name)
	case !stream:
		return nil, setupError("set CDC_SLOT to the slot of the daemon", "no daemon has ever run with slot %s", config.Slot)
	case streamOutbox != "" && streamOutbox != name:
		return nil, setupError("set CDC_TABLE or CDC_SLOT as they are for the daemon", "slot %s belongs to table %s, not to %s", config.Slot, streamOutbox, name)
	}
	carries, ok := share.OfFilter(filter)
	if !ok {
		return nil, setupError("see docs/scaling.md", "the publication of slot %s has the row filter %s, and not that of a share", config.Slot, filter)
	}
	p.mine = carries
	return p, nil
}

// read runs statements in a transaction that no time-out of the role ends early. transaction_timeout is there from 17 on. Sorting
// is made unattractive because Postgres can't know how few the groups are, and would write all rows to disk to sort them.
func (p *postgres) read(ctx context.Context, what string, f func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err := pgx.BeginTxFunc(ctx, p.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `
SELECT set_config(name, CASE name WHEN 'enable_sort' THEN 'off' ELSE '0' END, true) FROM pg_settings
WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout', 'enable_sort')`); err != nil {
			return err
		}
		return f(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// canonical is the SQL of an event as text, of the columns that are compared. It is the same to the byte as clickHouse.canonical.
// The separator is a character that JSON has to escape.
func (p *postgres) canonical(compared map[string]bool) string {
	trace := `''`
	if p.trace {
		trace = traceID
	}
	text := []string{`o.id::text`}
	for _, column := range []struct{ name, sql string }{
		{columnTime, microsOf(`o.event_date_time`) + `::text`},
		{columnVersion, `coalesce(o.metadata_version::text, '')`},
		{columnTrace, trace},
		{columnEnvironment, `coalesce(o.environment, '')`},
		{columnType, `coalesce(o.event_type, '')`},
		{columnContext, `coalesce(o.event_context::text, '')`},
	} {
		if compared[column.name] {
			text = append(text, column.sql)
		}
	}
	return strings.Join(text, ` || E'\x1f' || `)
}

// traceID is the trace id of a valid W3C traceparent, and empty for any other text. A regular expression costs far more than all the rest
// of an event; only traceparents of later versions, which nobody sends yet, need one.
const traceID = `CASE
    WHEN substr(o.trace_context, 4, 32) = repeat('0', 32) OR substr(o.trace_context, 37, 16) = repeat('0', 16) THEN ''
    WHEN octet_length(o.trace_context) = 55 AND left(o.trace_context, 3) <> 'ff-' AND substr(o.trace_context, 3, 1) = '-'
         AND substr(o.trace_context, 36, 1) = '-' AND substr(o.trace_context, 53, 1) = '-'
         AND translate(o.trace_context, '0123456789abcdef', '') = '---' THEN substr(o.trace_context, 4, 32)
    WHEN octet_length(o.trace_context) BETWEEN 56 AND 255 AND left(o.trace_context, 3) NOT IN ('00-', 'ff-')
         AND o.trace_context ~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}-[!-~]*$' THEN substr(o.trace_context, 4, 32)
    ELSE '' END`

// microsOf is microseconds since 1970; 0 for an infinite time, which ClickHouse can't have.
func microsOf(column string) string {
	return `CASE WHEN isfinite(` + column + `) THEN (extract(epoch FROM ` + column + `) * 1000000)::bigint ELSE 0 END`
}

// dayOf is the day (UTC) since 1970.
const dayOf = `CASE WHEN isfinite(o.event_date_time) THEN (o.event_date_time AT TIME ZONE 'UTC')::date - date '1970-01-01' ELSE -2147483648 END`

// hash is the SQL of the first 8 bytes of an event's MD5, big-endian, as the signed number that Postgres has.
func (p *postgres) hash() string {
	text := p.text
	if !p.utf8 {
		text = `convert_to(` + text + `, 'UTF8')`
	}
	return `('x' || left(md5(` + text + `), 16))::bit(64)::bigint`
}

// inPeriod is the SQL of a condition; the parameters are since and until.
func inPeriod(since, until string) string {
	return `(` + since + `::timestamptz IS NULL OR o.event_date_time >= ` + since + `) AND (` + until + `::timestamptz IS NULL OR o.event_date_time < ` + until + `)`
}

// instant is a parameter for inPeriod.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// extent reads the ends of the primary key, and the planner's estimate of rows.
func (p *postgres) extent(ctx context.Context) (e extent, err error) {
	err = p.read(ctx, "look at the outbox", func(ctx context.Context, tx pgx.Tx) error {
		var least, most *int64
		var rows float64
		err := tx.QueryRow(ctx, `
SELECT (SELECT min(id) FROM `+p.table+`), (SELECT max(id) FROM `+p.table+`), (SELECT reltuples FROM pg_class WHERE oid = to_regclass($1))`,
			p.table).Scan(&least, &most, &rows)
		if err != nil || least == nil {
			return err
		}
		e = extent{rows: uint64(max(rows, 1)), least: *least, most: *most}
		return nil
	})
	return e, err
}

// group is what one side has of the events of one day in one bucket.
type group struct {
	bucket  int64
	day     int32  // since 1970, UTC
	rows    uint64 // in Postgres: processed ones
	sum     uint64 // of their hashes, modulo 2⁶⁴
	waiting uint64 // in Postgres: rows that are not processed
	old     uint64 // in ClickHouse: rows that the retention may have removed from Postgres
}

// groups gives them in order, by statements of a chunk of buckets each, through the primary key. The last one is open: rows may
// have been added.
func (p *postgres) groups(ctx context.Context, size buckets, progress func(float64), each func(group) error) error {
	for from := size.least; from <= size.most; from += chunk {
		low, high := size.ids(run{from: from, to: from + chunk - 1})
		last := from+chunk > size.most
		var groups []group
		err := p.read(ctx, "add up the outbox", func(ctx context.Context, tx pgx.Tx) error {
			rows, err := tx.Query(ctx, `
SELECT o.id >> $1, `+dayOf+`, count(*) FILTER (WHERE o.processed), count(*) FILTER (WHERE NOT o.processed),
       coalesce(sum(`+p.hash()+`) FILTER (WHERE o.processed), 0)::text
FROM `+p.table+` o WHERE o.id >= $2 AND ($3 OR o.id <= $4) AND `+p.mine.Where(`o.id`)+` AND `+inPeriod(`$5`, `$6`)+` GROUP BY 1, 2`,
				int32(size.shift), low, last, high, instant(p.config.Since), instant(p.config.Until))
			if err != nil {
				return err
			}
			groups, err = pgx.CollectRows(rows, scanGroup)
			return err
		})
		if err != nil {
			return err
		}
		slices.SortFunc(groups, func(a, b group) int { return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.day, b.day)) })
		for _, g := range groups {
			if err := each(g); err != nil {
				return err
			}
		}
		progress(float64(from+chunk-size.least) / float64(size.most-size.least+chunk))
	}
	progress(1)
	return nil
}

func scanGroup(row pgx.CollectableRow) (g group, err error) {
	var sum string
	if err := row.Scan(&g.bucket, &g.day, &g.rows, &g.waiting, &sum); err != nil {
		return g, err
	}
	n, ok := new(big.Int).SetString(sum, 10)
	if !ok {
		return g, errors.New("a sum is not a number")
	}
	modulus := new(big.Int).Lsh(big.NewInt(1), 64)
	g.sum = n.Mod(n, modulus).Uint64() // never negative: Mod is Euclidean
	return g, nil
}

// hashed is an event of one side.
type hashed struct {
	id        int64
	hash      uint64
	processed bool // in Postgres
	rows      uint64
	day       int32 // in ClickHouse
	old       bool  // in ClickHouse: the retention may have removed it from Postgres
}

// hashes gives the events of a range of ids in order.
func (p *postgres) hashes(ctx context.Context, from, to int64, within period, each func(hashed) error) error {
	return p.read(ctx, "read the hashes of the outbox", func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
SELECT o.id, o.processed, CASE WHEN o.processed THEN `+p.hash()+` ELSE 0 END
FROM `+p.table+` o WHERE o.id BETWEEN $1 AND $2 AND `+p.mine.Where(`o.id`)+` AND `+inPeriod(`$3`, `$4`)+` ORDER BY o.id`,
			from, to, instant(within.since), instant(within.until))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var h hashed
			var hash int64
			if err := rows.Scan(&h.id, &h.processed, &hash); err != nil {
				return err
			}
			h.hash = uint64(hash)
			if err := each(h); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// inPostgres is what Postgres says of an id.
type inPostgres struct {
	found     bool
	processed bool
	young     bool
	planned   bool // in a batch that is not settled
	hash      uint64
	day       int32
}

// find reads rows, and planned batches, in one statement: settling a batch changes both at once. trimmed is as of trimmedBefore.
func (p *postgres) find(ctx context.Context, ids []int64) (found map[int64]inPostgres, trimmed time.Time, err error) {
	found = make(map[int64]inPostgres, len(ids))
	err = p.read(ctx, "look at events in Postgres", func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
SELECT i.id, o.id IS NOT NULL, coalesce(o.processed, false), coalesce(o.processed_at > now() - $3::interval, false),
       EXISTS (SELECT FROM sluicebox.batch b WHERE b.slot = ANY ($1) AND b.state = 'planned' AND b.ids @> i.id),
       CASE WHEN o.id IS NULL THEN 0 ELSE `+p.hash()+` END, CASE WHEN o.id IS NULL THEN 0 ELSE `+dayOf+` END,
       (SELECT max(trimmed_before) FROM sluicebox.stream WHERE slot = ANY ($1))
FROM unnest($2::bigint[]) AS i (id) LEFT JOIN `+p.table+` o ON o.id = i.id`, p.slots, ids, youngAge)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id, hash int64
			var at inPostgres
			var before *time.Time
			if err := rows.Scan(&id, &at.found, &at.processed, &at.young, &at.planned, &hash, &at.day, &before); err != nil {
				return err
			}
			at.hash = uint64(hash)
			found[id] = at
			if before != nil {
				trimmed = *before
			}
		}
		return rows.Err()
	})
	return found, trimmed, err
}

// trimmedBefore is the time before which settled rows may have been removed; zero: none was.
func (p *postgres) trimmedBefore(ctx context.Context) (at time.Time, err error) {
	err = p.read(ctx, "look at the retention", func(ctx context.Context, tx pgx.Tx) error {
		var before *time.Time
		err := tx.QueryRow(ctx, `SELECT max(trimmed_before) FROM sluicebox.stream WHERE slot = ANY ($1)`, p.slots).Scan(&before)
		if err == nil && before != nil {
			at = *before
		}
		return err
	})
	return at, err
}

// quarantined counts the rows that were put aside, of those that the audit is about.
func (p *postgres) quarantined(ctx context.Context) (n uint64, err error) {
	err = p.read(ctx, "count the quarantine", func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, `
SELECT count(*) FROM sluicebox.quarantine q JOIN `+p.table+` o ON o.id = q.id
WHERE q.slot = $1 AND NOT o.processed AND `+inPeriod(`$2`, `$3`), p.config.Slot, instant(p.config.Since), instant(p.config.Until)).Scan(&n)
	})
	return n, err
}
