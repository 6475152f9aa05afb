package pipeline

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

const (
	// trimWindow is how many rows a step of retention looks at. The step takes some ten milliseconds, for which delivery may have to
	// wait; a smaller one would spend its time on round trips.
	trimWindow = 5000
	// trimRest is how many times as long as a step the pause after it is: retention takes a fifth of one connection's time at most.
	trimRest = 4
)

// beside runs what goes on beside delivery: the watcher, and retention. It returns when ctx is done or one of them finds that the
// session must end.
func (p *Pipeline) beside(ctx context.Context, lead *ledger.Lead, watched *watch) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return p.watch(ctx, lead, watched) })
	group.Go(func() error { return p.retain(ctx, watched) })
	return group.Wait()
}

// retain removes settled rows that are older than the retention, again and again. Only the loss of the lead is an error: the
// outbox may grow, but delivery must go on.
func (p *Pipeline) retain(ctx context.Context, watched *watch) error {
	if p.config.Retention == 0 {
		return nil
	}
	// A row outlives the retention by a tenth at most.
	interval := min(p.config.Retention/10, time.Minute)
	for wait := time.Second; sleep(ctx, wait); {
		if watched.publication.Load() == nil {
			continue // not streaming yet; during a backfill a snapshot is open, and rows removed from under it only cost
		}
		wait = interval
		err := p.trim(ctx)
		switch {
		case errors.Is(err, ledger.ErrFenced):
			return err
		case err != nil && ctx.Err() == nil:
			p.log.Warn().Err(err).Str("hint", trimHint(err)).Dur("again_in", interval).Msg("retention is held up; the outbox grows")
		}
	}
	return nil
}

// trim removes all there is to remove now.
func (p *Pipeline) trim(ctx context.Context) error {
	past, partitioned, err := p.ledger.PastPartitions(ctx)
	if err != nil {
		return err
	}
	if partitioned {
		return p.trimPartitions(ctx, past)
	}
	return p.trimRows(ctx)
}

func (p *Pipeline) trimRows(ctx context.Context) error {
	began, told := time.Now(), time.Now()
	removed, after := int64(0), int64(math.MinInt64)
	for {
		stepped := time.Now()
		step, err := p.ledger.TrimOutbox(ctx, p.config.Retention, after, trimWindow)
		if err != nil {
			return err
		}
		p.observer.Trimmed(step.Rows, 0)
		removed, after = removed+step.Rows, step.Last
		if !step.More {
			break
		}
		if time.Since(told) > progressInterval {
			told = time.Now()
			p.log.Info().Int64("rows", removed).Msg("removing settled rows")
		}
		if !sleep(ctx, trimRest*time.Since(stepped)) {
			return nil
		}
	}
	p.log.Debug().Int64("rows", removed).Dur("took", time.Since(began)).Msg("settled rows removed")
	return nil
}

func (p *Pipeline) trimPartitions(ctx context.Context, past []string) error {
	for _, partition := range past {
		began := time.Now()
		dropped, err := p.ledger.DropPartition(ctx, partition, p.config.Retention)
		if err != nil {
			return err
		}
		if dropped {
			p.observer.Trimmed(0, 1)
			p.log.Info().Str("partition", partition).Dur("took", time.Since(began)).Msg("partition dropped: all of its rows are settled")
		}
		if !sleep(ctx, trimRest*time.Since(began)) {
			return nil
		}
	}
	return nil
}

// trimHint says what an operator can do when retention fails.
func trimHint(err error) string {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch refused.Code {
		case "42501":
			return "CDC_RETENTION needs DELETE on the outbox; on a partitioned one the role must own it, see docs/partitions.md"
		case "55P03":
			return "nothing to do, unless it stays so: then a transaction that has used the outbox is open for long, see pg_stat_activity"
		case "57014":
			return "a partition could not be read within 5 s while nobody could write: make partitions of fewer ids, see docs/partitions.md"
		}
	}
	return Hint(err)
}
