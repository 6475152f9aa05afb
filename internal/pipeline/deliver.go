package pipeline

import (
	"context"
	"errors"
	"math"
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
	return p.complete(ctx, b, began, true)
}

// complete takes a planned batch the rest of the way. first says that nothing of it was ever sent.
func (p *Pipeline) complete(ctx context.Context, b *batch.Batch, began time.Time, first bool) error {
	if err := p.write(ctx, b, first); err != nil {
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
		if err := p.complete(ctx, &u.Batch, time.Now(), false); err != nil {
			return err
		}
	}
	return nil
}

// write sends a planned batch until its rows are surely stored. first says that nothing of it was ever sent: then a success is
// all that is needed. Once an attempt has failed, or was another daemon's, its outcome is unknown, and tokens alone don't settle it
// (the server may have died between noting the token and storing the rows, or the table was replaced). So the rows are looked up
// before each further attempt and after its success, and are sent again under the same token as long as they are the same.
func (p *Pipeline) write(ctx context.Context, b *batch.Batch, first bool) error {
	wait := newBackoff()
	defer func() {
		if wait.paused {
			p.resume()
		}
	}()
	renewed := false
	for len(b.Rows) > 0 {
		if !first {
			if err := p.keepMissing(ctx, b); err != nil || len(b.Rows) == 0 {
				return err
			}
		}
		began := time.Now()
		err := p.sink.Write(ctx, b)
		class := classOf(err)
		p.observer.Attempt(class, time.Since(began))
		if err == nil {
			if first {
				return nil
			}
			if stored, err := p.stored(ctx, b); err != nil || stored {
				return err
			}
			// A success that left rows missing: either ClickHouse knew the token and had not the rows, and then the token must not be
			// used again; or the look-up can't see what is there, and then sending once more would double it.
			sees, err := p.sees(ctx)
			if err != nil {
				return err
			}
			if renewed || !sees {
				return &HaltError{Reason: "ClickHouse confirms inserts whose rows can't be found in the table afterwards"}
			}
			b.Token, renewed = "", true
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		first = false
		p.pause(err, "ClickHouse does not take a batch; it is sent again")
		wait.paused = true
		if !sleep(ctx, wait.NextBackOff()) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// HaltError says that going on could double or lose events.
type HaltError struct{ Reason string }

func (e *HaltError) Error() string { return e.Reason }

// stored says whether every row of the batch is in ClickHouse. It looks several times, since a replica may lag behind.
func (p *Pipeline) stored(ctx context.Context, b *batch.Batch) (bool, error) {
	const looks = 6 // three seconds, as the waits grow
	wait := newBackoff()
	for range looks {
		missing, err := p.missing(ctx, b)
		if err != nil || len(missing) == 0 {
			return err == nil, err
		}
		if !sleep(ctx, wait.NextBackOff()) {
			return false, context.Cause(ctx)
		}
	}
	return false, nil
}

// sees says whether a look-up finds a row of the newest settled batch, as it must.
func (p *Pipeline) sees(ctx context.Context) (bool, error) {
	id, known, err := p.ledger.Delivered(ctx)
	if err != nil || !known {
		return false, err
	}
	probe := &batch.Batch{Rows: []outbox.Row{ // one row, whatever its position
		{ID: id}, {ID: id, Position: outbox.Position{CommitLSN: math.MaxUint64}},
	}}
	missing, err := p.missing(ctx, probe)
	return len(missing) == 0, err
}

// missing returns the rows of the batch that ClickHouse does not have.
func (p *Pipeline) missing(ctx context.Context, b *batch.Batch) ([]outbox.Row, error) {
	var found map[int64]struct{}
	err := p.again(ctx, "ClickHouse can't be asked which events it has", sinkFailed, func() (err error) {
		found, err = p.sink.Find(ctx, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	missing := make([]outbox.Row, 0, len(b.Rows))
	for i := range b.Rows {
		if _, stored := found[b.Rows[i].ID]; !stored {
			missing = append(missing, b.Rows[i])
		}
	}
	return missing, nil
}

// keepMissing keeps the rows that ClickHouse does not have, and plans them anew under a later deadline. The token stays if the
// rows do.
func (p *Pipeline) keepMissing(ctx context.Context, b *batch.Batch) error {
	missing, err := p.missing(ctx, b)
	if err != nil {
		return err
	}
	if len(missing) < len(b.Rows) {
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
