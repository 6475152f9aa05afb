package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Status is what Postgres knows of a stream. All times are the server's.
type Status struct {
	ReadAt     time.Time `json:"read_at"`
	InRecovery bool      `json:"in_recovery"` // the server is a standby: slots and locks of the primary are not seen here
	ServerLSN  string    `json:"server_lsn"`  // where its WAL ends

	Slot   string   `json:"slot"`
	Known  bool     `json:"known"`                 // the ledger has a row for the slot
	Others []string `json:"known_slots,omitempty"` // when it has none: slots that it has rows for, ten at most
	Leader Leader   `json:"leader"`

	Phase          Phase  `json:"phase"`
	SettledLSN     string `json:"settled_lsn"`
	SettledOrdinal int64  `json:"settled_ordinal"`
	AckedLSN       string `json:"acked_lsn"`
	LagBytes       *int64 `json:"lag_bytes"` // of WAL that is not delivered; null: rows come from the table, not from WAL

	ReplicationSlot *ReplicationSlot `json:"replication_slot"` // null: there is none of this name
	Planned         Planned          `json:"planned"`
	LastBatch       *SettledBatch    `json:"last_batch"` // null: nothing was settled yet
	Unprocessed     Unprocessed      `json:"unprocessed"`

	Held          int64      `json:"quarantine_held"`
	Dropped       int64      `json:"quarantine_dropped"`
	Redeliveries  int64      `json:"redelivery_requests"`
	OldestRequest *time.Time `json:"oldest_redelivery_request"`
	Incidents     []Incident `json:"incidents"` // newest first, ten at most
}

// Leader is who leads a stream.
type Leader struct {
	Leads       bool       `json:"leads"`        // a session holds the lock of the stream; Postgres gives it up when a daemon dies
	Holder      string     `json:"holder"`       // as it called itself; empty: the last one has ended by itself
	HeartbeatAt *time.Time `json:"heartbeat_at"` // last sign of life of whoever led last; null: none ever did
}

// ReplicationSlot is the slot as Postgres shows it.
type ReplicationSlot struct {
	Active             bool   `json:"active"`              // a session reads it
	WALStatus          string `json:"wal_status"`          // reserved, extended, unreserved or lost
	InvalidationReason string `json:"invalidation_reason"` // from PostgreSQL 17 on; empty: usable
	ConfirmedFlushLSN  string `json:"confirmed_flush_lsn"`
	RetainedBytes      int64  `json:"retained_bytes"` // of WAL that the server keeps for it
	SafeWALBytes       *int64 `json:"safe_wal_bytes"` // that can still be written until it may be lost; null: no limit is set
}

// Planned are the batches that are on the way.
type Planned struct {
	Batches  int64      `json:"batches"`
	Rows     int64      `json:"rows"`
	OldestAt *time.Time `json:"oldest_at"` // when the oldest was planned; null: there is none
}

// SettledBatch is a batch that was delivered and marked.
type SettledBatch struct {
	Seq       int64     `json:"seq"`
	Rows      int64     `json:"rows"`
	SettledAt time.Time `json:"settled_at"`
}

// Unprocessed is how many of the newest rows of the outbox are neither delivered nor in quarantine.
type Unprocessed struct {
	Rows    int64  `json:"rows"`
	Newest  int64  `json:"newest"`            // rows that were looked at
	Whole   bool   `json:"whole"`             // the outbox has no others
	Problem string `json:"problem,omitempty"` // why they could not be counted
}

// Incident is one time that rows had to come from elsewhere than the slot, or ClickHouse lost some.
type Incident struct {
	ID       int64      `json:"id"`
	Kind     string     `json:"kind"`
	Reason   string     `json:"reason"`
	FromLSN  string     `json:"from_lsn"`
	ToLSN    *string    `json:"to_lsn"`
	GapBytes *int64     `json:"gap_bytes"` // of WAL between the two
	Rows     *int64     `json:"rows"`      // delivered from the table instead
	BeganAt  time.Time  `json:"began_at"`
	EndedAt  *time.Time `json:"ended_at"` // null: still open
}

// Status reads all of it. It needs no leadership, no ClickHouse, and takes seconds at most whatever the size of the outbox.
func (l *Ledger) Status(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	s, err := l.Brief(ctx)
	if err != nil {
		return nil, err
	}
	s.Unprocessed, err = l.countUnprocessed(ctx)
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok { // locked, or not there: the rest is worth showing all the same
		s.Unprocessed.Problem = refused.Message
	} else if err != nil {
		return nil, fmt.Errorf("count the unprocessed rows: %w", err)
	}
	return s, nil
}

// Brief reads the status but for the unprocessed rows: they are too many to be counted every few seconds.
func (l *Ledger) Brief(ctx context.Context) (*Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	s := &Status{Slot: l.slot, Unprocessed: Unprocessed{Problem: "not counted"}}
	err := pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		for _, read := range []func(context.Context, pgx.Tx, *Status) error{
			l.readStream, l.readSlot, l.readBatches, l.readQuarantine, l.readIncidents,
		} {
			if err := read(ctx, tx, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the status: %w", err)
	}
	return s, nil
}

// leads says whether somebody leads the stream of row s. A lease alone would still name a daemon that was killed; its lock is gone.
const leads = `s.holder IS NOT NULL AND EXISTS (SELECT FROM ` + holdsLock + `)`

// Leads says whether a daemon leads the stream.
func (l *Ledger) Leads(ctx context.Context) (leading bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	const query = `SELECT EXISTS (SELECT FROM sluicebox.stream s WHERE s.slot = $1 AND ` + leads + `)`
	err = l.pool.QueryRow(ctx, query, l.slot).Scan(&leading)
	if err != nil {
		return false, fmt.Errorf("look for the leader of the stream: %w", err)
	}
	return leading, nil
}

func (l *Ledger) readStream(ctx context.Context, tx pgx.Tx, s *Status) error {
	err := tx.QueryRow(ctx, `
SELECT clock_timestamp(), recovery, wal::text, s.slot IS NOT NULL, `+leads+`,
       coalesce(s.holder, ''), s.heartbeat_at, coalesce(s.phase, 'new'), coalesce(s.settled_lsn, '0/0')::text,
       coalesce(s.settled_ordinal, 0), coalesce(s.acked_lsn, '0/0')::text,
       CASE WHEN s.phase = 'stream' THEN pg_wal_lsn_diff(wal, greatest(s.settled_lsn, s.acked_lsn))::bigint END,
       CASE WHEN s.slot IS NULL THEN ARRAY (SELECT slot FROM sluicebox.stream ORDER BY slot LIMIT 10) END
FROM (SELECT pg_is_in_recovery() AS recovery,
             CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS wal) server
LEFT JOIN sluicebox.stream s ON s.slot = $1`, l.slot).Scan(
		&s.ReadAt, &s.InRecovery, &s.ServerLSN, &s.Known, &s.Leader.Leads,
		&s.Leader.Holder, &s.Leader.HeartbeatAt, &s.Phase, &s.SettledLSN,
		&s.SettledOrdinal, &s.AckedLSN, &s.LagBytes, &s.Others)
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return nil
}

func (l *Ledger) readSlot(ctx context.Context, tx pgx.Tx, s *Status) error {
	var slot ReplicationSlot
	// invalidation_reason is read through jsonb, so that one statement serves the servers that lack it.
	err := tx.QueryRow(ctx, `
SELECT active, coalesce(wal_status, ''), coalesce(to_jsonb(s)->>'invalidation_reason', ''),
       coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(pg_wal_lsn_diff($2::text::pg_lsn, restart_lsn), 0)::bigint, safe_wal_size
FROM pg_replication_slots s WHERE slot_name = $1`, l.slot, s.ServerLSN).Scan(
		&slot.Active, &slot.WALStatus, &slot.InvalidationReason, &slot.ConfirmedFlushLSN, &slot.RetainedBytes, &slot.SafeWALBytes)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("slot: %w", err)
	}
	s.ReplicationSlot = &slot
	return nil
}

func (l *Ledger) readBatches(ctx context.Context, tx pgx.Tx, s *Status) error {
	err := tx.QueryRow(ctx, `
SELECT count(*), coalesce(sum(rows), 0)::bigint, min(planned_at) FROM sluicebox.batch WHERE slot = $1 AND state = 'planned'`,
		l.slot).Scan(&s.Planned.Batches, &s.Planned.Rows, &s.Planned.OldestAt)
	if err != nil {
		return fmt.Errorf("planned batches: %w", err)
	}
	var last SettledBatch
	err = tx.QueryRow(ctx, `
SELECT seq, rows, settled_at FROM sluicebox.batch WHERE slot = $1 AND state = 'settled' ORDER BY seq DESC LIMIT 1`,
		l.slot).Scan(&last.Seq, &last.Rows, &last.SettledAt)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("settled batches: %w", err)
	}
	s.LastBatch = &last
	return nil
}

func (l *Ledger) readQuarantine(ctx context.Context, tx pgx.Tx, s *Status) error {
	err := tx.QueryRow(ctx, `
SELECT count(*) FILTER (WHERE dropped_at IS NULL), count(*) FILTER (WHERE dropped_at IS NOT NULL),
       (SELECT count(*) FROM sluicebox.redelivery WHERE slot = $1),
       (SELECT min(requested_at) FROM sluicebox.redelivery WHERE slot = $1)
FROM sluicebox.quarantine WHERE slot = $1`, l.slot).Scan(&s.Held, &s.Dropped, &s.Redeliveries, &s.OldestRequest)
	if err != nil {
		return fmt.Errorf("quarantine: %w", err)
	}
	return nil
}

func (l *Ledger) readIncidents(ctx context.Context, tx pgx.Tx, s *Status) error {
	rows, err := tx.Query(ctx, `
SELECT id, kind, reason, from_lsn::text, to_lsn::text, pg_wal_lsn_diff(to_lsn, from_lsn)::bigint, rows, began_at, ended_at
FROM sluicebox.incident WHERE slot = $1 ORDER BY id DESC LIMIT 10`, l.slot)
	if err != nil {
		return fmt.Errorf("incidents: %w", err)
	}
	if s.Incidents, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Incident]); err != nil {
		return fmt.Errorf("incidents: %w", err)
	}
	return nil
}

// countUnprocessed looks at the newest rows only. No index mentions processed, so that counting all would read the whole table; what is
// left to deliver is at its end.
func (l *Ledger) countUnprocessed(ctx context.Context) (u Unprocessed, err error) {
	const newest = 100_000
	err = pgx.BeginTxFunc(ctx, l.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// An outbox that somebody has locked must not keep an operator waiting who wants to know what is wrong.
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = '5s'`); err != nil {
			return err
		}
		mine, err := l.published(ctx, tx)
		if err != nil {
			return err
		}
		return tx.QueryRow(ctx, `
SELECT count(*) FILTER (WHERE NOT o.processed AND q.id IS NULL), count(*)
FROM (SELECT id, processed FROM `+l.outbox()+` WHERE `+mine.Where(`id`)+` ORDER BY id DESC LIMIT $2) o
LEFT JOIN sluicebox.quarantine q ON q.slot = $1 AND q.id = o.id`, l.slot, newest).Scan(&u.Rows, &u.Newest)
	})
	u.Whole = err == nil && u.Newest < newest
	return u, err
}
