package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/failpoint"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/outbox"
)

// backfill makes a new slot and delivers every unprocessed row of the snapshot that Postgres exports at its start. The snapshot
// has all commits before the slot's consistent point, the stream all at or after it: no gap, no overlap. Rows outlive the WAL, so
// this serves the first start on a table that has rows and the loss of a slot alike.
//
// If it is interrupted, it starts over with another slot; what was settled is processed by then.
func (p *Pipeline) backfill(ctx context.Context, reason string, slot replication.SlotState, now ledger.State) error {
	began := time.Now()
	p.enter(Backfill, reason)
	p.log.Info().Str("reason", reason).Msg("creating the slot anew; unprocessed events are read from the table")
	if err := p.ledger.BeginBackfill(ctx); err != nil {
		return err
	}
	if slot.Exists { // slots know no epochs, so a daemon that is paused here may replace its successor's: stream looks again
		if err := p.postgres.DropSlot(ctx); err != nil {
			return err
		}
	}
	snapshot, start, err := p.createSlot(ctx)
	if err != nil {
		return err
	}
	p.paging.Store(true)
	defer func() {
		snapshot.Close(ctx)
		p.paging.Store(false)
	}()
	failpoint.Hit("slot-created")
	rows, err := p.deliverSnapshot(ctx, snapshot)
	if err != nil {
		return err
	}
	incident, err := p.ledger.EndBackfill(ctx, start, now)
	if err != nil {
		return err
	}
	failpoint.Hit("backfill-ended")
	if incident != nil {
		p.log.Warn().Str("kind", incident.Kind).Int64("rows", *incident.Rows).Dur("took", time.Since(incident.BeganAt)).
			Msg("the slot is complete again; every event that it had lost is delivered")
	}
	p.log.Info().Int64("rows", rows).Dur("took", time.Since(began)).Msg("backfill is complete")
	return nil
}

// createSlot creates the slot and imports its snapshot, and tells who makes it wait.
func (p *Pipeline) createSlot(ctx context.Context) (snapshot, uint64, error) {
	const patience = 10 * time.Minute // a writing transaction that is open for longer must be looked at by somebody
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	go func() {
		for sleep(ctx, progressInterval) {
			blockers, err := p.postgres.Blockers(ctx)
			if err != nil {
				return
			}
			for _, b := range blockers {
				p.log.Warn().Int32("pid", b.PID).Str("application", b.Application).Time("open_since", b.Since).
					Msg("the slot can't be created until this session ends its transaction")
			}
		}
	}()
	return p.postgres.CreateSlot(ctx)
}

// progressInterval is how often something that takes long says how far it is.
const progressInterval = 2 * time.Second

// deliverSnapshot delivers the rows of the snapshot, one batch after the other.
func (p *Pipeline) deliverSnapshot(ctx context.Context, snapshot snapshot) (int64, error) {
	total, err := snapshot.Unprocessed(ctx)
	if err != nil {
		return 0, err
	}
	builder := batch.NewBuilder(p.config.Limits)
	var done int64
	told := time.Now()
	deliver := func(cause batch.Cause) error {
		b := builder.Seal(cause)
		// Marks may have been undone by a restore of Postgres, so ClickHouse is asked first.
		if err := p.deliver(ctx, b, false); err != nil {
			return err
		}
		failpoint.Hit("backfill-batch")
		done += int64(len(b.IDs) + len(b.Rejected))
		if time.Since(told) > progressInterval {
			told = time.Now()
			p.log.Info().Int64("rows", done).Int64("of", total).Msg("backfill")
		}
		return nil
	}
	var last int64
	err = snapshot.Rows(ctx, func(row *outbox.Row) error {
		last = row.ID
		if cause := builder.Before(row); cause != "" {
			if err := deliver(cause); err != nil {
				return err
			}
		}
		builder.Add(row)
		if cause := builder.Full(); cause != "" {
			return deliver(cause)
		}
		return nil
	})
	if errors.Is(err, ledger.ErrUnprintable) { // the rows before it have come; the next try is without it
		id, putErr := p.ledger.Unprintable(ctx, last)
		if putErr == nil {
			p.tellRejected([]batch.Rejected{{ID: id, Reason: err.Error()}})
		}
		err = errors.Join(err, putErr)
	}
	if err == nil && builder.Len() > 0 {
		err = deliver(batch.ByDrain)
	}
	return done, err
}
