package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgxpool"
)

// oracle holds what is in the two databases against the journal of the writers. It reads them over connections of its own, and trusts
// nothing that the daemon says of itself.
//
// Each look reads the side first that is changed last, so that a delivery between its two reads can't make a false alarm: an event is
// in ClickHouse before it is marked, and before the slot is acknowledged.
type oracle struct {
	pg      *pgxpool.Pool
	ch      driver.Conn
	slot    string
	journal *journal
	report  func(violation string)

	lacking  atomic.Bool // ClickHouse was made anew on purpose, and does not have everything back yet
	tampered atomic.Bool // the publication was changed on purpose: Postgres skips events until the daemon notices
	looked   looks
	ingested time.Time // of the newest row that tail has read
}

// looks counts the looks of an oracle that came to an end: one that never looked has found nothing either.
type looks struct {
	once, marks, flushed atomic.Int64
}

// tailMargin is how far behind the newest row tail reads again: a block may become visible later than one that was begun after it.
const tailMargin = 3 * time.Second

// once holds the promise of a plain SELECT at this moment, and that nothing was delivered which was never committed.
func (o *oracle) once(ctx context.Context) error {
	var rows, ids, ghosts uint64
	err := o.ch.QueryRow(ctx, `SELECT count(), uniqExact(source, id), countIf(event_type = '`+ghostType+`') FROM event_log`).Scan(&rows, &ids, &ghosts)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	o.looked.once.Add(1)
	if rows != ids {
		o.report(fmt.Sprintf("duplicate: a plain SELECT counts %d rows of %d events", rows, ids))
	}
	if ghosts > 0 {
		o.report(fmt.Sprintf("ghost: %d events of transactions or savepoints that were rolled back are in ClickHouse", ghosts))
	}
	return nil
}

// tail reads what has come to ClickHouse, and compares each new event with what its writer meant.
func (o *oracle) tail(ctx context.Context) error {
	rows, err := o.ch.Query(ctx, `
SELECT id, event_type, toUnixTimestamp64Micro(event_date_time), environment, event_context, metadata_version, lsn, ordinal, ingested_at
FROM event_log WHERE ingested_at >= ?`, o.ingested.Add(-tailMargin))
	if err != nil {
		return fmt.Errorf("read new events: %w", err)
	}
	defer func() { _ = rows.Close() }() // Err tells
	for rows.Next() {
		var at time.Time
		r, err := scanArrived(rows, &at)
		if err != nil {
			return fmt.Errorf("read new events: %w", err)
		}
		if at.After(o.ingested) {
			o.ingested = at
		}
		if e, ok := o.journal.get(r.key); ok && e.seen {
			continue
		}
		if o.content(r) {
			o.journal.saw(r.key)
		}
	}
	return rows.Err()
}

// arrived is a row of ClickHouse.
type arrived struct {
	id, key, hash uint64
	micros        int64
	lsn           uint64
	ordinal       uint32
}

func scanArrived(rows driver.Rows, more ...any) (arrived, error) {
	var r arrived
	var typ, env, context string
	var version uint32
	if err := rows.Scan(append([]any{&r.id, &typ, &r.micros, &env, &context, &version, &r.lsn, &r.ordinal}, more...)...); err != nil {
		return r, err
	}
	r.key = keyOf(context)
	r.hash = contentHash(typ, env, context, int64(version))
	return r, nil
}

// content compares an arrived event with what its writer meant; false: nobody wrote it.
func (o *oracle) content(r arrived) bool {
	e, ok := o.journal.get(r.key)
	switch {
	case !ok:
		o.report(fmt.Sprintf("invented: event %d is in ClickHouse, and nobody wrote it", r.id))
		return false
	case e.outcome == aborted:
		o.report(fmt.Sprintf("ghost: event %d (key %d) is in ClickHouse, and was rolled back", r.id, r.key))
	case e.hash != r.hash || e.micros != 0 && e.micros != r.micros:
		o.report(fmt.Sprintf("content: event %d (key %d) is not in ClickHouse as it was written", r.id, r.key))
	}
	return true
}

// marks holds that what is marked processed is in ClickHouse. It looks at the newest rows; the others were looked at before, and are
// again in compare.
func (o *oracle) marks(ctx context.Context) error {
	const newest = 20_000
	marked, err := o.ids(ctx, `SELECT id FROM event_outbox WHERE processed AND id > (SELECT coalesce(max(id), 0) FROM event_outbox) - $1 ORDER BY id`, newest)
	if err != nil || len(marked) == 0 {
		return err
	}
	there, err := o.idsInClickHouse(ctx, marked[0])
	if err != nil {
		return err
	}
	if o.lacking.Load() {
		return nil
	}
	o.looked.marks.Add(1)
	for _, id := range marked {
		if _, ok := there[id]; !ok {
			o.report(fmt.Sprintf("mark: event %d is marked processed, and is not in ClickHouse", id))
			return nil // one of them is enough to fail
		}
	}
	return nil
}

func (o *oracle) ids(ctx context.Context, sql string, args ...any) (ids []uint64, err error) {
	rows, err := o.pg.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("read ids: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id uint64
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read ids: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

func (o *oracle) idsInClickHouse(ctx context.Context, from uint64) (map[uint64]struct{}, error) {
	rows, err := o.ch.Query(ctx, `SELECT id FROM event_log WHERE id >= ?`, from)
	if err != nil {
		return nil, fmt.Errorf("read ids: %w", err)
	}
	defer func() { _ = rows.Close() }() // Err tells
	ids := map[uint64]struct{}{}
	for rows.Next() {
		var id uint64
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("read ids: %w", err)
		}
		ids[id] = struct{}{}
	}
	return ids, rows.Err()
}

// flushed holds that everything which Postgres may forget is in ClickHouse.
func (o *oracle) flushed(ctx context.Context) error {
	var text string
	var whole bool
	err := o.pg.QueryRow(ctx, `
SELECT coalesce(min(r.confirmed_flush_lsn), '0/0')::text, coalesce(bool_and(s.phase = 'stream' AND r.confirmed_flush_lsn <= s.acked_lsn), false)
FROM pg_replication_slots r JOIN sluicebox.stream s ON s.slot = r.slot_name WHERE r.slot_name = $1`, o.slot).Scan(&text, &whole)
	if err != nil {
		return fmt.Errorf("read the slot: %w", err)
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return fmt.Errorf("read the slot: %w", err)
	}
	// A slot that is being made anew begins after rows that are read from the table, and one that somebody moved lacks some, until the
	// daemon sees it. What the daemon wrote says only that there is nothing to be held yet: the comparison after each round needs none of it.
	if !whole || o.tampered.Load() || o.lacking.Load() {
		return nil
	}
	due := o.journal.due(uint64(lsn))
	if err := o.tail(ctx); err != nil {
		return err
	}
	o.looked.flushed.Add(1)
	for _, key := range due {
		if e, _ := o.journal.get(key); e.seen {
			continue
		}
		var n uint64
		if err := o.ch.QueryRow(ctx, `SELECT count() FROM event_log WHERE event_context LIKE ?`, fmt.Sprintf(`{"k": %d,%%`, key)).Scan(&n); err != nil {
			return fmt.Errorf("look for an event: %w", err)
		}
		if n == 0 && !o.tampered.Load() && !o.lacking.Load() {
			o.report(fmt.Sprintf("flush: the slot is acknowledged up to %s, and key %d, which was committed before, is not in ClickHouse", lsn, key))
			return nil
		}
		o.journal.saw(key)
	}
	return nil
}

// stored is a row of the outbox.
type stored struct {
	id, key, hash uint64
	micros        int64
	processed     bool
}

// compare holds both databases against the journal, for all rows with ids above from. Nobody may be writing, and everything must have been
// delivered. It returns the highest id.
func (o *oracle) compare(ctx context.Context, from uint64) (highest uint64, err error) {
	inPostgres, err := o.stored(ctx, from)
	if err != nil {
		return 0, err
	}
	inClickHouse, err := o.arrived(ctx, from)
	if err != nil {
		return 0, err
	}
	quarantined, err := o.ids(ctx, `SELECT id FROM sluicebox.quarantine WHERE slot = $1 AND id > $2`, o.slot, from)
	if err != nil {
		return 0, err
	}
	o.judge(inPostgres, inClickHouse, quarantined, from == 0)
	for _, r := range inPostgres {
		highest = max(highest, r.id)
	}
	return max(highest, from), nil
}

func (o *oracle) stored(ctx context.Context, from uint64) (all []stored, err error) {
	rows, err := o.pg.Query(ctx, `
SELECT id, event_type, CASE WHEN isfinite(event_date_time) THEN (extract(epoch FROM event_date_time) * 1000000)::bigint ELSE 0 END,
       environment, event_context::text, metadata_version, processed FROM event_outbox WHERE id > $1`, from)
	if err != nil {
		return nil, fmt.Errorf("read the outbox: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r stored
		var typ, env, context string
		var version int64
		if err := rows.Scan(&r.id, &typ, &r.micros, &env, &context, &version, &r.processed); err != nil {
			return nil, fmt.Errorf("read the outbox: %w", err)
		}
		r.key = keyOf(context)
		r.hash = contentHash(typ, env, context, version)
		all = append(all, r)
	}
	return all, rows.Err()
}

func (o *oracle) arrived(ctx context.Context, from uint64) (all []arrived, err error) {
	rows, err := o.ch.Query(ctx, `
SELECT id, event_type, toUnixTimestamp64Micro(event_date_time), environment, event_context, metadata_version, lsn, ordinal
FROM event_log WHERE id > ?`, from)
	if err != nil {
		return nil, fmt.Errorf("read ClickHouse: %w", err)
	}
	defer func() { _ = rows.Close() }() // Err tells
	for rows.Next() {
		r, err := scanArrived(rows)
		if err != nil {
			return nil, fmt.Errorf("read ClickHouse: %w", err)
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// judge compares. whole: the rows are all there are, so that a committed event which is not among them is lost by Postgres.
func (o *oracle) judge(inPostgres []stored, inClickHouse []arrived, quarantined []uint64, whole bool) {
	times := make(map[uint64]int, len(inClickHouse))
	at := make(map[uint64]int64, len(inClickHouse))
	for _, r := range inClickHouse {
		times[r.id]++
		at[r.id] = r.micros
	}
	aside := make(map[uint64]bool, len(quarantined))
	for _, id := range quarantined {
		aside[id] = true
	}
	there := make(map[uint64]struct{}, len(inPostgres))
	for _, r := range inPostgres {
		o.row(r, times[r.id], aside[r.id], at[r.id])
		there[r.key] = struct{}{}
		delete(times, r.id)
	}
	for id := range times {
		o.report(fmt.Sprintf("invented: event %d is in ClickHouse, and not in Postgres", id))
	}
	for _, r := range inClickHouse {
		o.content(r)
	}
	o.order(inClickHouse)
	if !whole {
		return
	}
	for key := uint64(1); key < o.journal.len(); key++ {
		e, _ := o.journal.get(key)
		if _, ok := there[key]; !ok && e.outcome == committed {
			o.report(fmt.Sprintf("commit: key %d was acknowledged as committed, and is not in Postgres", key))
		}
	}
}

// row judges one row of the outbox.
func (o *oracle) row(r stored, times int, aside bool, at int64) {
	e, ok := o.journal.get(r.key)
	switch {
	case !ok:
		o.report(fmt.Sprintf("invented: event %d is in Postgres, and nobody wrote it", r.id))
		return
	case e.outcome == aborted:
		o.report(fmt.Sprintf("commit: key %d was rolled back, and is in Postgres", r.key))
	case e.outcome == maybe:
		o.journal.resolve(r.key, committed)
	}
	if e.hash != r.hash || e.micros != 0 && e.micros != r.micros {
		o.report(fmt.Sprintf("content: event %d (key %d) is not in Postgres as it was written", r.id, r.key))
	}
	if e.kind == poison {
		if times != 0 || r.processed || !aside {
			o.report(fmt.Sprintf("poison: event %d: %d times in ClickHouse, processed %t, in quarantine %t", r.id, times, r.processed, aside))
		}
		return
	}
	switch {
	case times == 0:
		o.report(fmt.Sprintf("loss: event %d (key %d) was committed, and is not in ClickHouse; processed %t, in quarantine %t", r.id, r.key, r.processed, aside))
	case times > 1:
		o.report(fmt.Sprintf("duplicate: event %d (key %d) is %d times in ClickHouse", r.id, r.key, times))
	case at != r.micros:
		o.report(fmt.Sprintf("content: event %d (key %d) has another time in ClickHouse than in Postgres", r.id, r.key))
	}
	if !r.processed {
		o.report(fmt.Sprintf("mark: event %d (key %d) is not marked processed", r.id, r.key))
	}
	if aside {
		o.report(fmt.Sprintf("quarantine: event %d (key %d) is in quarantine, and can be delivered", r.id, r.key))
	}
}

// order holds that the events of each aggregate lie in (lsn, ordinal) as they were committed. Rows that were read from the table have
// no ordinal, and no place in that order.
func (o *oracle) order(rows []arrived) {
	rows = slices.DeleteFunc(slices.Clone(rows), func(r arrived) bool { return r.ordinal == 0 })
	slices.SortFunc(rows, func(a, b arrived) int { return cmp.Or(cmp.Compare(a.lsn, b.lsn), cmp.Compare(a.ordinal, b.ordinal)) })
	last := map[uint32]event{}
	for _, r := range rows {
		e, ok := o.journal.get(r.key)
		if !ok || e.agg == 0 {
			continue
		}
		if before := last[e.agg]; before.n >= e.n && before.hash != e.hash {
			o.report(fmt.Sprintf("order: key %d (number %d of aggregate %d) is sorted after number %d", r.key, e.n, e.agg, before.n))
		}
		last[e.agg] = e
	}
}

// backlog is how many committed events are neither marked nor in quarantine, of those with ids above from.
func (o *oracle) backlog(ctx context.Context, from uint64) (n int64, err error) {
	err = o.pg.QueryRow(ctx, `
SELECT count(*) FROM event_outbox e WHERE id > $1 AND NOT processed
   AND NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.slot = $2 AND q.id = e.id)`, from, o.slot).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count what is not delivered: %w", err)
	}
	return n, nil
}
