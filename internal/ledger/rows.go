package ledger

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/decode"
	"github.com/sluicebox/sluicebox/outbox"
)

// Unfinished is a batch that a daemon planned and did not settle.
type Unfinished struct {
	batch.Batch
	places  []place // of the rows that are still to be sent
	sending int     // of these, how many its token is bound to
}

func scanUnfinished(row pgx.CollectableRow) (*Unfinished, error) {
	u := &Unfinished{}
	var positions []byte
	var end, ack string
	var ordinal int64
	var sending *int
	var deadline *time.Time
	err := row.Scan(&u.Seq, &u.Token, &positions, &sending, &u.Bytes, &end, &ordinal, &ack, &u.Partition, &deadline, &u.IDs)
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
	u.sending = len(u.places)
	if sending != nil {
		u.sending = min(*sending, len(u.places))
	}
	return u, err
}

// Fill reads the rows of an unfinished batch from the outbox, as its token is bound to them, and returns those that can't be seen:
// not yet (FACTS P1), or no more.
func (l *Ledger) Fill(ctx context.Context, u *Unfinished) (unseen []batch.Rejected, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	ids := make([]int64, len(u.places))
	for i, p := range u.places {
		ids[i] = p.id
	}
	found := make(map[int64]*outbox.Row, len(ids))
	err = l.rows(ctx, l.pool, `WHERE id = ANY ($1::bigint[])`, func(row *outbox.Row) error {
		found[row.ID] = row
		return nil
	}, ids)
	if err != nil {
		return nil, fmt.Errorf("read the rows of batch %d: %w", u.Seq, err)
	}
	u.Rows, u.Rest = make([]outbox.Row, 0, u.sending), nil
	for i, p := range u.places {
		row, seen := found[p.id]
		switch {
		case !seen:
			unseen = append(unseen, batch.Rejected{ID: p.id, Position: p.at, Reason: "deleted from the outbox before its delivery was confirmed"})
			continue
		case i < u.sending:
			row.Position = p.at
			u.Rows = append(u.Rows, *row)
		default:
			row.Position = p.at
			u.Rest = append(u.Rest, *row)
		}
	}
	return unseen, nil
}

// ErrUnprintable says that a row is more text than Postgres can print, 1 GiB: neither the stream nor a query gives it to anybody.
var ErrUnprintable = errors.New("a row of the outbox is more text than Postgres can print")

// Unprintable puts the first unprocessed row after an id that Postgres can't print into quarantine, because it failed to print one to
// [Snapshot.Rows], and returns its id. Rows that came after the snapshot are passed over.
func (l *Ledger) Unprintable(ctx context.Context, after int64) (id int64, err error) {
	for id = after; ; {
		var next *int64
		err := l.pool.QueryRow(ctx, `SELECT min(id) FROM `+l.outbox()+` o WHERE id > $2 AND `+l.unprocessed(), l.slot, id).Scan(&next)
		if err != nil {
			return 0, fmt.Errorf("look for a row that can't be printed: %w", err)
		}
		if next == nil {
			return 0, errors.New("look for a row that can't be printed: each can be now")
		}
		id = *next
		err = l.rows(ctx, l.pool, `WHERE id = $1`, func(*outbox.Row) error { return nil }, id)
		if errors.Is(err, ErrUnprintable) {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	return id, l.fenced(ctx, "put a row that can't be printed into quarantine", `
INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal)
SELECT slot, $3, $4, settled_lsn, 0 FROM sluicebox.stream WHERE slot = $1 AND epoch = $2`, l.slot, l.epoch, id, ErrUnprintable.Error())
}

// Unseen returns which of some rows the outbox does not show.
func (l *Ledger) Unseen(ctx context.Context, ids []int64) (unseen []int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	rows, err := l.pool.Query(ctx, `SELECT id FROM unnest($1::bigint[]) id WHERE NOT EXISTS (SELECT FROM `+l.outbox()+` o WHERE o.id = id.id)`, ids)
	if err != nil {
		return nil, fmt.Errorf("look for rows of the outbox: %w", err)
	}
	unseen, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for rows of the outbox: %w", err)
	}
	return unseen, nil
}

// Horizon is a transaction id above that of every transaction that has begun to write.
func (l *Ledger) Horizon(ctx context.Context) (xid uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if err := l.pool.QueryRow(ctx, `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		return 0, fmt.Errorf("ask Postgres for a transaction id: %w", err)
	}
	return xid, nil
}

// Passed says whether every transaction below a horizon has ended. What it committed is visible then, also if it waited for a
// standby; a row that can't be seen is not there any more.
func (l *Ledger) Passed(ctx context.Context, horizon uint64) (passed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err = l.pool.QueryRow(ctx, `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint >= $1`, horizon).Scan(&passed)
	if err != nil {
		return false, fmt.Errorf("ask Postgres for its oldest transaction: %w", err)
	}
	return passed, nil
}

// Requested returns rows that operators want delivered again, limit at most and not many more bytes than that, in the order of ids, at a
// position of the caller's. Requests for rows that the outbox lacks, or that delivery will come to by itself, are forgotten: a row is
// fit if it was delivered before, or put into quarantine.
func (l *Ledger) Requested(ctx context.Context, at outbox.Position, limit, bytes int) ([]outbox.Row, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	fit := l.share.Where(`o.id`) + ` AND (o.processed OR EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.slot = $1 AND q.id = o.id))`
	for {
		// Of as many as are read, and not of all: there may be millions, and they would be looked at for each batch of them.
		forgotten, err := l.forgetRequests(ctx, `r.id IN (SELECT id FROM sluicebox.redelivery WHERE slot = $1 ORDER BY id LIMIT $3)
   AND NOT EXISTS (SELECT FROM `+l.outbox()+` o WHERE o.id = r.id AND `+fit+`)`, limit)
		if err != nil {
			return nil, err
		}
		out, err := l.requested(ctx, at, fit, limit, bytes)
		if err != nil || len(out) > 0 || forgotten == 0 {
			return out, err
		}
	}
}

func (l *Ledger) requested(ctx context.Context, at outbox.Position, fit string, limit, bytes int) ([]outbox.Row, error) {
	var out []outbox.Row
	err := l.rows(ctx, l.pool, `WHERE id IN (SELECT id FROM sluicebox.redelivery WHERE slot = $1 ORDER BY id LIMIT $2) AND `+fit+` ORDER BY id`,
		func(row *outbox.Row) error {
			row.Position = at
			out = append(out, *row)
			if bytes -= batch.Size(row); bytes <= 0 {
				return errEnough
			}
			return nil
		}, l.slot, limit)
	if err != nil && !errors.Is(err, errEnough) {
		return nil, fmt.Errorf("read the rows to deliver again: %w", err)
	}
	return out, nil
}

var errEnough = errors.New("enough rows are read")

// ForgetRequests removes every request.
func (l *Ledger) ForgetRequests(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	_, err := l.forgetRequests(ctx, `true`)
	return err
}

// forgetRequests removes those that a condition on r is true for, whose arguments are numbered from 3, and returns how many. A fenced
// daemon removes none.
func (l *Ledger) forgetRequests(ctx context.Context, condition string, args ...any) (int64, error) {
	done, err := l.pool.Exec(ctx, `
DELETE FROM sluicebox.redelivery r WHERE r.slot = $1 AND EXISTS (SELECT FROM sluicebox.stream s WHERE s.slot = $1 AND s.epoch = $2)
   AND `+condition, append([]any{l.slot, l.epoch}, args...)...)
	if err != nil {
		return 0, fmt.Errorf("forget requests: %w", err)
	}
	return done.RowsAffected(), nil
}

// HasRequests says whether operators want rows delivered again.
func (l *Ledger) HasRequests(ctx context.Context) (has bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if err := l.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM sluicebox.redelivery WHERE slot = $1)`, l.slot).Scan(&has); err != nil {
		return false, fmt.Errorf("look for rows to deliver again: %w", err)
	}
	return has, nil
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

// Awaited says whether somebody waits for a lock of the outbox that no reader may hold, as ALTER TABLE does.
func (l *Ledger) Awaited(ctx context.Context) (awaited bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	err = l.pool.QueryRow(ctx, `
SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND relation IN (SELECT to_regclass($1)::oid UNION SELECT inhrelid FROM pg_inherits WHERE inhparent = to_regclass($1)::oid))`,
		l.outbox()).Scan(&awaited)
	if err != nil {
		return false, fmt.Errorf("look for who waits for the outbox: %w", err)
	}
	return awaited, nil
}

// Unprocessed counts the rows that [Snapshot.Rows] will give.
func (s *Snapshot) Unprocessed(ctx context.Context) (n int64, err error) {
	if err := s.tx.QueryRow(ctx, `SELECT count(*) FROM `+s.ledger.outbox()+` o WHERE `+s.ledger.unprocessed(), s.ledger.slot).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the unprocessed rows: %w", err)
	}
	return n, nil
}

// unprocessed are the rows that this stream has still to deliver. They are found by state, never by a growing key: ids and times are not in
// commit order (FACTS P10).
func (l *Ledger) unprocessed() string {
	return l.share.Where(`o.id`) + ` AND NOT o.processed AND NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.slot = $1 AND q.id = o.id)`
}

// Rows calls each with every unprocessed row of the snapshot, in the order of ids. The row is each's to keep. Rows arrive as
// fast as each takes them.
func (s *Snapshot) Rows(ctx context.Context, each func(*outbox.Row) error) error {
	err := s.ledger.rows(ctx, s.tx, `WHERE `+s.ledger.unprocessed()+` ORDER BY id`, func(row *outbox.Row) error {
		row.Position = outbox.Position{CommitLSN: s.start}
		return each(row)
	}, s.ledger.slot)
	if err != nil {
		return fmt.Errorf("read the unprocessed rows: %w", err)
	}
	return nil
}

// querier is a pool or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// rows calls each with every row of the outbox, as o, that the rest of a query selects. The row is each's to keep.
func (l *Ledger) rows(ctx context.Context, q querier, rest string, each func(*outbox.Row) error, args ...any) error {
	announced, names, err := l.columns(ctx, q)
	if err != nil {
		return err
	}
	layout, err := decode.NewLayout(l.schema+"."+l.table, announced)
	if err != nil {
		return err
	}
	// Closing a result reads what is left of it. When each has had enough, the connection is given up instead.
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	args = append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)
	rows, err := q.Query(ctx, `SELECT `+names+` FROM `+l.outbox()+` o `+rest, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var row outbox.Row
		if err := layout.Row(rows.RawValues(), &row); err != nil {
			return err
		}
		if err := each(&row); err != nil {
			enough()
			return err
		}
	}
	const programLimitExceeded = "54000"
	if err := rows.Err(); sqlState(err) == programLimitExceeded {
		return fmt.Errorf("%w: %w", ErrUnprintable, err)
	}
	return rows.Err()
}

// columns lists the columns that the stream has, too: generated ones are not in it.
func (l *Ledger) columns(ctx context.Context, q querier) (announced []decode.Column, names string, err error) {
	rows, err := q.Query(ctx, `SELECT attname::text, atttypid FROM pg_attribute
WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum`, l.outbox())
	if err != nil {
		return nil, "", fmt.Errorf("look at the columns of the outbox: %w", err)
	}
	announced, err = pgx.CollectRows(rows, pgx.RowToStructByPos[decode.Column])
	if err != nil {
		return nil, "", fmt.Errorf("look at the columns of the outbox: %w", err)
	}
	quoted := make([]string, len(announced))
	for i, column := range announced {
		quoted[i] = "o." + pgx.Identifier{column.Name}.Sanitize()
	}
	return announced, strings.Join(quoted, ", "), nil
}

func quoteLiteral(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }
