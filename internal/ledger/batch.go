package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// settleTimeout bounds settling, which updates a whole batch of rows and may wait for other sessions' locks on them.
const settleTimeout = 2 * time.Minute

// Plan stores a batch before anything of it is sent: its ids, its token, its position, its deadline; and puts its rejected
// rows into the quarantine. It sets Seq and Token. Only what is planned may be written to ClickHouse.
func (l *Ledger) Plan(ctx context.Context, b *batch.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	b.Seq, b.Token = l.seq+1, uuid.NewString()

	ids, reasons, lsns, ordinals := rejectedColumns(b.Rejected)
	var planned bool
	err := l.pool.QueryRow(ctx, `
WITH fence AS (
    UPDATE sluicebox.stream SET heartbeat_at = clock_timestamp() WHERE slot = $1 AND epoch = $2 RETURNING slot
), rejected AS (
    INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal)
    SELECT fence.slot, r.id, r.reason, r.lsn::pg_lsn, r.ordinal
    FROM fence, unnest($15::bigint[], $16::text[], $17::text[], $18::bigint[]) AS r (id, reason, lsn, ordinal)
    ON CONFLICT DO NOTHING
), planned AS (
    INSERT INTO sluicebox.batch (slot, seq, epoch, token, ids, positions, rows, bytes, end_lsn, end_ordinal, ack_lsn,
                                 partition, deadline, sealed_by)
    SELECT slot, $3, $2, $4, $5, $6, $7, $8, $9::text::pg_lsn, $10, $11::text::pg_lsn, $12, $13, $14 FROM fence WHERE $7 > 0
)
SELECT EXISTS (SELECT FROM fence)`,
		l.slot, l.epoch, b.Seq, b.Token, multirange(b.IDs), encodePlaces(b.Rows), len(b.Rows), b.Bytes,
		lsnText(b.End.CommitLSN), int64(b.End.Ordinal), lsnText(b.AckLSN), b.Partition, deadline(b), string(b.SealedBy),
		ids, reasons, lsns, ordinals).Scan(&planned)
	if err != nil {
		return fmt.Errorf("plan batch %d: %w", b.Seq, err)
	}
	if !planned {
		return ErrFenced
	}
	l.seq = b.Seq
	return nil
}

// Replan binds a batch of any epoch to this one: the rows that are still to be sent, a deadline, and a token. The token must
// be a new one (an empty Token gives one) whenever Rows differ from those it was bound to: ClickHouse drops other rows under
// a known token, with a success (FACTS C3).
func (l *Ledger) Replan(ctx context.Context, b *batch.Batch) error {
	if b.Token == "" {
		b.Token = uuid.NewString()
	}
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var replanned int
	err := l.pool.QueryRow(ctx, `
WITH fence AS (
    UPDATE sluicebox.stream SET heartbeat_at = clock_timestamp() WHERE slot = $1 AND epoch = $2 RETURNING slot
), planned AS (
    UPDATE sluicebox.batch b SET epoch = $2, token = $4, positions = $5, deadline = $6
    FROM fence WHERE b.slot = fence.slot AND b.seq = $3 AND b.state = 'planned' RETURNING 1
)
SELECT (SELECT count(*) FROM fence) + (SELECT count(*) FROM planned)`,
		l.slot, l.epoch, b.Seq, b.Token, encodePlaces(b.Rows), deadline(b)).Scan(&replanned)
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

// Settle marks the rows of a written batch, advances the position and closes the batch: all of it, or nothing. Settling a
// batch twice is harmless. [ErrNotVisible] asks for another try.
func (l *Ledger) Settle(ctx context.Context, b *batch.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	var fenced bool
	var closed int
	err := l.pool.QueryRow(ctx, `
WITH fence AS (
    UPDATE sluicebox.stream SET settled_lsn = $4::text::pg_lsn, settled_ordinal = $5, heartbeat_at = clock_timestamp(),
           acked_lsn = greatest(acked_lsn, $6::text::pg_lsn)
    WHERE slot = $1 AND epoch = $2 RETURNING slot
), marked AS (
    UPDATE `+l.outbox()+` o SET processed = true, processed_at = now()
    FROM fence WHERE o.id = ANY ($7::bigint[]) RETURNING 1
), closed AS (
    UPDATE sluicebox.batch b
    SET state = 'settled', marked = (SELECT count(*) FROM marked), settled_at = clock_timestamp(), positions = NULL
    FROM fence WHERE b.slot = fence.slot AND b.seq = $3 RETURNING 1
)
SELECT NOT EXISTS (SELECT FROM fence), (SELECT count(*) FROM closed)`,
		l.slot, l.epoch, b.Seq, lsnText(b.End.CommitLSN), int64(b.End.Ordinal), lsnText(b.AckLSN), b.IDs).Scan(&fenced, &closed)
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

func rejectedColumns(rejected []batch.Rejected) (ids []int64, reasons, lsns []string, ordinals []int64) {
	ids, reasons = make([]int64, len(rejected)), make([]string, len(rejected))
	lsns, ordinals = make([]string, len(rejected)), make([]int64, len(rejected))
	for i, r := range rejected {
		ids[i], reasons[i], lsns[i], ordinals[i] = r.ID, r.Reason, lsnText(r.Position.CommitLSN), int64(r.Position.Ordinal)
	}
	return ids, reasons, lsns, ordinals
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

// Delivered returns the id of a row of the newest settled batch; known is false when there is none.
func (l *Ledger) Delivered(ctx context.Context) (id int64, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err = l.pool.QueryRow(ctx, `
SELECT lower(ids) FROM sluicebox.batch WHERE slot = $1 AND state = 'settled' ORDER BY seq DESC LIMIT 1`, l.slot).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for a settled batch: %w", err)
	}
	return id, true, nil
}

// Planned reads the batches that were planned and not settled, in order. Rows are not filled in; see [Ledger.Fill].
func (l *Ledger) Planned(ctx context.Context) ([]*Unfinished, error) {
	rows, err := l.pool.Query(ctx, `
SELECT seq, token, positions, bytes, end_lsn::text, end_ordinal, ack_lsn::text, partition, deadline,
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
