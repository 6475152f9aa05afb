package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Settled is a batch that is in ClickHouse and marked.
type Settled struct {
	Seq    int64
	Ranges []IDRange // in order
}

// IDRange are neighbouring ids, from the first to the last.
type IDRange struct{ First, Last int64 }

// TailStart finds where an observer begins who wants the last rows that arrived: after which batch, and how many rows of those that follow
// are too many. There may be fewer than wanted.
func (l *Ledger) TailStart(ctx context.Context, rows int64) (after, surplus int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var total int64
	err = l.pool.QueryRow(ctx, `
WITH done AS (
    SELECT seq, rows, sum(rows) OVER (ORDER BY seq DESC) - rows AS later FROM sluicebox.batch WHERE slot = $1 AND state = 'settled' AND `+beforePlanned+`
)
SELECT coalesce(min(seq) FILTER (WHERE later < $2) - 1, max(seq), 0), coalesce(sum(rows) FILTER (WHERE later < $2), 0)::bigint FROM done`,
		l.slot, rows).Scan(&after, &total)
	if err != nil {
		return 0, 0, fmt.Errorf("look for the newest batch: %w", err)
	}
	return after, max(total-rows, 0), nil
}

// beforePlanned leaves out what is settled ahead of a batch that is not, so that whoever goes by the numbers misses none.
const beforePlanned = `seq < coalesce((SELECT min(p.seq) FROM sluicebox.batch p WHERE p.slot = $1 AND p.state = 'planned'), 9223372036854775807)`

// NextSettled returns the first settled batch after one; nil: there is none yet. Numbers have no gaps but those of batches that the
// history has forgotten since.
func (l *Ledger) NextSettled(ctx context.Context, after int64) (*Settled, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var s Settled
	var firsts, lasts []int64
	err := l.pool.QueryRow(ctx, `
SELECT seq, ARRAY (SELECT lower(r) FROM unnest(ids) r ORDER BY 1), ARRAY (SELECT upper(r) - 1 FROM unnest(ids) r ORDER BY 1)
FROM sluicebox.batch WHERE slot = $1 AND state = 'settled' AND seq > $2 AND `+beforePlanned+` ORDER BY seq LIMIT 1`, l.slot, after).
		Scan(&s.Seq, &firsts, &lasts)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the next batch: %w", err)
	}
	for i := range firsts {
		s.Ranges = append(s.Ranges, IDRange{firsts[i], lasts[i]})
	}
	return &s, nil
}

// DeliveredEvent is a row of the outbox that is processed.
type DeliveredEvent struct {
	ID              int64           `json:"id"`
	Type            string          `json:"event_type"`
	Time            time.Time       `json:"event_date_time"`
	Environment     string          `json:"environment"`
	Context         json.RawMessage `json:"event_context"`
	MetadataVersion int64           `json:"metadata_version"`
	TraceContext    *string         `json:"trace_context"`
	ProcessedAt     *time.Time      `json:"processed_at"`
}

// DeliveredEvents reads those of some ids that are processed, in the order of ids, and of types only, if there are any. The context is cut
// to so many characters; 0: it is whole.
func (l *Ledger) DeliveredEvents(ctx context.Context, ids []int64, types []string, characters int) ([]DeliveredEvent, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
SELECT id, event_type::text, event_date_time, environment::text,
       CASE WHEN $3 > 0 THEN left(event_context::text, $3) ELSE event_context::text END, metadata_version::bigint, to_jsonb(o)->>'trace_context', processed_at
FROM `+l.outbox()+` o
WHERE id = ANY ($1) AND processed AND (cardinality($2::text[]) = 0 OR event_type = ANY ($2)) ORDER BY id`, ids, append([]string{}, types...), characters)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	events, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (e DeliveredEvent, err error) {
		var text string
		err = row.Scan(&e.ID, &e.Type, &e.Time, &e.Environment, &text, &e.MetadataVersion, &e.TraceContext, &e.ProcessedAt)
		e.Context, e.Time = json.RawMessage(text), e.Time.UTC()
		return e, err
	})
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return events, nil
}
