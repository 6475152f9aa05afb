package ops

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// summaryInterval is how often the log tells how delivery is.
const summaryInterval = time.Minute

// tally is what was delivered since the start.
type tally struct {
	leads                        atomic.Bool
	events, batches, quarantined atomic.Int64
}

func (t *tally) add(b *batch.Batch) {
	t.events.Add(int64(len(b.IDs)))
	t.batches.Add(1)
	t.quarantined.Add(int64(len(b.Rejected)))
}

// Summarize logs once a minute, while this daemon leads, what was delivered in it, until ctx is done. A minute in which nothing was, and nothing
// is late, is passed over: a log that says every minute that nothing happened hides what does.
func (m *Metrics) Summarize(ctx context.Context, log zerolog.Logger) {
	tick := time.NewTicker(summaryInterval)
	defer tick.Stop()
	var events, batches, quarantined int64
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		nowEvents, nowBatches, nowQuarantined, now := m.tally.events.Load(), m.tally.batches.Load(), m.tally.quarantined.Load(), time.Now()
		standing := m.standing.read()
		if m.tally.leads.Load() && (nowBatches > batches || standing.lag > 0) {
			delivered := nowEvents - events
			line := log.Info().Int64("events", delivered).Int64("batches", nowBatches-batches).
				Float64("events_per_second", tenths(float64(delivered)/now.Sub(last).Seconds())).
				Int64("quarantined", nowQuarantined-quarantined).Float64("lag_seconds", tenths(standing.lag.Seconds()))
			if standing.slot != nil {
				line.Int64("retained_wal_bytes", standing.slot.RetainedWAL)
			}
			line.Msg("delivery since the last summary")
		}
		events, batches, quarantined, last = nowEvents, nowBatches, nowQuarantined, now
	}
}

func tenths(x float64) float64 { return math.Round(10*x) / 10 }
