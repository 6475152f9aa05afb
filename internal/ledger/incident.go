package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// BeginBackfill notes, before it is done, that the slot is about to be dropped and created anew.
func (l *Ledger) BeginBackfill(ctx context.Context) error {
	return l.fenced(ctx, "begin a backfill", `UPDATE sluicebox.stream SET phase = 'backfill', outbox = $3 WHERE slot = $1 AND epoch = $2`,
		l.slot, l.epoch, l.schema+"."+l.table)
}

// Open notes an incident, unless one that is healed in the same way is open, and says whether it did.
func (l *Ledger) Open(ctx context.Context, kind, reason string) (opened bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	tag, err := l.pool.Exec(ctx, `
INSERT INTO sluicebox.incident (slot, kind, reason, from_lsn)
SELECT slot, $3, $4, settled_lsn FROM sluicebox.stream s
WHERE slot = $1 AND epoch = $2
  AND NOT EXISTS (SELECT FROM sluicebox.incident i WHERE i.slot = $1 AND i.ended_at IS NULL AND (i.kind = 'clickhouse') = ($3 = 'clickhouse'))`,
		l.slot, l.epoch, kind, reason)
	if err != nil {
		return false, fmt.Errorf("note an incident: %w", err)
	}
	return tag.RowsAffected() > 0, nil
}

// EndBackfill notes that every row of the snapshot is settled: the stream goes on from start, the slot's consistent point. It ends the
// incident that led to it, if there is one, and returns it.
func (l *Ledger) EndBackfill(ctx context.Context, start uint64, s State) (*Incident, error) {
	err := l.fenced(ctx, "end the backfill", `
UPDATE sluicebox.stream SET phase = 'stream', settled_lsn = $3::text::pg_lsn, settled_ordinal = 0, acked_lsn = $3::text::pg_lsn,
       system_identifier = $4, publication = $5, timeline = $6
WHERE slot = $1 AND epoch = $2`, l.slot, l.epoch, lsnText(start), s.SystemIdentifier, s.Publication, s.Timeline)
	if err != nil {
		return nil, err
	}
	return l.EndLoss(ctx, start)
}

// EndLoss ends the incident of a slot that is complete from start on.
func (l *Ledger) EndLoss(ctx context.Context, start uint64) (*Incident, error) {
	return l.end(ctx, `kind <> 'clickhouse'`, lsnText(start))
}

// EndClickHouse ends the incident of a ClickHouse that had lost what it had confirmed.
func (l *Ledger) EndClickHouse(ctx context.Context) (*Incident, error) {
	return l.end(ctx, `kind = 'clickhouse'`, "")
}

// end ends open incidents and returns the last of them; nil: there was none. Their rows are what the batches since marked.
func (l *Ledger) end(ctx context.Context, which, to string) (*Incident, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var i Incident
	err := l.pool.QueryRow(ctx, `
UPDATE sluicebox.incident i SET ended_at = clock_timestamp(), to_lsn = nullif($2, '')::pg_lsn, rows = coalesce((
    SELECT sum(marked) FROM sluicebox.batch b WHERE b.slot = i.slot AND b.state = 'settled' AND b.settled_at >= i.began_at), 0)
WHERE slot = $1 AND ended_at IS NULL AND `+which+` RETURNING kind, reason, rows, began_at`, l.slot, to).Scan(&i.Kind, &i.Reason, &i.Rows, &i.BeganAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // there is none, which is the usual case
	}
	if err != nil {
		return nil, fmt.Errorf("end an incident: %w", err)
	}
	return &i, nil
}

// Losses counts the times that the slot was lost within a span up to now, and tells how long ago the last one was healed.
func (l *Ledger) Losses(ctx context.Context, within time.Duration) (n int, since time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var seconds float64
	err = l.pool.QueryRow(ctx, `
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - max(ended_at)), 0)::float8 FROM sluicebox.incident
WHERE slot = $1 AND kind <> 'clickhouse' AND ended_at > clock_timestamp() - make_interval(secs => $2)`, l.slot, within.Seconds()).Scan(&n, &seconds)
	if err != nil {
		return 0, 0, fmt.Errorf("count the incidents: %w", err)
	}
	return n, time.Duration(seconds * float64(time.Second)), nil
}
