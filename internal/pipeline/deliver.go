package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/failpoint"
	"github.com/sluicebox/sluicebox/internal/ledger"
)

// deliver takes one batch down the line, up to the point where it may be acknowledged. fresh says that ClickHouse can't have any of
// its rows. An error means that the ledger failed, that going on is not safe, or that ctx is done: the session must end, and the next
// one finishes the batch if it was planned.
func (p *Pipeline) deliver(ctx context.Context, b *batch.Batch, fresh bool) error {
	if err := p.write(ctx, b, fresh, func() {}); err != nil {
		return err
	}
	return p.finish(ctx, b)
}

// write is the first half: it ends when ClickHouse has the batch, or its rows are put aside. planned is called once, as soon as the batch is.
func (p *Pipeline) write(ctx context.Context, b *batch.Batch, fresh bool, planned func()) error {
	b.Began = time.Now()
	failpoint.Hit("before-plan")
	if len(b.Rejected) > 0 && p.config.HaltOnPoison && !b.Requested() {
		return poisoned(b.Rejected)
	}
	var err error
	if _, b.Deadline, err = p.clock(ctx); err != nil {
		return err
	}
	if err := p.keepWindow(ctx); err != nil {
		return err
	}
	if err := p.ledger.Plan(ctx, b); err != nil {
		return err
	}
	planned()
	p.observer.Planned(b)
	p.tellRejected(b.Rejected)
	failpoint.Hit("after-plan")
	w := &writing{p: p, b: b, look: !fresh, careful: !fresh, wait: newBackoff()}
	if err := w.run(ctx); err != nil {
		return err
	}
	b.Stored = time.Now()
	return nil
}

func (p *Pipeline) tellRejected(rejected []batch.Rejected) {
	for _, r := range rejected {
		p.log.Warn().Int64("id", r.ID).Str("reason", r.Reason).Msg("event put into quarantine")
	}
}

// finish is the second half: it settles a written batch.
func (p *Pipeline) finish(ctx context.Context, b *batch.Batch) error {
	failpoint.Hit("after-write")
	marking := time.Now()
	if err := p.settle(ctx, b); err != nil {
		return err
	}
	failpoint.Hit("after-settle")
	took := time.Since(b.Began)
	p.observer.Settled(b, took, time.Since(marking))
	p.log.Debug().Int64("batch", b.Seq).Int("rows", len(b.IDs)).Int("bytes", b.Bytes).Str("sealed_by", string(b.SealedBy)).
		Stringer("end", b.End).Dur("took", took).Func(traced(b)).Msg("batch settled")
	return nil
}

// traced names the trace of a batch in the log.
func traced(b *batch.Batch) func(*zerolog.Event) {
	return func(e *zerolog.Event) {
		if b.Trace != "" {
			e.Str("trace_id", b.Trace)
		}
	}
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
		u.Began = time.Now()
		deleted, err := p.fill(ctx, u)
		if err != nil {
			return err
		}
		w := &writing{p: p, b: &u.Batch, look: true, careful: true, wait: newBackoff()}
		p.observer.Planned(w.b)
		if err := w.mayLand(ctx); err != nil {
			return err
		}
		if err := w.withdraw(ctx, deleted); err != nil {
			return err
		}
		if err := w.run(ctx); err != nil {
			return err
		}
		if err := p.finish(ctx, w.b); err != nil {
			return err
		}
	}
	return nil
}

// fill reads the rows of a planned batch, and returns those that were deleted from the outbox meanwhile.
func (p *Pipeline) fill(ctx context.Context, u *ledger.Unfinished) (deleted []batch.Rejected, err error) {
	err = p.untilPassed(ctx, "the rows of a planned batch can't be seen yet", func(passed bool) (err error) {
		deleted, err = p.ledger.Fill(ctx, u)
		if err == nil && len(deleted) > 0 && !passed {
			err = fmt.Errorf("read the rows of batch %d: %w: %d of them", u.Seq, ledger.ErrNotVisible, len(deleted))
		}
		return err
	})
	return deleted, err
}

// settle marks the rows and advances the position. Rows that were deleted before they could be marked are delivered all the same.
func (p *Pipeline) settle(ctx context.Context, b *batch.Batch) error {
	return p.untilPassed(ctx, "a written batch can't be settled yet", func(passed bool) error {
		err := p.ledger.Settle(ctx, b)
		if !passed || !errors.Is(err, ledger.ErrNotVisible) {
			return err
		}
		deleted, askErr := p.ledger.Unseen(ctx, b.IDs)
		if askErr != nil {
			return askErr
		}
		// An id that comes twice in the batch was given again after its row was deleted. It is marked, and counted, once.
		all := len(b.IDs)
		ids := slices.Compact(slices.Sorted(slices.Values(without(b.IDs, deleted))))
		if len(ids) == all {
			return err
		}
		p.log.Warn().Int64("batch", b.Seq).Int("rows", all-len(ids)).
			Msg("events were deleted from the outbox before they could be marked; ClickHouse has them")
		b.IDs = ids
		if err := p.ledger.Replan(ctx, b); err != nil {
			return err
		}
		return p.ledger.Settle(ctx, b)
	})
}

// without returns ids but for some.
func without(ids, gone []int64) []int64 {
	set := setOf(gone)
	return slices.DeleteFunc(ids, func(id int64) bool { _, is := set[id]; return is })
}

func setOf(ids []int64) map[int64]struct{} {
	set := make(map[int64]struct{}, len(ids))
	for _, id := range ids {
		set[id] = struct{}{}
	}
	return set
}

func idsOf(rejected []batch.Rejected) []int64 {
	ids := make([]int64, len(rejected))
	for i, r := range rejected {
		ids[i] = r.ID
	}
	return ids
}

// untilPassed tries something that needs rows to be visible, which they may not be yet (FACTS P1). passed says that every transaction
// which was running when it first failed has ended: what can't be seen then is not there any more.
func (p *Pipeline) untilPassed(ctx context.Context, message string, try func(passed bool) error) error {
	var horizon uint64
	passed := false
	return p.again(ctx, message, ledger.Retriable, func() error {
		err := try(passed)
		if passed || !errors.Is(err, ledger.ErrNotVisible) {
			return err
		}
		var askErr error
		if horizon == 0 {
			horizon, askErr = p.ledger.Horizon(ctx)
		} else {
			passed, askErr = p.ledger.Passed(ctx, horizon)
		}
		return cmp.Or(askErr, err)
	})
}

// clock asks ClickHouse for its time and for the deadline of a batch that is about to be planned.
func (p *Pipeline) clock(ctx context.Context) (now, deadline time.Time, err error) {
	err = p.again(ctx, "ClickHouse can't be reached", sinkFailed, func() (err error) {
		now, deadline, err = p.sink.Clock(ctx)
		return err
	})
	return now, deadline, err
}

// again calls do until it succeeds, waiting in between, as long as its error is one that goes by itself.
func (p *Pipeline) again(ctx context.Context, message string, goes func(error) bool, do func() error) error {
	wait := newBackoff()
	defer p.release(wait)
	for {
		err := do()
		if err == nil || !goes(err) {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.hold(wait)
		p.pause(err, message)
		if !sleep(ctx, wait.NextBackOff()) {
			return context.Cause(ctx)
		}
	}
}

// HaltError says that going on is not safe, or not wanted.
type HaltError struct{ Reason, Hint string }

func (e *HaltError) Error() string { return e.Reason }

// poisoned is the end of a daemon that must not put events into quarantine.
func poisoned(rejected []batch.Rejected) error {
	return &HaltError{
		Reason: fmt.Sprintf("event %d can't be delivered: %s", rejected[0].ID, rejected[0].Reason),
		Hint: "mend the cause in ClickHouse, or start with CDC_ON_POISON=quarantine, which puts such events aside and goes on; " +
			"what is in the outbox is not lost",
	}
}

// sinkFailed says whether an error is the sink's. All of them are waited out: the operator may mend even a missing table.
func sinkFailed(err error) bool {
	var failure *batch.Failure
	return errors.As(err, &failure)
}
