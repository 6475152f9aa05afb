package main

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/sink"
)

// watch looks at both databases for the metrics, and tells in the log how delivery is, until it is told to stop.
func (c *runCommand) watch(ctx context.Context, metrics *ops.Metrics, pool *pgxpool.Pool, client *sink.ClickHouse, log zerolog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // a daemon that drains is watched, too
	var watching sync.WaitGroup
	watching.Go(func() { metrics.Survey(ctx, client, c.InsertDeadline) })
	watching.Go(func() { metrics.SurveyLedger(ctx, c.ledger(pool)) })
	watching.Go(func() { metrics.Summarize(ctx, log) })
	return func() {
		cancel()
		watching.Wait()
	}
}
