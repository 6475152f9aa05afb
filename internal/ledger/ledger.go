// Package ledger is the Postgres side of delivery: who leads (epoch), what is about to be sent (planned batches), what was
// delivered (marks and position). It is what makes a crash at any instruction harmless.
//
//	Lead ──▶ Plan ──▶ (sink writes) ──▶ Settle ──▶ (replication acknowledges)
//	 epoch+1   stores ids,               marks the rows,
//	           token, position           advances the position, closes the batch
//
// Each step is one statement that updates the stream's row WHERE epoch = mine. A daemon that was paused while another took
// over finds 0 rows and gets [ErrFenced]. It is the update that fences: FOR KEY SHARE does not stop a stale writer (FACTS P12).
// No transaction is ever left open across code of ours, since a paused process would then block its successor.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/decode"
	"github.com/sluicebox/sluicebox/internal/share"
	"github.com/sluicebox/sluicebox/outbox"
)

// ErrFenced says that another daemon has taken the stream since. Whoever gets it must stop.
var ErrFenced = errors.New("another daemon has taken over this stream")

// ErrNotVisible says that a batch could not be settled because not all of its rows can be seen. The commit was streamed before
// it became visible (FACTS P1), or rows were deleted before they were delivered. Nothing was changed.
var ErrNotVisible = errors.New("not all rows of the batch are visible in the outbox")

// Ledger belongs to one stream.
type Ledger struct {
	pool   *pgxpool.Pool
	slot   string
	schema string
	table  string
	share  share.Share
	epoch  int64 // of this daemon; 0: it does not lead
	seq    int64 // of the last planned batch
}

// Prepare sets a session up. The pool that [New] gets must call it for each new connection. Commits survive a crash of Postgres,
// whatever the role or the database has as its default: a plan that is lost after its rows were sent doubles them. And rows are printed
// as the stream prints them.
func Prepare(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'`)
	if err != nil {
		return fmt.Errorf("make commits durable: %w", err)
	}
	// Each statement must see what was committed while it, or the one before, waited for a lock; the role or the database may say otherwise.
	if _, err := conn.Exec(ctx, `SELECT set_config('default_transaction_isolation', 'read committed', false)`); err != nil {
		return fmt.Errorf("set default_transaction_isolation: %w", err)
	}
	for name, value := range decode.Session {
		if _, err := conn.Exec(ctx, `SELECT set_config($1, $2, false)`, name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// New makes the ledger of the stream of a slot. schema and table name the outbox.
func New(pool *pgxpool.Pool, slot, schema, table string) *Ledger {
	return &Ledger{pool: pool, slot: slot, schema: schema, table: table}
}

// Only makes it the ledger of a stream that carries a share of the outbox.
func (l *Ledger) Only(s share.Share) *Ledger {
	l.share = s
	return l
}

// Phase is how complete the slot of a stream is.
type Phase string

// The phases.
const (
	PhaseNew      Phase = "new"      // nothing was ever created
	PhaseBackfill Phase = "backfill" // a slot is being created or its snapshot paged; what was planned is kept, the rest starts over
	PhaseStream   Phase = "stream"   // the slot is complete from the settled position on
)

// State is what the ledger remembers of a stream.
type State struct {
	Phase            Phase
	Settled          outbox.Position // of the last row that is delivered and marked
	AckedLSN         uint64          // the highest LSN that was ever allowed to be acknowledged
	SystemIdentifier string          // of the cluster that these positions belong to
	Timeline         int32           // of its history; 0: not known
	Publication      string          // identity of the publication, see replication.FindPublication
	Outbox           string          // schema.table that the slot is for; empty: not known yet
}

const stateColumns = `phase, settled_lsn::text, settled_ordinal, acked_lsn::text, coalesce(system_identifier, ''),
       coalesce(publication, ''), coalesce(outbox, ''), coalesce(timeline, 0)`

func scanState(row pgx.Row, more ...any) (State, error) {
	var s State
	var settled, acked string
	var ordinal int64
	err := row.Scan(append([]any{
		&s.Phase, &settled, &ordinal, &acked, &s.SystemIdentifier, &s.Publication, &s.Outbox, &s.Timeline,
	}, more...)...)
	if err != nil {
		return s, err
	}
	s.Settled.CommitLSN, err = parseLSN(settled)
	if err != nil {
		return s, err
	}
	s.Settled.Ordinal = uint32(ordinal)
	s.AckedLSN, err = parseLSN(acked)
	return s, err
}

// State reads the stream's row as it is now.
func (l *Ledger) State(ctx context.Context) (State, error) {
	s, err := scanState(l.pool.QueryRow(ctx, `SELECT `+stateColumns+` FROM sluicebox.stream WHERE slot = $1`, l.slot))
	if err != nil {
		return s, fmt.Errorf("read the ledger: %w", err)
	}
	return s, nil
}

// Heartbeat renews the lease. It alone does not wait for synchronous standbys: a lease need not survive a failover, and a
// missing standby must not cost the lead. Nor does it wait for a plan or a settlement of ours, which holds the row for as long as it
// takes: a row that is held is a lease that is not stale, see [Ledger.TryLead].
func (l *Ledger) Heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	var epoch int64
	err := l.pool.QueryRow(ctx, `
WITH mine AS (
    SELECT slot FROM sluicebox.stream WHERE slot = $1 AND epoch = $2 AND set_config('synchronous_commit', 'local', true) <> ''
    FOR NO KEY UPDATE SKIP LOCKED
), beat AS (
    UPDATE sluicebox.stream s SET heartbeat_at = clock_timestamp() FROM mine WHERE s.slot = mine.slot
)
SELECT epoch FROM sluicebox.stream WHERE slot = $1`, l.slot, l.epoch).Scan(&epoch)
	if err != nil {
		return fmt.Errorf("renew the lease: %w", err)
	}
	if epoch != l.epoch {
		return ErrFenced
	}
	return nil
}

// Allow stores that everything before lsn may be acknowledged.
func (l *Ledger) Allow(ctx context.Context, lsn uint64) error {
	return l.fenced(ctx, "store the position to acknowledge", `
UPDATE sluicebox.stream SET heartbeat_at = clock_timestamp(), acked_lsn = greatest(acked_lsn, $3::text::pg_lsn)
WHERE slot = $1 AND epoch = $2`, l.slot, l.epoch, lsnText(lsn))
}

// Release ends the lease, so that a standby need not wait for it to become stale.
func (l *Ledger) Release(ctx context.Context) error {
	err := l.fenced(ctx, "release the lease", `UPDATE sluicebox.stream SET holder = NULL WHERE slot = $1 AND epoch = $2`, l.slot, l.epoch)
	if errors.Is(err, ErrFenced) {
		return nil // there is nothing of ours to release
	}
	return err
}

func (l *Ledger) fenced(ctx context.Context, what, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	tag, err := l.pool.Exec(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrFenced
	}
	return nil
}

// statementTimeout bounds a statement that touches one row. Longer means that Postgres hangs or the link is dead.
const statementTimeout = 30 * time.Second

func (l *Ledger) outbox() string { return pgx.Identifier{l.schema, l.table}.Sanitize() }

func lsnText(lsn uint64) string { return pglogrepl.LSN(lsn).String() }

func parseLSN(text string) (uint64, error) {
	lsn, err := pglogrepl.ParseLSN(text)
	return uint64(lsn), err
}

func sqlState(err error) string {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		return refused.Code
	}
	return ""
}
