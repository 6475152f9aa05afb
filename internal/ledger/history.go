package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// PastBatch is a batch of the history, or one that is on the way.
type PastBatch struct {
	Seq       int64
	Rows      int64
	Bytes     int64
	SealedBy  string
	PlannedAt time.Time
	SettledAt *time.Time // null: it is on the way
}

// History reads the newest batches, whichever daemon made them, newest first.
func (l *Ledger) History(ctx context.Context, limit int) ([]PastBatch, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `
SELECT seq, rows, bytes, sealed_by, planned_at, settled_at FROM sluicebox.batch WHERE slot = $1 ORDER BY seq DESC LIMIT $2`, l.slot, limit)
	if err != nil {
		return nil, fmt.Errorf("read the history of batches: %w", err)
	}
	history, err := pgx.CollectRows(rows, pgx.RowToStructByPos[PastBatch])
	if err != nil {
		return nil, fmt.Errorf("read the history of batches: %w", err)
	}
	return history, nil
}
