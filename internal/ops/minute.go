package ops

import (
	"context"
	"math"
	"time"

	"github.com/rs/zerolog"
)

// summaryInterval is how often the log tells how delivery is.
const summaryInterval = time.Minute

// Summarize logs once a minute, while this daemon leads, what was delivered in it, until ctx is done. A minute in which nothing was, and nothing
// is late, is passed over: a log that says every minute that nothing happened hides what does.
func (m *Metrics) Summarize(ctx context.Context, log zerolog.Logger) {
	tick := time.NewTicker(summaryInterval)
	defer tick.Stop()
	var before tally
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		leads, sum := m.recent.total()
		now := time.Now()
		standing := m.standing.read()
		if leads && (sum.batches > before.batches || standing.lag > 0) {
			delivered := sum.events - before.events
			line := log.Info().Uint64("events", delivered).Uint64("batches", sum.batches-before.batches).
				Float64("events_per_second", tenths(float64(delivered)/now.Sub(last).Seconds())).
				Uint64("quarantined", sum.quarantined-before.quarantined).Float64("lag_seconds", tenths(standing.lag.Seconds()))
			if standing.slot != nil {
				line.Int64("retained_wal_bytes", standing.slot.RetainedWAL)
			}
			line.Msg("delivery since the last summary")
		}
		before, last = sum, now
	}
}

func tenths(x float64) float64 { return math.Round(10*x) / 10 }
