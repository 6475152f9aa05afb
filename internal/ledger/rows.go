package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/outbox"
)

// Unfinished is a batch that a daemon planned and did not settle.
type Unfinished struct {
	batch.Batch
	places []place // of the rows its token is bound to
}

func scanUnfinished(row pgx.CollectableRow) (*Unfinished, error) {
	u := &Unfinished{}
	var positions []byte
	var end, ack string
	var ordinal int64
	var deadline *time.Time
	err := row.Scan(&u.Seq, &u.Token, &positions, &u.Bytes, &end, &ordinal, &ack, &u.Partition, &deadline, &u.IDs)
	if err != nil {
		return nil, err
	}
	u.SealedBy = batch.ByRecovery
	if deadline != nil {
		u.Deadline = *deadline
	}
	if u.End.CommitLSN, err = parseLSN(end); err != nil {
		return nil, err
	}
	u.End.Ordinal = uint32(ordinal)
	if u.AckLSN, err = parseLSN(ack); err != nil {
		return nil, err
	}
	u.places, err = decodePlaces(positions)
	return u, err
}

// Fill reads the rows of an unfinished batch from the outbox, as its token is bound to them. [ErrNotVisible] when some can't be
// seen (yet).
func (l *Ledger) Fill(ctx context.Context, u *Unfinished) error {
	ids := make([]int64, len(u.places))
	order := make(map[int64]int, len(u.places))
	for i, p := range u.places {
		ids[i], order[p.id] = p.id, i
	}
	columns, err := l.rowColumns(ctx, l.pool)
	if err != nil {
		return err
	}
	rows, err := l.pool.Query(ctx, `SELECT `+columns+` FROM `+l.outbox()+` o WHERE id = ANY ($1::bigint[])`, ids)
	if err != nil {
		return fmt.Errorf("read the rows of batch %d: %w", u.Seq, err)
	}
	u.Rows = make([]outbox.Row, len(ids))
	found := 0
	for rows.Next() {
		row, err := scanRow(rows)
		if err != nil {
			rows.Close()
			return fmt.Errorf("read the rows of batch %d: %w", u.Seq, err)
		}
		i := order[row.ID]
		row.Position = u.places[i].at
		u.Rows[i] = row
		found++
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the rows of batch %d: %w", u.Seq, err)
	}
	if found != len(ids) {
		return fmt.Errorf("read the rows of batch %d: %w: %d of %d", u.Seq, ErrNotVisible, found, len(ids))
	}
	return nil
}

// Snapshot is a view of the outbox at the start of a slot.
type Snapshot struct {
	tx     pgx.Tx
	ledger *Ledger
	start  uint64
}

// OpenSnapshot imports an exported snapshot; start is the consistent point of its slot.
func (l *Ledger) OpenSnapshot(ctx context.Context, name string, start uint64) (*Snapshot, error) {
	tx, err := l.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("import the snapshot of the slot: %w", err)
	}
	// The name comes from Postgres and can't be a parameter here. The query that follows runs as long as ClickHouse takes, so no
	// time-out of the server may end it; transaction_timeout is there from 17 on.
	for _, statement := range []string{
		`SET TRANSACTION SNAPSHOT ` + quoteLiteral(name),
		`SELECT set_config(name, '0', true) FROM pg_settings
		 WHERE name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')`,
	} {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return nil, errors.Join(fmt.Errorf("import the snapshot of the slot: %w", err), tx.Rollback(ctx))
		}
	}
	return &Snapshot{tx: tx, ledger: l, start: start}, nil
}

// Close ends the view.
func (s *Snapshot) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = s.tx.Rollback(ctx) // read only; the session is dropped if this fails
}

// Unprocessed counts the rows that [Snapshot.Rows] will give.
func (s *Snapshot) Unprocessed(ctx context.Context) (n int64, err error) {
	if err := s.tx.QueryRow(ctx, `SELECT count(*) FROM `+s.ledger.outbox()+` o WHERE `+unprocessed, s.ledger.slot).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the unprocessed rows: %w", err)
	}
	return n, nil
}

// unprocessed is scanned by state, never by a growing key: ids and times are not in commit order (FACTS P10).
const unprocessed = `NOT o.processed AND NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.slot = $1 AND q.id = o.id)`

// Rows calls each with every unprocessed row of the snapshot, in the order of ids. The row is each's to keep. Rows arrive as
// fast as each takes them.
func (s *Snapshot) Rows(ctx context.Context, each func(*outbox.Row) error) error {
	columns, err := s.ledger.rowColumns(ctx, s.tx)
	if err != nil {
		return err
	}
	rows, err := s.tx.Query(ctx, `SELECT `+columns+` FROM `+s.ledger.outbox()+` o WHERE `+unprocessed+` ORDER BY id`, s.ledger.slot)
	if err != nil {
		return fmt.Errorf("read the unprocessed rows: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		row, err := scanRow(rows)
		if err != nil {
			return fmt.Errorf("read the unprocessed rows: %w", err)
		}
		row.Position = outbox.Position{CommitLSN: s.start}
		if err := each(&row); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the unprocessed rows: %w", err)
	}
	return nil
}

// rowColumns is what scanRow reads. trace_context is the one column that an outbox may lack.
func (l *Ledger) rowColumns(ctx context.Context, q interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
},
) (string, error) {
	trace := `''`
	var has bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attname = 'trace_context' AND NOT attisdropped)`, l.outbox()).Scan(&has)
	if err != nil {
		return "", fmt.Errorf("look at the columns of the outbox: %w", err)
	}
	if has {
		trace = `coalesce(o.trace_context, '')`
	}
	return `o.id, o.event_type, o.event_date_time, o.environment, o.event_context::text, o.metadata_version, ` + trace, nil
}

func scanRow(rows pgx.Rows) (outbox.Row, error) {
	var row outbox.Row
	var at pgtype.Timestamptz
	var kind, environment *string
	var version *int32
	if err := rows.Scan(&row.ID, &kind, &at, &environment, &row.Context, &version, &row.TraceContext); err != nil {
		return row, err
	}
	if kind == nil || !at.Valid || environment == nil || row.Context == nil || version == nil {
		row.Invalid = "a required column is null"
		return row, nil
	}
	row.Type, row.Environment, row.MetadataVersion = *kind, *environment, *version
	if at.InfinityModifier != pgtype.Finite {
		row.Invalid = fmt.Sprintf("event_date_time is %v; ClickHouse's DateTime64(6) has no such value", at.InfinityModifier)
	}
	row.Time = at.Time.UTC()
	return row, nil
}

func quoteLiteral(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }
