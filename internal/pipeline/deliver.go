package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/failpoint"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/outbox"
)

// deliver takes one batch down the line, up to the point where it may be acknowledged. An error means that the ledger failed
// or that ctx is done: the session must end, and the next one finishes the batch if it was planned.
func (p *Pipeline) deliver(ctx context.Context, b *batch.Batch) error {
	began := time.Now()
	failpoint.Hit("before-plan")
	if err := p.setDeadline(ctx, b); err != nil {
		return err
	}
	if err := p.ledger.Plan(ctx, b); err != nil {
		return err
	}
	for _, r := range b.Rejected {
		p.log.Warn().Int64("id", r.ID).Str("reason", r.Reason).Msg("event put into quarantine")
	}
	failpoint.Hit("after-plan")
	if err := p.write(ctx, b); err != nil {
		return err
	}
	failpoint.Hit("after-write")
	if err := p.settle(ctx, b); err != nil {
		return err
	}
	failpoint.Hit("after-settle")
	p.observer.Settled(b, time.Since(began))
	p.log.Debug().Int64("batch", b.Seq).Int("rows", len(b.IDs)).Int("bytes", b.Bytes).Str("sealed_by", string(b.SealedBy)).
		Stringer("end", b.End).Dur("took", time.Since(began)).Msg("batch settled")
	return nil
}

// finishPlanned finishes the batches that earlier daemons, or earlier sessions of this one, planned and did not settle. Their
// rows are read from the table by id, so this needs no WAL. An insert of theirs may still be on its way: the token of a batch is
// kept as long as its rows are the same, so of two inserts one is dropped.
func (p *Pipeline) finishPlanned(ctx context.Context) error {
	planned, err := p.ledger.Planned(ctx)
	if err != nil {
		return err
	}
	for _, u := range planned {
		p.enter(Recovering, "")
		p.log.Info().Int64("batch", u.Seq).Int("rows", len(u.IDs)).Msg("finishing a batch that was planned before")
		err := p.again(ctx, "the rows of a planned batch can't be seen yet", ledger.Retriable, func() error { return p.ledger.Fill(ctx, u) })
		if err != nil {
			return err
		}
		if err := p.finish(ctx, &u.Batch); err != nil {
			return err
		}
	}
	return nil
}

// finish delivers what is missing of a batch whose earlier inserts have an unknown outcome.
func (p *Pipeline) finish(ctx context.Context, b *batch.Batch) error {
	began := time.Now()
	for written := false; ; written = true {
		// A write that succeeded and left rows missing had a token that ClickHouse knew for other rows, or from before the rows
		// were removed: it must not be used again.
		if err := p.keepMissing(ctx, b, written); err != nil {
			return err
		}
		if len(b.Rows) == 0 {
			break
		}
		if err := p.write(ctx, b); err != nil {
			return err
		}
		failpoint.Hit("recovered-write")
	}
	if err := p.settle(ctx, b); err != nil {
		return err
	}
	p.observer.Settled(b, time.Since(began))
	return nil
}

// keepMissing looks up which rows of the batch are stored, keeps the others, and plans them anew under a later deadline. The
// token stays if the rows do; newToken forces another.
func (p *Pipeline) keepMissing(ctx context.Context, b *batch.Batch, newToken bool) error {
	var found map[int64]struct{}
	err := p.again(ctx, "ClickHouse can't be asked which events it has", sinkFailed, func() (err error) {
		found, err = p.sink.Find(ctx, b)
		return err
	})
	if err != nil {
		return err
	}
	missing := make([]outbox.Row, 0, len(b.Rows))
	for i := range b.Rows {
		if _, stored := found[b.Rows[i].ID]; !stored {
			missing = append(missing, b.Rows[i])
		}
	}
	if newToken || len(missing) < len(b.Rows) {
		b.Token = ""
	}
	b.Rows = missing
	if len(missing) == 0 {
		return nil
	}
	if err := p.setDeadline(ctx, b); err != nil {
		return err
	}
	if err := p.ledger.Replan(ctx, b); err != nil {
		return err
	}
	failpoint.Hit("replanned")
	return nil
}

// write sends a planned batch until it is surely stored. Every failure but an expired deadline is answered by the same rows
// under the same token: their outcome is unknown, or nothing was stored.
func (p *Pipeline) write(ctx context.Context, b *batch.Batch) error {
	wait := newBackoff()
	for len(b.Rows) > 0 {
		began := time.Now()
		err := p.sink.Write(ctx, b)
		class := classOf(err)
		p.observer.Attempt(class, time.Since(began))
		switch {
		case err == nil:
			if wait.paused {
				p.resume()
				p.log.Info().Int64("batch", b.Seq).Msg("ClickHouse takes batches again")
			}
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case class == string(batch.Expired):
			p.log.Warn().Int64("batch", b.Seq).Msg("the deadline of a batch has passed; looking up what is stored")
			if err := p.keepMissing(ctx, b, false); err != nil {
				return err
			}
			continue
		}
		p.pause(err, "ClickHouse does not take a batch; it is sent again")
		wait.paused = true
		if !sleep(ctx, wait.NextBackOff()) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// settle marks the rows and advances the position.
func (p *Pipeline) settle(ctx context.Context, b *batch.Batch) error {
	return p.again(ctx, "a written batch can't be settled yet", ledger.Retriable, func() error { return p.ledger.Settle(ctx, b) })
}

// setDeadline asks for the deadline of a batch that is about to be planned.
func (p *Pipeline) setDeadline(ctx context.Context, b *batch.Batch) error {
	return p.again(ctx, "ClickHouse can't be reached", sinkFailed, func() (err error) {
		b.Deadline, err = p.sink.Deadline(ctx)
		return err
	})
}

// again calls do until it succeeds, waiting in between, as long as its error is one that goes by itself.
func (p *Pipeline) again(ctx context.Context, message string, goes func(error) bool, do func() error) error {
	wait := newBackoff()
	for {
		err := do()
		if err == nil && wait.paused {
			p.resume()
		}
		if err == nil || !goes(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.pause(err, message)
		wait.paused = true
		if !sleep(ctx, wait.NextBackOff()) {
			return context.Cause(ctx)
		}
	}
}

// sinkFailed says whether an error is the sink's. All of them are waited out: the operator may mend even a missing table.
func sinkFailed(err error) bool {
	var failure *batch.Failure
	return errors.As(err, &failure)
}

// classOf names the outcome of a write: ok, or the class of its failure.
func classOf(err error) string {
	var failure *batch.Failure
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &failure):
		return string(failure.Class)
	}
	return string(batch.Unknown)
}
