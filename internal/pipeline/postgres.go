package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/outbox"
)

// What the pipeline needs of Postgres. It is an interface for one reason: the model, model_test.go, runs this package's own loop on
// stores in memory that crash, pause and reply late as no server can be made to.

// books is the ledger of a stream, *[ledger.Ledger], which says what each method promises.
type books interface {
	lease
	planning
	healing
	requests
	retention
	State(ctx context.Context) (ledger.State, error)
	Allow(ctx context.Context, lsn uint64) error
	Alone(ctx context.Context) error
}

type lease interface {
	TryLead(ctx context.Context, holder string, takeoverAfter time.Duration) (*ledger.Lead, *ledger.Standby, error)
	Heartbeat(ctx context.Context) error
	Release(ctx context.Context) error
}

type planning interface {
	Plan(ctx context.Context, b *batch.Batch) error
	Replan(ctx context.Context, b *batch.Batch) error
	Settle(ctx context.Context, b *batch.Batch) error
	Planned(ctx context.Context) ([]*ledger.Unfinished, error)
	Fill(ctx context.Context, u *ledger.Unfinished) (unseen []batch.Rejected, err error)
	Unseen(ctx context.Context, ids []int64) (unseen []int64, err error)
	Horizon(ctx context.Context) (xid uint64, err error)
	Passed(ctx context.Context, horizon uint64) (passed bool, err error)
	Delivered(ctx context.Context, n int, backfilled bool) ([]outbox.Row, error)
}

type healing interface {
	Open(ctx context.Context, kind, reason string) (opened bool, err error)
	BeginBackfill(ctx context.Context) error
	EndBackfill(ctx context.Context, start uint64, s ledger.State) (*ledger.Incident, error)
	EndLoss(ctx context.Context, start uint64) (*ledger.Incident, error)
	EndClickHouse(ctx context.Context) (*ledger.Incident, error)
	Losses(ctx context.Context, within time.Duration) (n int, since time.Duration, err error)
	Awaited(ctx context.Context) (awaited bool, err error)
	Unprintable(ctx context.Context, after int64) (id int64, err error)
}

type requests interface {
	HasRequests(ctx context.Context) (has bool, err error)
	Requested(ctx context.Context, at outbox.Position, limit, bytes int) ([]outbox.Row, error)
	ForgetRequests(ctx context.Context) error
}

type retention interface {
	Trim(ctx context.Context, keep int) error
	TrimOutbox(ctx context.Context, olderThan time.Duration, after int64, window int) (ledger.Trimmed, error)
	PastPartitions(ctx context.Context) (past []string, partitioned bool, err error)
	DropPartition(ctx context.Context, partition string, olderThan time.Duration) (bool, error)
}

// cluster is the rest of Postgres: which one it is, the slot and the publication.
type cluster interface {
	Database(ctx context.Context) (string, error)
	Identity(ctx context.Context) (system string, timeline int32, err error)
	Slot(ctx context.Context) (replication.SlotState, error)
	DropSlot(ctx context.Context) error
	// CreateSlot gives the snapshot of the slot's start, and that start.
	CreateSlot(ctx context.Context) (snapshot, uint64, error)
	Blockers(ctx context.Context) ([]replication.Blocker, error)
	Start(ctx context.Context, from, acked uint64) (source, error)
	FindPublication(ctx context.Context) (identity string, err error)
	EnsurePublication(ctx context.Context) (identity string, err error)
}

// snapshot is the outbox at the start of a slot, *[ledger.Snapshot].
type snapshot interface {
	Unprocessed(ctx context.Context) (int64, error)
	Rows(ctx context.Context, each func(*outbox.Row) error) error
	Close(ctx context.Context)
}

// source is an open stream, *[replication.Stream].
type source interface {
	Events() <-chan []replication.Event
	Reuse(chunk []replication.Event)
	Done() <-chan struct{}
	Err() error
	Ack(lsn uint64)
	Close()
}

// postgres is the real cluster.
type postgres struct {
	pool   *pgxpool.Pool
	ledger *ledger.Ledger
	config replication.Config
}

// askTimeout bounds a question to Postgres. Before the session is watched, nothing else would end the wait for a connection that a firewall has
// forgotten: the pool pings one that was idle, without a limit of its own.
const askTimeout = 30 * time.Second

func (p *postgres) Database(ctx context.Context) (database string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := p.pool.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return "", fmt.Errorf("ask Postgres for the database: %w", err)
	}
	return database, nil
}

func (p *postgres) Identity(ctx context.Context) (system string, timeline int32, err error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	err = p.pool.QueryRow(ctx, `
SELECT system_identifier::text, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int FROM pg_control_system()`).
		Scan(&system, &timeline)
	if err != nil {
		return "", 0, fmt.Errorf("ask Postgres which cluster it is: %w", err)
	}
	return system, timeline, nil
}

func (p *postgres) Slot(ctx context.Context) (replication.SlotState, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return replication.Slot(ctx, p.pool, p.config.Slot)
}

func (p *postgres) DropSlot(ctx context.Context) error { return replication.DropSlot(ctx, p.config) }

func (p *postgres) CreateSlot(ctx context.Context) (snapshot, uint64, error) {
	created, err := replication.CreateSlot(ctx, p.config)
	if err != nil {
		return nil, 0, err
	}
	defer created.Close(ctx)
	opened, err := p.ledger.OpenSnapshot(ctx, created.Snapshot, created.Start)
	if err != nil {
		return nil, 0, err
	}
	return opened, created.Start, nil
}

func (p *postgres) Blockers(ctx context.Context) ([]replication.Blocker, error) {
	return replication.Blockers(ctx, p.pool)
}

func (p *postgres) Start(ctx context.Context, from, acked uint64) (source, error) {
	stream, err := replication.Start(ctx, p.config, from, acked)
	if err != nil {
		return nil, err
	}
	return stream, nil
}

func (p *postgres) FindPublication(ctx context.Context) (identity string, err error) {
	return replication.FindPublication(ctx, p.pool, p.config)
}

func (p *postgres) EnsurePublication(ctx context.Context) (identity string, err error) {
	return replication.EnsurePublication(ctx, p.pool, p.config)
}
