package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Locks that retention waits for. It must lose against everybody else: what it can't have now, it tries to get later.
const (
	// trimLockTimeout is for a step that removes rows. It is longer than settling a usual batch takes, which it may have to wait for,
	// and delivery may wait as long for it.
	trimLockTimeout = "1s"
	// dropLockTimeout is for dropping a partition. Every insert into the outbox queues up behind this wait.
	dropLockTimeout = "200ms"
	// dropTimeout bounds the look at a whole partition while nobody can write to the outbox.
	dropTimeout = "5s"
)

// Trimmed is what one step of [Ledger.TrimOutbox] has done.
type Trimmed struct {
	Rows int64 // removed
	Last int64 // id of the last row it looked at: the next step goes on after it
	More bool  // a next step may find more
}

// TrimOutbox looks at the next limit rows after an id, in the order of ids, and removes the settled ones: processed, longer ago
// than age by the clock of Postgres, and not to be delivered again. No index mentions processed, so old rows are found by where
// they are: ids grow with time, roughly, and the first window in which nothing is old enough ends the search. Rows in quarantine,
// and those that somebody marked without a time, stay for ever, and say nothing about their neighbours.
//
// The look takes no lock, since it may have to step over many rows that are gone and not vacuumed yet. The removal is one transaction
// in one round trip, so that a daemon that is paused in it holds no locks: [ErrFenced] if another daemon has taken over.
func (l *Ledger) TrimOutbox(ctx context.Context, age time.Duration, after int64, limit int) (Trimmed, error) {
	looking, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	t := Trimmed{}
	var old []int64
	err := l.pool.QueryRow(looking, `
WITH seen AS (
    SELECT o.id, (o.processed AND o.processed_at < now() - $2::interval AND r.id IS NULL) IS TRUE AS old,
           r.id IS NOT NULL OR NOT o.processed AND q.id IS NOT NULL OR o.processed AND o.processed_at IS NULL AS kept
    FROM (SELECT id, processed, processed_at FROM `+l.outbox()+` WHERE id > $3 AND `+l.share.Where(`id`)+` ORDER BY id LIMIT $4) o
    LEFT JOIN sluicebox.redelivery r ON r.slot = $1 AND r.id = o.id
    LEFT JOIN sluicebox.quarantine q ON q.slot = $1 AND q.id = o.id
)
SELECT coalesce(array_agg(id) FILTER (WHERE old), '{}'), coalesce(max(id), $3), count(*) = $4 AND (bool_or(old) OR bool_and(kept)) FROM seen`,
		l.slot, age, after, int64(limit)).Scan(&old, &t.Last, &t.More)
	if err != nil {
		return Trimmed{}, fmt.Errorf("look for settled rows in the outbox: %w", err)
	}
	if len(old) == 0 {
		return t, nil
	}

	ctx, cancel = context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	steps := patient(trimLockTimeout)
	// Before the fence, because settling has its tables before its fence. Whoever asks for a row to be delivered again does so before
	// the next statement begins, which sees it, or after the row is gone.
	steps.Queue(`DO 'BEGIN LOCK TABLE sluicebox.redelivery IN SHARE MODE; END'`)
	fenced := l.queueTrimFence(steps, age)
	steps.Queue(`
WITH gone AS (
    DELETE FROM `+l.outbox()+` o WHERE o.id = ANY ($4::bigint[]) AND o.processed AND o.processed_at < now() - $3::interval
        AND EXISTS (SELECT FROM sluicebox.stream WHERE slot = $1 AND epoch = $2)
        AND NOT EXISTS (SELECT FROM sluicebox.redelivery r WHERE r.slot = $1 AND r.id = o.id)
    RETURNING 1
)
SELECT count(*) FROM gone`, l.slot, l.epoch, age, old).QueryRow(func(row pgx.Row) error { return row.Scan(&t.Rows) })
	if err := l.pool.SendBatch(ctx, steps).Close(); err != nil {
		return Trimmed{}, fmt.Errorf("remove settled rows from the outbox: %w", err)
	}
	if *fenced {
		return Trimmed{}, ErrFenced
	}
	return t, nil
}

// patient begins a transaction of retention. Losing its commit in a crash is harmless, so it never waits for a standby while
// delivery waits for it.
func patient(lockTimeout string) *pgx.Batch {
	steps := &pgx.Batch{}
	steps.Queue(`SELECT set_config('lock_timeout', $1, true), set_config('synchronous_commit', 'local', true)`, lockTimeout)
	return steps
}

// queueTrimFence fences what follows, which must look at the epoch itself, and notes the time before which rows are removed. The
// note comes first: who finds a row gone finds the note, too.
func (l *Ledger) queueTrimFence(steps *pgx.Batch, age time.Duration) (fenced *bool) {
	fenced = new(bool)
	steps.Queue(`
UPDATE sluicebox.stream SET heartbeat_at = clock_timestamp(), trimmed_before = greatest(trimmed_before, now() - $3::interval)
WHERE slot = $1 AND epoch = $2 RETURNING true`, l.slot, l.epoch, age).QueryRow(func(row pgx.Row) error {
		var led bool
		err := row.Scan(&led)
		if errors.Is(err, pgx.ErrNoRows) {
			*fenced = true
			return nil
		}
		return err
	})
	return fenced
}

// PastPartitions lists the partitions of the outbox that no new id goes to, oldest first, as SQL writes their names. partitioned is
// false for a plain table. A layout in which new ids could still go to any partition gives an error.
func (l *Ledger) PastPartitions(ctx context.Context) (past []string, partitioned bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var key string
	var sequence *string
	var cached int64
	err = l.pool.QueryRow(ctx, `
SELECT c.relkind = 'p', coalesce(pg_get_partkeydef(c.oid), ''), s.name, coalesce((SELECT seqcache FROM pg_sequence WHERE seqrelid = s.name::regclass), 0)
FROM pg_class c, pg_get_serial_sequence($1, 'id') AS s (name) WHERE c.oid = to_regclass($1)`, l.outbox()).Scan(&partitioned, &key, &sequence, &cached)
	switch {
	case err != nil:
		return nil, false, fmt.Errorf("look at the layout of the outbox: %w", err)
	case !partitioned:
		return nil, false, nil
	case key != "RANGE (id)":
		return nil, true, fmt.Errorf("table %s is partitioned by %s; only partitions by RANGE (id) are dropped", l.outbox(), key)
	case sequence == nil:
		return nil, true, fmt.Errorf("column id of %s owns no sequence, which would tell where new rows go: ALTER SEQUENCE … OWNED BY", l.outbox())
	case cached > 1:
		return nil, true, fmt.Errorf("sequence %s hands out %d ids at once, which a session may use long after: ALTER SEQUENCE … CACHE 1", *sequence, cached)
	}
	rows, err := l.pool.Query(ctx, `
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace,
     CAST(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''(-?\d+)''\)') AS bigint) AS b (upper)
WHERE i.inhparent = to_regclass($1) AND NOT i.inhdetachpending AND c.relkind = 'r' AND b.upper <= pg_sequence_last_value($2::text::regclass)
ORDER BY b.upper`, l.outbox(), *sequence)
	if err != nil {
		return nil, true, fmt.Errorf("list the partitions of the outbox: %w", err)
	}
	past, err = pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, true, fmt.Errorf("list the partitions of the outbox: %w", err)
	}
	return past, true, nil
}

// DropPartition drops a partition of [Ledger.PastPartitions] if every row in it is settled, longer ago than age, and says whether it
// did. A row that an operator has given up counts as settled. It looks twice: first beside everybody else, which may take long,
// then with the outbox locked, which may not; the second look, the fence and the drop are one transaction in one round trip.
func (l *Ledger) DropPartition(ctx context.Context, partition string, age time.Duration) (dropped bool, err error) {
	looking, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	needed := l.needs(partition, age)
	var keep bool
	if err := l.pool.QueryRow(looking, `SELECT `+needed).Scan(&keep); err != nil {
		return false, fmt.Errorf("look at partition %s: %w", partition, err)
	}
	if keep {
		return false, nil
	}

	ctx, cancel = context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	steps := patient(dropLockTimeout)
	steps.Queue(`SELECT set_config('statement_timeout', $1, true)`, dropTimeout)
	// Tables first: a settlement that waits for the fence has its lock on the outbox already.
	steps.Queue(`DO ` + quoteLiteral(`BEGIN
LOCK TABLE ONLY `+l.outbox()+`, `+partition+` IN ACCESS EXCLUSIVE MODE;
LOCK TABLE sluicebox.redelivery IN SHARE MODE;
END`))
	fenced := l.queueTrimFence(steps, age)
	steps.Queue(`DO ` + quoteLiteral(fmt.Sprintf(`BEGIN
IF EXISTS (SELECT FROM sluicebox.stream WHERE slot = %s AND epoch = %d) AND NOT (%s) THEN
    DROP TABLE %s;
END IF;
END`, quoteLiteral(l.slot), l.epoch, needed, partition)))
	steps.Queue(`SELECT to_regclass($1) IS NULL`, partition).QueryRow(func(row pgx.Row) error { return row.Scan(&dropped) })
	if err := l.pool.SendBatch(ctx, steps).Close(); err != nil {
		return false, fmt.Errorf("drop partition %s: %w", partition, err)
	}
	if *fenced {
		return false, ErrFenced
	}
	return dropped, nil
}

// needs is an SQL condition: whether the partition holds a row that must stay. The first two parts find the usual reasons through an
// index, so that a partition that stays is not read from end to end each time.
func (l *Ledger) needs(partition string, age time.Duration) string {
	cutoff := fmt.Sprintf(`now() - interval '%d microseconds'`, age.Microseconds())
	slot := quoteLiteral(l.slot)
	return `EXISTS (SELECT FROM (SELECT processed, processed_at FROM ` + partition + ` ORDER BY id DESC LIMIT 1) newest
        WHERE processed AND processed_at >= ` + cutoff + `)
OR EXISTS (SELECT FROM sluicebox.quarantine q JOIN ` + partition + ` o ON o.id = q.id
           WHERE q.slot = ` + slot + ` AND q.dropped_at IS NULL AND NOT o.processed)
OR EXISTS (SELECT FROM sluicebox.redelivery r JOIN sluicebox.stream s USING (slot) JOIN ` + partition + ` o ON o.id = r.id
           WHERE s.slot = ` + slot + ` OR s.outbox = ` + quoteLiteral(l.schema+"."+l.table) + `) -- of another share, too
OR EXISTS (SELECT FROM ` + partition + ` o WHERE (o.processed AND o.processed_at < ` + cutoff + `) IS NOT TRUE
           AND NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.slot = ` + slot + ` AND q.id = o.id AND q.dropped_at < ` + cutoff + `
                           AND NOT o.processed))`
}
