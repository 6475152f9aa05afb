package pipeline

import (
	"context"
	"errors"
	"slices"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/outbox"
)

// ask makes the running stream look for rows that operators want delivered again.
func (p *Pipeline) ask() {
	select {
	case p.requests <- struct{}{}:
	default: // it has been asked
	}
}

// redeliver delivers rows that operators asked for, one batch's worth at most. ClickHouse is asked first which of them it has. They are not
// the stream's next rows, so the stream's position stays where it is. When ctx is done, the requests that are left wait for the next start.
func (p *Pipeline) redeliver(ctx, work context.Context) error {
	state, err := p.ledger.State(work)
	if err != nil {
		return err
	}
	at := outbox.Position{CommitLSN: state.Settled.CommitLSN}
	rows, err := p.ledger.Requested(work, at, min(p.config.Limits.Rows, 10_000), p.config.Limits.Bytes)
	if errors.Is(err, ledger.ErrUnprintable) {
		p.log.Error().Err(err).Msg("the requests for events are forgotten, because one of them can't be read")
		return p.ledger.ForgetRequests(work)
	}
	if err != nil {
		return err
	}
	slices.SortStableFunc(rows, func(a, b outbox.Row) int { return batch.Partition(a.Time) - batch.Partition(b.Time) })
	builder := batch.NewBuilder(p.config.Limits)
	deliver := func() error {
		b := builder.Seal(batch.ByRequest)
		b.End = outbox.Position{}
		p.log.Info().Int("rows", len(b.IDs)+len(b.Rejected)).Msg("delivering events that were asked for")
		return p.deliver(work, b, false)
	}
	for i := range rows {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // what is left is for the next start
		}
		if builder.Before(&rows[i]) != "" {
			if err := deliver(); err != nil {
				return err
			}
		}
		builder.Add(&rows[i])
	}
	if builder.Len() == 0 {
		return nil
	}
	p.ask() // there may be more
	return deliver()
}
