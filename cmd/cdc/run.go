package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/sink"
	"github.com/sluicebox/sluicebox/internal/systemd"
	"github.com/sluicebox/sluicebox/internal/tracing"
)

type runCommand struct{ delivery }

// Help is shown by cdc run --help.
func (*runCommand) Help() string {
	return `Runs until SIGINT or SIGTERM, then delivers what was received and exits with 0. Whatever is killed when, the next start goes on
where delivery stopped: no event is lost or doubled. A second daemon on the same slot stands by and takes over when the first one
ends. On its first start, and when the slot was lost, it creates the slot and delivers every unprocessed row of the table.

It waits for databases that are down and tables that are not there yet. It exits with 2 for wrong settings, 3 for what must be
changed first (a password, wal_level, a missing privilege, a schema of a newer release), and 4 when another daemon took over.`
}

// Run delivers until ctx is done.
func (c *runCommand) Run(ctx context.Context) error {
	c.thrift()
	log := c.FoldingLogger(os.Stderr).With().Str("slot", c.Slot).Logger()
	build := cli.ReadBuild()
	log.Info().Str("version", build.Version).Str("revision", build.Revision).Msg("starting")

	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", string(c.AdminAddr))
	if err != nil {
		return &cli.Exit{Code: cli.CodePreflight, Err: fmt.Errorf("listen on the admin address: %w", err), Hint: "set CDC_ADMIN_ADDR to a free address"}
	}
	log.Info().Stringer("addr", listener.Addr()).Str("page", "http://"+listener.Addr().String()+"/").Msg("serving the status page, metrics and health")
	metrics := ops.NewMetrics(build)
	page, closePage, err := c.page(ctx, metrics, listener, log)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer closePage()

	// The admin server outlives the pipeline: health and metrics tell the truth while it drains.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	var group errgroup.Group
	group.Go(func() error { return ops.Serve(serving, listener, page.Handler()) })
	group.Go(func() error {
		metrics.Record(serving)
		return nil
	})

	health := "http://" + listener.Addr().String()
	stopNotifying := systemd.Notify(ctx, systemd.Health{Live: health + "/livez", State: health + "/readyz"}, log)
	traces := tracing.Start(ctx, "sluicebox-cdc", log)
	defer traces.Stop(ctx)

	err = c.deliver(ctx, metrics, traces, log)
	stopNotifying()
	stopServing()
	return cmp.Or(err, group.Wait())
}

// thrift has garbage collected before there is much of it, unless GOMEMLIMIT or GOGC say when. By Go's default there may be as much garbage as
// memory in use; here the two together stay below three batches and what does not depend on batches. Rows that are larger than that take
// what they need, and processor time.
func (c *runCommand) thrift() {
	const (
		besides, batches = 18 << 20, 3
		least            = 48 << 20
	)
	for _, name := range []string{"GOMEMLIMIT", "GOGC"} {
		if _, set := os.LookupEnv(name); set {
			return
		}
	}
	debug.SetMemoryLimit(max(besides+batches*int64(c.BatchMaxBytes), least))
}

// page makes the status page. It has sessions of its own, so that nobody who looks at it takes one from delivery; they are opened when
// somebody does, and closed when nobody has for a while.
func (c *runCommand) page(ctx context.Context, metrics *ops.Metrics, listener net.Listener, log zerolog.Logger) (page *ops.Page, stop func(), err error) {
	const conns, idle = 2, time.Minute // one to read the ledger, and one to request a redelivery meanwhile
	config, err := c.config(conns)
	if err != nil {
		return nil, nil, err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "sluicebox " + c.Slot + " page"
	config.MaxConnIdleTime = idle
	pool, err := pgxpool.NewWithConfig(context.WithoutCancel(ctx), config)
	if err != nil {
		return nil, nil, fmt.Errorf("open Postgres: %w", err)
	}
	addr, isTCP := listener.Addr().(*net.TCPAddr)
	return ops.NewPage(metrics, c.ledger(pool), ops.PageConfig{
		Slot: c.Slot, Build: cli.ReadBuild(), Loopback: isTCP && addr.IP.IsLoopback(),
	}, log), pool.Close, nil
}

func (c *runCommand) open(ctx context.Context) (*pgxpool.Pool, *sink.ClickHouse, error) {
	const conns = 7 // the lock of the stream, its lease, planning and settling, a snapshot during a backfill, the metrics, and one to spare
	config, err := c.config(conns)
	if err != nil {
		return nil, nil, err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "sluicebox " + c.Slot
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, nil, fmt.Errorf("open Postgres: %w", err)
	}
	client, err := sink.New(c.ClickHouseURL.Now, c.TargetTable, c.Slot, c.InsertDeadline)
	if err != nil {
		pool.Close()
		return nil, nil, err
	}
	return pool, client, nil
}

func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s:%d:%s", host, os.Getpid(), rand.Text()[:6]) // process ids come again
}

func exit(err error) error {
	halt := new(pipeline.HaltError)
	switch {
	case errors.Is(err, ledger.ErrFenced):
		return &cli.Exit{Code: cli.CodeFenced, Err: err, Hint: pipeline.Hint(err)}
	case errors.As(err, &halt):
		return &cli.Exit{Code: cli.CodeHalted, Err: err, Hint: pipeline.Hint(err)}
	}
	return err
}
