package main

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/doctor"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/sink"
	"github.com/sluicebox/sluicebox/internal/tracing"
	"github.com/sluicebox/sluicebox/migrations"
)

// deliver opens both databases, looks whether they are as they must be, and runs the pipeline.
func (c *runCommand) deliver(ctx context.Context, metrics *ops.Metrics, traces *tracing.Tracing, log zerolog.Logger) error {
	pool, client, err := c.open(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // nothing is in flight by then
	defer pool.Close()
	defer c.watch(ctx, metrics, pool, client, log)()

	stream := c.replication(cmp.Or(c.ReplicationURL, c.DatabaseURL))
	check := func(ctx context.Context) error { return preflight(ctx, pool, stream) }
	if err := waitFor(ctx, metrics, log, check); err != nil {
		return err
	}
	defer c.examine(ctx, metrics, log)()
	if _, err := client.Ready(ctx); sink.Denied(err) { // all else about ClickHouse the pipeline waits out
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: pipeline.Hint(err)}
	}
	return exit(pipeline.New(pipeline.Config{
		Replication: stream, Limits: c.limits(), Holder: holder(), TakeoverAfter: c.TakeoverAfter, DrainTimeout: c.ShutdownTimeout,
		MaxSlotWAL: int64(c.MaxSlotWAL), HaltOnPoison: c.OnPoison == "halt", PoisonShare: c.PoisonShare,
		Retention: c.Retention,
	}, pool, client, ops.Traced(metrics, c.Slot, traces.Tracer()), log).Run(ctx))
}

// waitFor calls check until it succeeds. An [*cli.Exit] ends the waiting: nobody can mend that from outside.
func waitFor(ctx context.Context, metrics *ops.Metrics, log zerolog.Logger, check func(context.Context) error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = 200*time.Millisecond, 5*time.Second
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := check(ctx)
		if exit := new(cli.Exit); errors.As(err, &exit) {
			return struct{}{}, backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, _ time.Duration) {
		metrics.State(pipeline.Paused, pipeline.Reason(err, hint(err)))
		log.Error().Err(err).Str("hint", hint(err)).Msg("waiting for Postgres")
	}))
	return err
}

func hint(err error) string {
	if errors.Is(err, doctor.ErrNotMigrated) {
		return "run `cdc migrate`; this daemon goes on by itself then"
	}
	return pipeline.Hint(err)
}

// preflight looks whether Postgres is as it must be. What others may mend meanwhile gives an ordinary error, what needs this
// program or Postgres to be started anew an [*cli.Exit].
func preflight(ctx context.Context, pool *pgxpool.Pool, stream replication.Config) error {
	const timeout = 20 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found := doctor.Preflight(ctx, pool, stream)
	switch {
	case found == nil:
		return nil
	case found.Check == doctor.LedgerSchema && !errors.Is(found.Err, migrations.ErrNewer): // `cdc migrate` may run meanwhile
		return found.Err
	case found.Err == nil || found.Check == doctor.LedgerSchema:
		return &cli.Exit{Code: cli.CodePreflight, Err: cmp.Or(found.Err, errors.New(found.Seen)), Hint: found.Mend}
	}
	return final(found.Err)
}

// final makes an exit of errors that say that a setting or a privilege is wrong.
func final(err error) error {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) {
		return err
	}
	switch refused.Code {
	case "28P01", "28000", "3D000", "42501": // password, pg_hba.conf, no such database, no privilege
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: pipeline.Hint(err)}
	}
	return err
}
