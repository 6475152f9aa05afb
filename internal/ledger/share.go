package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/share"
)

// filterOf is the row filter of the publication that a stream s last had, for the outbox $1; empty: none.
const filterOf = `coalesce((SELECT pg_get_expr(r.prqual, r.prrelid) FROM pg_publication_rel r
    WHERE r.prpubid::text = split_part(s.publication, ' ', 1) AND r.prrelid = to_regclass($1)), '')`

// published is the share that the publication of the stream has, for who was not told; the whole if there never was one.
func (l *Ledger) published(ctx context.Context, tx pgx.Tx) (share.Share, error) {
	var filter string
	err := tx.QueryRow(ctx, `SELECT `+filterOf+` FROM sluicebox.stream s WHERE s.slot = $2`, l.outbox(), l.slot).Scan(&filter)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return share.Share{}, fmt.Errorf("look at the publication of the stream: %w", err)
	}
	published, ok := share.OfFilter(filter)
	if !ok {
		return share.Share{}, fmt.Errorf("look at the publication of the stream: the row filter %s is no share", filter)
	}
	return published, nil
}

// RivalError says that another stream carries rows that this one is to carry. One would pass over rows that the other has marked, and
// ClickHouse would have others twice.
type RivalError struct{ Slots []string }

func (e *RivalError) Error() string {
	return "the outbox has other streams that carry the same rows: " + strings.Join(e.Slots, ", ")
}

// Alone returns a [*RivalError] if the outbox has another stream with rows of this one that somebody leads, or that has batches whose outcome
// is open. Who leads looks after taking the lead, so that of two at least one sees the other. What a stream carries is not known until its
// first backfill has ended.
func (l *Ledger) Alone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
SELECT s.slot, `+filterOf+` FROM sluicebox.stream s
WHERE s.outbox = $2 AND s.slot <> $3 AND s.publication IS NOT NULL
  AND (`+strings.ReplaceAll(leads, "$1", "s.slot")+` OR EXISTS (SELECT FROM sluicebox.batch b WHERE b.slot = s.slot AND b.state = 'planned'))
ORDER BY s.slot`, l.outbox(), l.schema+"."+l.table, l.slot)
	if err != nil {
		return fmt.Errorf("look for other streams: %w", err)
	}
	others, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct{ Slot, Filter string }])
	if err != nil {
		return fmt.Errorf("look for other streams: %w", err)
	}
	rival := &RivalError{}
	for _, other := range others {
		if theirs, ok := share.OfFilter(other.Filter); !ok || theirs.Overlaps(l.share) {
			rival.Slots = append(rival.Slots, other.Slot)
		}
	}
	if len(rival.Slots) > 0 {
		return rival
	}
	return nil
}
