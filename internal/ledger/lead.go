package ledger

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Lead is the leadership of this daemon over a stream.
//
// Two things make a leader. The epoch is what keeps data safe: every later statement is fenced by it. The advisory lock is
// what keeps two healthy daemons from taking the stream from each other: Postgres gives it up by itself, at once, when the
// session of a killed daemon ends.
type Lead struct {
	State State
	Epoch int64
	Lock  Session // whose end gives the lock up
}

// Session is a session of Postgres, a *pgx.Conn.
type Session interface {
	Ping(ctx context.Context) error
	Close(ctx context.Context) error
}

// Standby says why this daemon can't lead now.
type Standby struct {
	Holder string        // who leads, as it called itself; may be empty
	PID    int32         // of the session that reads the slot, 0: nobody does
	Age    time.Duration // of the lease
}

// TryLead takes the stream if nobody leads it, or if the lease of who does is older than takeoverAfter; then the sessions
// of the old leader are terminated first. Exactly one of lead and standby is set when err is nil. A daemon that has led before and
// was succeeded gets [ErrFenced]: it must not go on with what it remembers. holder must be unique to the process.
func (l *Ledger) TryLead(ctx context.Context, holder string, takeoverAfter time.Duration) (*Lead, *Standby, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if _, err := l.pool.Exec(ctx, `INSERT INTO sluicebox.stream (slot) VALUES ($1) ON CONFLICT DO NOTHING`, l.slot); err != nil {
		return nil, nil, fmt.Errorf("find the stream in the ledger: %w", err)
	}
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("take the stream: %w", err)
	}
	lead, standby, err := l.tryLead(ctx, conn, holder, takeoverAfter)
	switch {
	case err != nil:
		_ = conn.Hijack().Close(ctx) // it may hold the lock
		return nil, nil, err
	case lead == nil:
		conn.Release()
		return nil, standby, nil
	}
	lead.Lock = conn.Hijack()
	return lead, nil, nil
}

func (l *Ledger) tryLead(ctx context.Context, conn *pgxpool.Conn, holder string, takeoverAfter time.Duration) (*Lead, *Standby, error) {
	locked, err := l.lock(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	if l.epoch != 0 { // this daemon has led before: nobody may have led since
		var epoch int64
		var leader string
		err := conn.QueryRow(ctx, `SELECT epoch, coalesce(holder, '') FROM sluicebox.stream WHERE slot = $1`, l.slot).Scan(&epoch, &leader)
		if err != nil {
			return nil, nil, fmt.Errorf("read the epoch: %w", err)
		}
		if epoch != l.epoch && leader != holder { // the name is ours when an earlier try succeeded and its reply was lost
			return nil, nil, ErrFenced
		}
	}
	standby, stale, err := l.leader(ctx, conn, takeoverAfter)
	if err != nil {
		return nil, nil, err
	}
	if !locked || standby.PID != 0 {
		if !stale {
			return nil, standby, l.unlock(ctx, conn, locked)
		}
		if err := l.terminate(ctx, conn); err != nil {
			return nil, nil, err
		}
		if !locked {
			if locked, err = l.lock(ctx, conn); err != nil || !locked {
				return nil, standby, err // its session is still ending; the caller tries again
			}
		}
	}
	lead := &Lead{}
	row := conn.QueryRow(ctx, `
UPDATE sluicebox.stream SET epoch = epoch + 1, holder = $2, heartbeat_at = clock_timestamp() WHERE slot = $1
RETURNING `+stateColumns+`, epoch`, l.slot, holder)
	if lead.State, err = scanState(row, &lead.Epoch); err != nil {
		return nil, nil, fmt.Errorf("take the stream: %w", err)
	}
	// In a statement of its own: the one before may have waited for the old leader's last plan, and would not see it.
	err = conn.QueryRow(ctx, `SELECT coalesce(max(seq), 0) FROM sluicebox.batch WHERE slot = $1`, l.slot).Scan(&l.seq)
	if err != nil {
		return nil, nil, fmt.Errorf("take the stream: %w", err)
	}
	l.epoch = lead.Epoch
	return lead, nil, nil
}

// Check asks whether the session that holds the lock is still there.
func (lead *Lead) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	if err := lead.Lock.Ping(ctx); err != nil {
		return fmt.Errorf("the session that holds the lock of the stream: %w", err)
	}
	return nil
}

// Close gives the lock up.
func (lead *Lead) Close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = lead.Lock.Close(ctx) // the session ends either way
}

// lockKey is the pair of keys of a stream's advisory lock: a constant of ours ("slui" in ASCII), and the slot.
const lockKey = `1936487785, hashtext($1)`

// holdsLock are the sessions that have it.
const holdsLock = `pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid = 1936487785::oid AND objid = (hashtext($1)::bigint & 4294967295)::oid`

func (l *Ledger) lock(ctx context.Context, conn *pgxpool.Conn) (locked bool, err error) {
	if err := conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(`+lockKey+`)`, l.slot).Scan(&locked); err != nil {
		return false, fmt.Errorf("lock the stream: %w", err)
	}
	return locked, nil
}

func (l *Ledger) unlock(ctx context.Context, conn *pgxpool.Conn, locked bool) error {
	if !locked {
		return nil
	}
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_unlock(`+lockKey+`)`, l.slot); err != nil {
		return fmt.Errorf("unlock the stream: %w", err)
	}
	return nil
}

// leader looks at who leads. stale: a lease is held, and older than takeoverAfter.
func (l *Ledger) leader(ctx context.Context, conn *pgxpool.Conn, takeoverAfter time.Duration) (*Standby, bool, error) {
	var s Standby
	var age float64
	var held bool
	err := conn.QueryRow(ctx, `
SELECT coalesce(s.holder, ''), s.holder IS NOT NULL, coalesce(extract(epoch FROM clock_timestamp() - s.heartbeat_at), 0)::float8,
       coalesce((SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1), 0)
FROM sluicebox.stream s WHERE s.slot = $1`, l.slot).Scan(&s.Holder, &held, &age, &s.PID)
	if err != nil {
		return nil, false, fmt.Errorf("look for the leader of the stream: %w", err)
	}
	s.Age = time.Duration(age * float64(time.Second))
	if !held || s.Age <= takeoverAfter {
		return &s, false, nil
	}
	// While a statement of the leader runs, it holds the row and can't renew the lease; Postgres ends the statement, one way or the other.
	var free int
	err = conn.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM sluicebox.stream WHERE slot = $1 FOR UPDATE SKIP LOCKED) s`, l.slot).Scan(&free)
	if err != nil {
		return nil, false, fmt.Errorf("look for the leader of the stream: %w", err)
	}
	return &s, free > 0, nil
}

// terminate ends the sessions of a leader whose lease is stale: the one that reads the slot and the one that holds the lock.
func (l *Ledger) terminate(ctx context.Context, conn *pgxpool.Conn) error {
	_, err := conn.Exec(ctx, `
SELECT pg_terminate_backend(pid, 5000) FROM (
    SELECT active_pid AS pid FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL
    UNION
    SELECT pid FROM `+holdsLock+`
) s WHERE pid <> pg_backend_pid()`, l.slot)
	if err != nil {
		return fmt.Errorf("end the sessions of the leader whose lease is stale: %w", err)
	}
	return nil
}
