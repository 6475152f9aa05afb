package ledger

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// What follows is for operators. It is not fenced: it touches nothing that a leading daemon relies on. A request is a row that the
// daemon takes when it comes to it.

// Quarantined is a row that ClickHouse could not take.
type Quarantined struct {
	ID          int64      `json:"id"`
	EventType   string     `json:"event_type"` // empty: the outbox row is gone
	Reason      string     `json:"reason"`
	LSN         string     `json:"lsn"` // of its commit; of the slot's start, when it came by backfill
	Ordinal     int64      `json:"ordinal"`
	CreatedAt   time.Time  `json:"created_at"`
	DroppedAt   *time.Time `json:"dropped_at"`   // null: not given up
	RequestedAt *time.Time `json:"requested_at"` // of the pending redelivery; null: none
	Event       *Event     `json:"event,omitempty"`
}

// State is what becomes of the row.
func (q *Quarantined) State() string {
	switch {
	case q.RequestedAt != nil:
		return "retry requested"
	case q.DroppedAt != nil:
		return "dropped"
	default:
		return "held"
	}
}

// Event is a row of the outbox as Postgres has it, whether or not ClickHouse could hold it. Nil: a column that is null, or that this
// outbox lacks.
type Event struct {
	Type            *string         `json:"event_type"`
	Time            *string         `json:"event_date_time"`
	Environment     *string         `json:"environment"`
	Context         json.RawMessage `json:"event_context"`
	MetadataVersion *int64          `json:"metadata_version"`
	TraceContext    *string         `json:"trace_context"`
	Processed       bool            `json:"processed"`
}

// UnknownError says which rows are not in quarantine. Nothing was changed.
type UnknownError struct{ IDs []int64 }

// Error names the first ids.
func (e *UnknownError) Error() string {
	const named = 20
	var text strings.Builder
	for i, id := range e.IDs[:min(len(e.IDs), named)] {
		if i > 0 {
			text.WriteString(", ")
		}
		fmt.Fprint(&text, id)
	}
	if more := len(e.IDs) - named; more > 0 {
		fmt.Fprintf(&text, " and %d more", more)
	}
	return "not in quarantine: " + text.String()
}

// Quarantine lists the rows in quarantine, newest first, limit at most; those that were dropped only if all is set. total is how
// many there are without the limit.
func (l *Ledger) Quarantine(ctx context.Context, all bool, limit int) (listed []Quarantined, total int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err = pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		const counted = `SELECT count(*) FROM sluicebox.quarantine WHERE slot = $1 AND ($2 OR dropped_at IS NULL)`
		if err := tx.QueryRow(ctx, counted, l.slot, all).Scan(&total); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `
SELECT q.id, coalesce(o.event_type, ''), q.reason, q.lsn::text, q.ordinal, q.created_at, q.dropped_at, r.requested_at
FROM (
    SELECT * FROM sluicebox.quarantine WHERE slot = $1 AND ($2 OR dropped_at IS NULL) ORDER BY created_at DESC, id DESC LIMIT $3
) q LEFT JOIN sluicebox.redelivery r USING (slot, id) LEFT JOIN `+l.outbox()+` o ON o.id = q.id
ORDER BY q.created_at DESC, q.id DESC`, l.slot, all, limit)
		if err != nil {
			return err
		}
		listed, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (q Quarantined, err error) {
			err = row.Scan(&q.ID, &q.EventType, &q.Reason, &q.LSN, &q.Ordinal, &q.CreatedAt, &q.DroppedAt, &q.RequestedAt)
			return q, err
		})
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list the quarantine: %w", err)
	}
	return listed, total, nil
}

// Quarantined reads rows in quarantine with their events, in the order of ids. [*UnknownError] if one is not there.
func (l *Ledger) Quarantined(ctx context.Context, ids []int64) ([]Quarantined, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
SELECT w.id, q.id IS NOT NULL, to_jsonb(o), coalesce(q.reason, ''), coalesce(q.lsn, '0/0')::text, coalesce(q.ordinal, 0),
       coalesce(q.created_at, now()), q.dropped_at, r.requested_at
FROM (SELECT DISTINCT unnest($2::bigint[]) AS id) w
LEFT JOIN sluicebox.quarantine q ON q.slot = $1 AND q.id = w.id
LEFT JOIN sluicebox.redelivery r ON r.slot = $1 AND r.id = w.id
LEFT JOIN `+l.outbox()+` o ON o.id = w.id
ORDER BY w.id`, l.slot, ids)
	if err != nil {
		return nil, fmt.Errorf("read the quarantine: %w", err)
	}
	var unknown UnknownError
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (q Quarantined, err error) {
		var known bool
		err = row.Scan(&q.ID, &known, &q.Event, &q.Reason, &q.LSN, &q.Ordinal, &q.CreatedAt, &q.DroppedAt, &q.RequestedAt)
		if !known {
			unknown.IDs = append(unknown.IDs, q.ID)
		}
		return q, err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the quarantine: %w", err)
	case len(unknown.IDs) > 0:
		return nil, &unknown
	}
	return found, nil
}

// Held returns the ids of all rows in quarantine that are not dropped and whose reason contains text, in any case of letters.
func (l *Ledger) Held(ctx context.Context, text string) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
SELECT id FROM sluicebox.quarantine
WHERE slot = $1 AND dropped_at IS NULL AND strpos(lower(reason), lower($2)) > 0 ORDER BY id`, l.slot, text)
	if err != nil {
		return nil, fmt.Errorf("read the quarantine: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("read the quarantine: %w", err)
	}
	return ids, nil
}

// Retry asks the leading daemon to deliver rows in quarantine again, dropped ones too. All of them or, with an [*UnknownError], none.
func (l *Ledger) Retry(ctx context.Context, ids []int64) error {
	return l.quarantined(ctx, "request the redelivery", ids, `
WITH `+unknownIDs+`, requested AS (
    INSERT INTO sluicebox.redelivery (slot, id)
    SELECT slot, id FROM sluicebox.quarantine WHERE slot = $1 AND id = ANY ($2) AND NOT EXISTS (SELECT FROM unknown)
    ON CONFLICT DO NOTHING
), kept AS (
    UPDATE sluicebox.quarantine SET dropped_at = NULL
    WHERE slot = $1 AND id = ANY ($2) AND dropped_at IS NOT NULL AND NOT EXISTS (SELECT FROM unknown)
)
SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM unknown`)
}

// Drop gives rows up for good, and takes requests to deliver them back. They stay in quarantine, so that a backfill leaves them
// alone. All of them or, with an [*UnknownError], none.
func (l *Ledger) Drop(ctx context.Context, ids []int64) error {
	return l.quarantined(ctx, "drop rows in quarantine", ids, `
WITH `+unknownIDs+`, dropped AS (
    UPDATE sluicebox.quarantine SET dropped_at = coalesce(dropped_at, clock_timestamp())
    WHERE slot = $1 AND id = ANY ($2) AND NOT EXISTS (SELECT FROM unknown)
), unrequested AS (
    DELETE FROM sluicebox.redelivery WHERE slot = $1 AND id = ANY ($2) AND NOT EXISTS (SELECT FROM unknown)
)
SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM unknown`)
}

const unknownIDs = `unknown AS (
    SELECT DISTINCT w.id FROM unnest($2::bigint[]) AS w (id)
    WHERE NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.slot = $1 AND q.id = w.id)
)`

// quarantined runs a statement that changes all of the rows, or none and gives the ids that are unknown.
func (l *Ledger) quarantined(ctx context.Context, what string, ids []int64, sql string) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var unknown UnknownError
	if err := l.pool.QueryRow(ctx, sql, l.slot, ids).Scan(&unknown.IDs); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if len(unknown.IDs) > 0 {
		return &unknown
	}
	return nil
}

// Redelivery is what became of a row that the daemon was asked to deliver again.
type Redelivery struct {
	ID      int64
	Pending bool   // the daemon has not come to it yet
	Refused string // why it is back in quarantine; empty: it is not there, so it was delivered
}

// Redeliveries looks what became of requests, in the order of ids.
func (l *Ledger) Redeliveries(ctx context.Context, ids []int64) ([]Redelivery, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
SELECT w.id, r.id IS NOT NULL, CASE WHEN r.id IS NULL THEN coalesce(q.reason, '') ELSE '' END
FROM unnest($2::bigint[]) AS w (id)
LEFT JOIN sluicebox.redelivery r ON r.slot = $1 AND r.id = w.id
LEFT JOIN sluicebox.quarantine q ON q.slot = $1 AND q.id = w.id
ORDER BY w.id`, l.slot, ids)
	if err != nil {
		return nil, fmt.Errorf("look what became of the requests: %w", err)
	}
	became, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Redelivery])
	if err != nil {
		return nil, fmt.Errorf("look what became of the requests: %w", err)
	}
	return became, nil
}
