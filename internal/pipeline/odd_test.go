package pipeline_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// An id comes twice in one batch: the outbox was truncated with RESTART IDENTITY, or a row was deleted and written anew.
func TestEqualIDsInABatch(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"valid": `INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('a', 'test', '{}'), ('b', 'test', '{}');
			TRUNCATE event_outbox RESTART IDENTITY;
			INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('c', 'test', '{}');`,
		"rejected": `INSERT INTO event_outbox (event_type, environment, event_context, event_date_time) VALUES ('a', 'test', '{}', 'infinity');
			TRUNCATE event_outbox RESTART IDENTITY;
			INSERT INTO event_outbox (event_type, environment, event_context, event_date_time) VALUES ('c', 'test', '{}', 'infinity');`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.run()
			r.streaming(t)
			r.exec(t, sql)
			r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('later', 'test', '{}')`)
			r.wait(t, `SELECT count(*) = 1 FROM event_outbox WHERE event_type = 'later' AND processed`)
		})
	}
}

// TestSlotWithADigit has a slot whose name the replication grammar takes only in quotes.
func TestSlotWithADigit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.slot = "1" + r.slot
	r.config.Replication.Slot = r.slot
	r.run()
	r.streaming(t)
	r.write(t)
	r.wait(t, `SELECT bool_and(processed) FROM event_outbox`)
}

// TestGeneratedColumns has a publication with columns that rows which are read from the table would lack.
func TestGeneratedColumns(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	if r.one(t, `SELECT current_setting('server_version_num')::bigint`) < 180000 {
		t.Skip("generated columns are published from PostgreSQL 18 on")
	}
	r.exec(t, `ALTER TABLE event_outbox ADD COLUMN tenant_id text GENERATED ALWAYS AS (event_context->>'tenant') STORED`)
	r.exec(t, `DROP PUBLICATION IF EXISTS sluicebox`)
	r.exec(t, `CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert', publish_generated_columns = stored)`)
	if err := r.ch.Exec(t.Context(), `ALTER TABLE event_log ADD COLUMN tenant_id String`); err != nil {
		t.Fatal(err)
	}
	const insert = `INSERT INTO event_outbox (event_type, environment, event_context) SELECT 't', 'test', '{"tenant": "a"}' FROM generate_series(1, 10)`
	r.exec(t, insert)
	r.run()
	r.observer.said(t, "publish_generated_columns = none")
	r.exec(t, `ALTER PUBLICATION sluicebox SET (publish_generated_columns = none)`)
	r.exec(t, insert)
	r.everything(t)
}

// hole is a connection that a firewall forgets at some time: what is sent is lost, nothing comes, nobody is told.
type hole struct {
	net.Conn

	dead *atomic.Bool
	kick chan struct{}
	once *sync.Once
}

func (h hole) Read(p []byte) (int, error) {
	if h.dead.Load() {
		<-h.kick
		return 0, os.ErrDeadlineExceeded
	}
	return h.Conn.Read(p)
}

func (h hole) Write(p []byte) (int, error) {
	if h.dead.Load() {
		return len(p), nil
	}
	return h.Conn.Write(p)
}

func (h hole) SetDeadline(at time.Time) error {
	if h.dead.Load() && !at.IsZero() {
		h.once.Do(func() { time.AfterFunc(time.Until(at), func() { close(h.kick) }) })
	}
	return h.Conn.SetDeadline(at)
}

// TestForgottenConnection has the daemon come upon one when it has just taken the lead, and nothing watches the session yet.
func TestForgottenConnection(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	r := newRig(t)
	config := r.pg.Config()
	config.MaxConns, config.AfterConnect = 6, ledger.Prepare
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true } // as after a second
	var dead sync.Map
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		h := hole{conn, &atomic.Bool{}, make(chan struct{}), &sync.Once{}}
		dead.Store(conn.LocalAddr().String()+fmt.Sprintf("%p", h.dead), h)
		return h, nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	var conns [2]*pgxpool.Conn
	for i := range conns {
		if conns[i], err = pool.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	forgotten := conns[0].Conn().PgConn().Conn().(hole)
	conns[0].Release() // below
	conns[1].Release() // the one that is taken first
	forgotten.dead.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- pipeline.New(r.config, pool, r.sink, r.observer, zerolog.Nop()).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r.streaming(t)
}

// TestRenamedForAMoment has a row written while the outbox has another name, for less than the time between two looks.
func TestRenamedForAMoment(t *testing.T) {
	t.Parallel()
	r := delivering(t)
	r.exec(t, `ALTER TABLE event_outbox RENAME TO aside;
		INSERT INTO aside (event_type, environment, event_context) VALUES ('meanwhile', 'test', '{}');
		ALTER TABLE aside RENAME TO event_outbox`)
	r.write(t)
	r.wait(t, `SELECT count(*) >= 200 FROM event_outbox WHERE processed`)
	r.everything(t)
}
