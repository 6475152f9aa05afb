package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/outbox"
)

// settleTimeout bounds settling, which updates a whole batch of rows and may wait for other sessions' locks on them.
const settleTimeout = 2 * time.Minute

// quarantine puts rejected rows aside, in a statement that has a fence, and forgets the request for them, if that is how they came. A
// row that is delivered stays delivered. $1 to $4 of format are the numbers of the parameters.
const quarantine = `rejected AS (
    INSERT INTO sluicebox.quarantine AS q (slot, id, reason, lsn, ordinal)
    SELECT DISTINCT ON (r.id) fence.slot, r.id, r.reason, r.lsn::pg_lsn, r.ordinal -- an id may have been given again
    FROM fence, unnest($3::bigint[], $4::text[], $5::text[], $6::bigint[]) WITH ORDINALITY AS r (id, reason, lsn, ordinal, place)
    WHERE NOT EXISTS (SELECT FROM %[1]s o WHERE o.id = r.id AND o.processed)
    ORDER BY r.id, r.place DESC
    ON CONFLICT (slot, id) DO UPDATE SET reason = excluded.reason, created_at = now()
), refused AS (
    DELETE FROM sluicebox.redelivery r USING fence WHERE r.slot = fence.slot AND r.id = ANY ($3)
)`

// fence is the beginning of such a statement.
const fence = `WITH fence AS (
    UPDATE sluicebox.stream SET heartbeat_at = clock_timestamp() WHERE slot = $1 AND epoch = $2 RETURNING slot
), `

// Plan stores a batch before anything of it is sent: its ids, its token, its position, its deadline; and puts its rejected
// rows into the quarantine. It sets Seq and Token. Only what is planned may be written to ClickHouse.
func (l *Ledger) Plan(ctx context.Context, b *batch.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	b.Seq, b.Token = l.seq+1, uuid.NewString()
	args := append([]any{l.slot, l.epoch}, rejectedColumns(b.Rejected)...)
	args = append(args, b.Seq, b.Token, multirange(b.IDs), encodePlaces(b.Rows), len(b.IDs), b.Bytes,
		lsnText(b.End.CommitLSN), int64(b.End.Ordinal), lsnText(b.AckLSN), b.Partition, deadline(b), string(b.SealedBy))
	var planned bool
	err := l.pool.QueryRow(ctx, fence+fmt.Sprintf(quarantine, l.outbox())+`, planned AS (
    INSERT INTO sluicebox.batch (slot, epoch, seq, token, ids, positions, rows, bytes, end_lsn, end_ordinal, ack_lsn,
                                 partition, deadline, sealed_by)
    SELECT slot, $2, $7, $8, $9, $10, $11, $12, $13::text::pg_lsn, $14, $15::text::pg_lsn, $16, $17, $18 FROM fence WHERE $11 > 0
)
SELECT EXISTS (SELECT FROM fence)`, args...).Scan(&planned)
	if err != nil {
		return fmt.Errorf("plan batch %d: %w", b.Seq, err)
	}
	if !planned {
		return ErrFenced
	}
	l.seq = b.Seq
	return nil
}

// Replan stores what has become of a batch of any epoch, and binds it to this one: the rows that are still to be sent, those among
// them that the token is bound to, the deadline; and puts rejected rows into the quarantine, which are no longer among its ids. The
// token must be a new one (an empty Token gives one) whenever Rows differ from those it was bound to: ClickHouse drops other rows under
// a known token, with a success (FACTS C3).
func (l *Ledger) Replan(ctx context.Context, b *batch.Batch) error {
	if b.Token == "" {
		b.Token = uuid.NewString()
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	args := append([]any{l.slot, l.epoch}, rejectedColumns(b.Rejected)...)
	args = append(args, b.Seq, b.Token, multirange(b.IDs), len(b.IDs), encodePlaces(b.Rows, b.Rest), len(b.Rows), deadline(b))
	var replanned int
	err := l.pool.QueryRow(ctx, fence+fmt.Sprintf(quarantine, l.outbox())+`, planned AS (
    UPDATE sluicebox.batch b SET epoch = $2, token = $8, ids = $9, rows = $10, positions = $11, sending = $12, deadline = $13
    FROM fence WHERE b.slot = fence.slot AND b.seq = $7 AND b.state = 'planned' RETURNING 1
)
SELECT (SELECT count(*) FROM fence) + (SELECT count(*) FROM planned)`, args...).Scan(&replanned)
	switch {
	case err != nil:
		return fmt.Errorf("plan batch %d anew: %w", b.Seq, err)
	case replanned == 0:
		return ErrFenced
	case replanned == 1:
		return fmt.Errorf("plan batch %d anew: it is not in the ledger as planned", b.Seq)
	}
	return nil
}

// Settle marks the rows of a written batch, advances the position and closes the batch: all of it, or nothing. The rows leave the
// quarantine and the list of requests, should they be there. Settling a batch twice is harmless. [ErrNotVisible] asks for another try.
func (l *Ledger) Settle(ctx context.Context, b *batch.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	args := []any{l.slot, l.epoch, b.Seq, lsnText(b.End.CommitLSN), int64(b.End.Ordinal), lsnText(b.AckLSN)}
	marks := `= ANY ($7::bigint[])`
	if first, last, ok := run(b.IDs); ok {
		marks = `BETWEEN $7 AND $8`
		args = append(args, first, last)
	} else {
		args = append(args, b.IDs)
	}
	var fenced bool
	var closed int
	err := l.pool.QueryRow(ctx, `
WITH fence AS (
    UPDATE sluicebox.stream SET heartbeat_at = clock_timestamp(), acked_lsn = greatest(acked_lsn, $6::text::pg_lsn),
           settled_lsn = greatest(settled_lsn, $4::text::pg_lsn),
           settled_ordinal = CASE WHEN settled_lsn < $4::text::pg_lsn THEN $5
                                  WHEN settled_lsn = $4::text::pg_lsn THEN greatest(settled_ordinal, $5) ELSE settled_ordinal END
    WHERE slot = $1 AND epoch = $2 RETURNING slot
), marked AS (
    UPDATE `+l.outbox()+` o SET processed = true, processed_at = now()
    FROM fence WHERE o.id `+marks+` RETURNING 1
), closed AS (
    UPDATE sluicebox.batch b
    SET state = 'settled', marked = (SELECT count(*) FROM marked), settled_at = clock_timestamp(), positions = NULL, sending = NULL
    FROM fence WHERE b.slot = fence.slot AND b.seq = $3 RETURNING 1
), freed AS (
    DELETE FROM sluicebox.quarantine q USING fence WHERE q.slot = fence.slot AND q.id `+marks+`
), done AS (
    DELETE FROM sluicebox.redelivery r USING fence WHERE r.slot = fence.slot AND r.id `+marks+`
)
SELECT NOT EXISTS (SELECT FROM fence), (SELECT count(*) FROM closed)`, args...).Scan(&fenced, &closed)
	switch {
	case brokeWhole(err):
		return fmt.Errorf("settle batch %d: %w", b.Seq, ErrNotVisible)
	case err != nil:
		return fmt.Errorf("settle batch %d: %w", b.Seq, err)
	case fenced:
		return ErrFenced
	case closed == 0 && len(b.IDs) > 0:
		return fmt.Errorf("settle batch %d: it is not in the ledger", b.Seq)
	}
	return nil
}

// run returns the ends of ids that are a run: each number from the first to the last once, in any order. Postgres finds a run in its
// index with less work than single ids, and most batches of one stream are one.
func run(ids []int64) (first, last int64, ok bool) {
	if len(ids) == 0 {
		return 0, 0, false
	}
	first, last = slices.Min(ids), slices.Max(ids)
	if uint64(last)-uint64(first) != uint64(len(ids)-1) { //nolint:gosec // the difference is right, whatever the signs
		return 0, 0, false
	}
	seen := make([]bool, len(ids))
	for _, id := range ids {
		if seen[id-first] {
			return 0, 0, false
		}
		seen[id-first] = true
	}
	return first, last, true
}

// brokeWhole says whether a settlement was refused because it would have marked too few rows.
func brokeWhole(err error) bool {
	refused, ok := errors.AsType[*pgconn.PgError](err)
	return ok && refused.ConstraintName == "batch_marked_whole"
}

// Retriable says whether a statement failed for a reason that goes by itself while the session stays usable: a deadlock, a
// lock or statement time-out of the server.
func Retriable(err error) bool {
	switch sqlState(err) {
	case "40001", "40P01", "55P03", "57014":
		return true
	}
	return errors.Is(err, ErrNotVisible)
}

// multirange writes ids as the ranges of neighbours that they are.
func multirange(ids []int64) pgtype.Multirange[pgtype.Range[pgtype.Int8]] {
	sorted := slices.Sorted(slices.Values(ids))
	ranges := pgtype.Multirange[pgtype.Range[pgtype.Int8]]{}
	for i := 0; i < len(sorted); {
		from := sorted[i]
		next := from + 1
		for i++; i < len(sorted) && sorted[i] <= next; i++ {
			next = sorted[i] + 1
		}
		ranges = append(ranges, pgtype.Range[pgtype.Int8]{
			Lower: pgtype.Int8{Int64: from, Valid: true}, LowerType: pgtype.Inclusive,
			Upper: pgtype.Int8{Int64: next, Valid: true}, UpperType: pgtype.Exclusive,
			Valid: true,
		})
	}
	return ranges
}

func deadline(b *batch.Batch) *time.Time {
	if b.Deadline.IsZero() {
		return nil
	}
	return &b.Deadline
}

// rejectedColumns are the parameters of quarantine.
func rejectedColumns(rejected []batch.Rejected) []any {
	ids, reasons := make([]int64, len(rejected)), make([]string, len(rejected))
	lsns, ordinals := make([]string, len(rejected)), make([]int64, len(rejected))
	for i, r := range rejected {
		reason := strings.ReplaceAll(strings.ToValidUTF8(r.Reason, "�"), "\x00", "�") // Postgres takes no other text
		ids[i], reasons[i], lsns[i], ordinals[i] = r.ID, reason, lsnText(r.Position.CommitLSN), int64(r.Position.Ordinal)
	}
	return []any{ids, reasons, lsns, ordinals}
}

// Trim forgets settled batches but for the newest keep.
func (l *Ledger) Trim(ctx context.Context, keep int) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	_, err := l.pool.Exec(ctx, `
DELETE FROM sluicebox.batch WHERE slot = $1 AND state = 'settled'
   AND seq <= (SELECT max(seq) FROM sluicebox.batch WHERE slot = $1) - $2`, l.slot, int64(keep))
	if err != nil {
		return fmt.Errorf("trim the batch history: %w", err)
	}
	return nil
}

// Delivered returns one row of each of the newest settled batches, n at most, newest first: what ClickHouse must have. Each comes
// twice, with the positions that it lies between. Batches of months that were long over when they were delivered are left out, since
// those may have expired in ClickHouse; and, unless asked for, those of a backfill, whose rows may have been there before, at others.
// While it is known that ClickHouse has lost some, the batches of before that count.
func (l *Ledger) Delivered(ctx context.Context, n int, backfilled bool) ([]outbox.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
SELECT lower(b.ids), coalesce((SELECT end_lsn FROM sluicebox.batch p WHERE p.slot = b.slot AND p.seq < b.seq AND p.end_lsn > '0/0'
                               ORDER BY p.seq DESC LIMIT 1), '0/0')::text, greatest(s.settled_lsn, b.end_lsn)::text
FROM sluicebox.batch b JOIN sluicebox.stream s USING (slot)
WHERE slot = $1 AND state = 'settled' AND rows > 0 AND end_lsn > '0/0' AND settled_at > now() - interval '7 days'
  AND partition >= to_char(settled_at - interval '1 month', 'YYYYMM')::int AND (end_ordinal > 0 OR $3)
  AND settled_at < coalesce((SELECT began_at FROM sluicebox.incident i WHERE i.slot = $1 AND i.kind = 'clickhouse' AND i.ended_at IS NULL), 'infinity')
ORDER BY seq DESC LIMIT $2`, l.slot, n, backfilled)
	if err != nil {
		return nil, fmt.Errorf("look for settled batches: %w", err)
	}
	defer rows.Close()
	var out []outbox.Row
	for rows.Next() {
		var id int64
		var low, high string
		if err := rows.Scan(&id, &low, &high); err != nil {
			return nil, fmt.Errorf("look for settled batches: %w", err)
		}
		for _, text := range []string{low, high} {
			lsn, err := parseLSN(text)
			if err != nil {
				return nil, fmt.Errorf("look for settled batches: %w", err)
			}
			out = append(out, outbox.Row{ID: id, Position: outbox.Position{CommitLSN: lsn, Ordinal: 1}})
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look for settled batches: %w", err)
	}
	return out, nil
}

// Planned reads the batches that were planned and not settled, in order. Rows are not filled in; see [Ledger.Fill].
func (l *Ledger) Planned(ctx context.Context) ([]*Unfinished, error) {
	rows, err := l.pool.Query(ctx, `
SELECT seq, token, positions, sending, bytes, end_lsn::text, end_ordinal, ack_lsn::text, partition, deadline,
       ARRAY (SELECT generate_series(lower(r), upper(r) - 1) FROM unnest(ids) r)
FROM sluicebox.batch WHERE slot = $1 AND state = 'planned' ORDER BY seq`, l.slot)
	if err != nil {
		return nil, fmt.Errorf("read planned batches: %w", err)
	}
	planned, err := pgx.CollectRows(rows, scanUnfinished)
	if err != nil {
		return nil, fmt.Errorf("read planned batches: %w", err)
	}
	return planned, nil
}
