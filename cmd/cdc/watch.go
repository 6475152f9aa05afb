package main

import (
	"context"
	"sync"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/sink"
)

// watch looks at ClickHouse for the metrics, and tells in the log how delivery is, until it is told to stop.
func watch(ctx context.Context, metrics *ops.Metrics, client *sink.ClickHouse, log zerolog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // a daemon that drains is watched, too
	var watching sync.WaitGroup
	watching.Go(func() { metrics.Survey(ctx, client) })
	watching.Go(func() { metrics.Summarize(ctx, log) })
	return func() {
		cancel()
		watching.Wait()
	}
}
