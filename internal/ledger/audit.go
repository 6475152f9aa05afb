package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// AuditScope is what an audit was about.
type AuditScope string

// The scopes.
const (
	AuditAll  AuditScope = "all"  // every event
	AuditPart AuditScope = "part" // those of some time
)

// Audited is the result of an audit.
type Audited struct {
	Scope       AuditScope
	FinishedAt  time.Time         // by Postgres's clock
	Differences map[string]uint64 // how many events differ, by kind
}

// KeepAudit stores the result of an audit that has just ended in the place of the last one of its scope. It needs no leadership.
func (l *Ledger) KeepAudit(ctx context.Context, scope AuditScope, differences map[string]uint64) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	_, err := l.pool.Exec(ctx, `
INSERT INTO sluicebox.audit (slot, scope, differences) VALUES ($1, $2, $3)
ON CONFLICT (slot, scope) DO UPDATE SET finished_at = EXCLUDED.finished_at, differences = EXCLUDED.differences`, l.slot, scope, differences)
	if err != nil {
		return fmt.Errorf("keep the result of the audit: %w", err)
	}
	return nil
}

// Audits reads the results of the last audits, one a scope.
func (l *Ledger) Audits(ctx context.Context) ([]Audited, error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `SELECT scope, finished_at, differences FROM sluicebox.audit WHERE slot = $1`, l.slot)
	if err != nil {
		return nil, fmt.Errorf("read the results of audits: %w", err)
	}
	audits, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Audited])
	if err != nil {
		return nil, fmt.Errorf("read the results of audits: %w", err)
	}
	return audits, nil
}

// HeldRows counts the rows in quarantine, without those that were given up.
func (l *Ledger) HeldRows(ctx context.Context) (rows int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, surveyTimeout)
	defer cancel()
	err = l.pool.QueryRow(ctx, `SELECT count(*) FROM sluicebox.quarantine WHERE slot = $1 AND dropped_at IS NULL`, l.slot).Scan(&rows)
	if err != nil {
		return 0, fmt.Errorf("count the quarantine: %w", err)
	}
	return rows, nil
}

// surveyTimeout bounds what is only asked to be shown.
const surveyTimeout = 5 * time.Second
