package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier is what this package needs of a connection or pool for plain SQL.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// SlotState is a slot as Postgres shows it.
type SlotState struct {
	Exists         bool
	Plugin         string
	Database       string
	Lost           string // why the slot can't be read any more; empty: it can
	ConfirmedFlush uint64 // what was acknowledged, as far as the server remembers (FACTS P3)
	RetainedWAL    int64  // bytes of WAL that the server keeps for the slot
	WaitingWAL     int64  // bytes of WAL since what was acknowledged
	WALStatus      string // reserved, extended, unreserved or lost
	SafeWAL        *int64 // bytes that may still be written until the slot may be lost; nil: no limit is set, or it is lost

	WALEnd uint64    // of the server
	Now    time.Time // by the server's clock
}

// Slot looks at a slot in pg_replication_slots.
func Slot(ctx context.Context, q Querier, name string) (SlotState, error) {
	// Columns that only newer servers have are read through jsonb, so that one statement serves all versions.
	const query = `
SELECT s.plugin, coalesce(s.database, ''),
       CASE WHEN s.wal_status = 'lost' OR to_jsonb(s)->>'invalidation_reason' IS NOT NULL
            THEN coalesce(to_jsonb(s)->>'invalidation_reason', 'wal_removed') ELSE '' END,
       coalesce(s.confirmed_flush_lsn, '0/0')::text,
       coalesce(pg_wal_lsn_diff(now.lsn, s.restart_lsn), 0)::bigint, coalesce(pg_wal_lsn_diff(now.lsn, s.confirmed_flush_lsn), 0)::bigint,
       coalesce(s.wal_status, ''), s.safe_wal_size, now.lsn::text, clock_timestamp()
FROM pg_replication_slots s,
     LATERAL (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END) now (lsn)
WHERE s.slot_name = $1 AND s.plugin IS NOT NULL`
	state := SlotState{Exists: true}
	var confirmed, end string
	err := q.QueryRow(ctx, query, name).Scan(
		&state.Plugin, &state.Database, &state.Lost, &confirmed, &state.RetainedWAL, &state.WaitingWAL,
		&state.WALStatus, &state.SafeWAL, &end, &state.Now)
	if errors.Is(err, pgx.ErrNoRows) {
		return SlotState{}, nil
	}
	if err != nil {
		return SlotState{}, fmt.Errorf("look at slot %s: %w", name, err)
	}
	flushed, err := pglogrepl.ParseLSN(confirmed)
	if err != nil {
		return SlotState{}, fmt.Errorf("look at slot %s: %w", name, err)
	}
	written, err := pglogrepl.ParseLSN(end)
	if err != nil {
		return SlotState{}, fmt.Errorf("look at slot %s: %w", name, err)
	}
	state.ConfirmedFlush, state.WALEnd = uint64(flushed), uint64(written)
	return state, nil
}

// DropSlot drops a slot if it is there. Rows outlive the WAL: what the slot held is found again in the table. It uses a
// replication connection, because only that role is sure to have the right.
func DropSlot(ctx context.Context, config Config) error {
	conn, err := connect(ctx, config)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	err = pglogrepl.DropReplicationSlot(ctx, conn.PgConn, config.quotedSlot(), pglogrepl.DropReplicationSlotOptions{})
	if err != nil && sqlState(err) != undefinedObject {
		return fmt.Errorf("drop slot %s: %w", config.Slot, err)
	}
	return nil
}

// NewSlot is a slot that was just created, and the snapshot of the database at its start. The snapshot can be imported
// until Close.
type NewSlot struct {
	Snapshot string // for SET TRANSACTION SNAPSHOT
	Start    uint64 // the consistent point: the stream has every commit at or after it, the snapshot all before (FACTS P2)
	conn     *wire
}

// CreateSlot creates the slot. Postgres waits for every transaction that is writing at the moment (FACTS P11), bounded by ctx;
// [Blockers] names them meanwhile.
func CreateSlot(ctx context.Context, config Config) (*NewSlot, error) {
	conn, err := connect(ctx, config)
	if err != nil {
		return nil, err
	}
	options := `SNAPSHOT 'export'`
	if major, _, _ := strings.Cut(conn.ParameterStatus("server_version"), "."); major >= "17" { // all supported ones have two digits
		options += `, FAILOVER` // standbys that synchronise slots have it, too
	}
	query := fmt.Sprintf(`CREATE_REPLICATION_SLOT %s LOGICAL pgoutput (%s)`, config.quotedSlot(), options)
	created, err := pglogrepl.ParseCreateReplicationSlot(conn.Exec(ctx, query))
	if err != nil {
		closeConn(ctx, conn)
		return nil, fmt.Errorf("create slot %s: %w", config.Slot, err)
	}
	start, err := pglogrepl.ParseLSN(created.ConsistentPoint)
	if err != nil {
		closeConn(ctx, conn)
		return nil, fmt.Errorf("create slot %s: %w", config.Slot, err)
	}
	return &NewSlot{Snapshot: created.SnapshotName, Start: uint64(start), conn: conn}, nil
}

// Close ends the connection that holds the snapshot. Transactions that imported it keep it.
func (n *NewSlot) Close(ctx context.Context) { closeConn(ctx, n.conn) }

// Blocker is a session whose open transaction keeps a slot from being created.
type Blocker struct {
	PID         int32
	Application string
	Since       time.Time // of the transaction's start
}

// Blockers lists the sessions that have written in a transaction which is still open, oldest first, ten at most.
func Blockers(ctx context.Context, q Querier) ([]Blocker, error) {
	rows, err := q.Query(ctx, `
SELECT pid, coalesce(application_name, ''), xact_start FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND xact_start IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 10`)
	if err != nil {
		return nil, fmt.Errorf("look for open transactions: %w", err)
	}
	blockers, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Blocker])
	if err != nil {
		return nil, fmt.Errorf("look for open transactions: %w", err)
	}
	return blockers, nil
}
