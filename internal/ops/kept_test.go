package ops_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/ops"
)

// keeper is the ledger.
type keeper struct {
	held               int64
	audits             []ledger.Audited
	heldErr, auditsErr error
}

func (b keeper) HeldRows(context.Context) (int64, error)          { return b.held, b.heldErr }
func (b keeper) Audits(context.Context) ([]ledger.Audited, error) { return b.audits, b.auditsErr }

// surveyLedger begins to survey the ledger, in a time of the test's own. It is what the last of found says.
func surveyLedger(t *testing.T, m *ops.Metrics, found ...keeper) {
	t.Helper()
	beside(t, func(ctx context.Context) { m.SurveyLedger(ctx, &changing{found: found}) })
}

// changing is the ledger, as each survey finds it.
type changing struct{ found []keeper }

func (c *changing) HeldRows(ctx context.Context) (int64, error) { return c.found[0].HeldRows(ctx) }

func (c *changing) Audits(ctx context.Context) ([]ledger.Audited, error) {
	now := c.found[0]
	if len(c.found) > 1 {
		c.found = c.found[1:]
	}
	return now.Audits(ctx)
}

func TestLedgerSurvey(t *testing.T) {
	t.Parallel()
	const (
		held     = "sluicebox_quarantine_rows"
		missing  = `sluicebox_audit_differences{kind="missing",scope="all"}`
		part     = `sluicebox_audit_differences{kind="missing",scope="part"}`
		finished = `sluicebox_audit_last_timestamp_seconds{scope="all"}`
	)
	synctest.Test(t, func(t *testing.T) {
		m := ops.NewMetrics(cli.Build{})
		wantNone(t, m, held)
		at := time.UnixMilli(1_800_000_000_250)
		audits := []ledger.Audited{
			{Scope: ledger.AuditAll, FinishedAt: at, Differences: map[string]uint64{"missing": 0, "unknown": 2}},
			{Scope: ledger.AuditPart, FinishedAt: at, Differences: map[string]uint64{"missing": 5}},
		}
		surveyLedger(t, m, keeper{}, keeper{held: 3, audits: audits}, keeper{heldErr: errors.New("down"), audits: audits}, keeper{audits: audits, auditsErr: errors.New("permission denied")})
		next := func() {
			after(30 * time.Second)
			synctest.Wait()
		}
		want(t, m, held, 0)
		wantNone(t, m, missing)
		wantNone(t, m, finished)
		next()
		want(t, m, held, 3)
		want(t, m, missing, 0)
		want(t, m, part, 5)
		want(t, m, finished, 1_800_000_000.25)
		next()
		wantNone(t, m, held)
		want(t, m, part, 5)
		next()
		want(t, m, held, 0)
		wantNone(t, m, missing)
	})
}
