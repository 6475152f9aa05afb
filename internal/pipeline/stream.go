package pipeline

import (
	"context"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/failpoint"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/outbox"
)

// idleInterval is how often a position at which nothing is open, gathered or in flight is stored and acknowledged. Storing it
// writes WAL itself, so it must not follow each keepalive; too seldom, and WAL of other tables is held for longer (FACTS P7).
const idleInterval = 3 * time.Second

// flow is the state of one stream. One batch is in flight, so that order is kept; the next one is gathered meanwhile. Nothing is
// read while a sealed batch waits: that bounds the memory, and is the backpressure.
type flow struct {
	p       *Pipeline
	source  source
	settled outbox.Position // rows at or before it are skipped
	builder *batch.Builder
	ready   []*batch.Batch // sealed, waiting; more than one only when a single chunk of events fills several
	flying  *batch.Batch   // nil: none is in flight
	asked   bool           // operators want rows delivered again
	served  bool           // the last flight was for them
	landed  chan error     // the outcome of the one in flight

	afterFlight uint64 // may be acknowledged once the batch in flight is settled
	idle        uint64 // may be acknowledged, once stored
	stored      uint64 // the highest position that is stored as acknowledged
}

// stream reads the slot from the settled position on and delivers, until ctx is done; then it delivers what was received.
func (p *Pipeline) stream(ctx, work context.Context) error {
	state, err := p.ledger.State(work)
	if err != nil {
		return err
	}
	// From our own position, never from the slot's (FACTS P3). If all of the settled commit is settled, AckedLSN is past it.
	source, err := p.postgres.Start(work, max(state.Settled.CommitLSN, state.AckedLSN), state.AckedLSN)
	if err != nil {
		return err
	}
	// Now that the slot is ours nobody can move it any more; until now somebody could, or could have replaced it, and Postgres
	// starts such a slot later than asked without a word (FACTS P4).
	slot, err := p.postgres.Slot(work)
	if gap := slotGap(slot, state.AckedLSN); err == nil && gap != nil {
		err = gap
	}
	if err != nil {
		source.Close()
		return err
	}
	f := &flow{
		p: p, source: source, settled: state.Settled, builder: batch.NewBuilder(p.config.Limits),
		landed: make(chan error, 1), stored: state.AckedLSN,
	}
	p.enter(Streaming, "")
	p.log.Info().Stringer("from", state.Settled).Msg("streaming")
	flight, cancel := context.WithCancel(work)
	defer cancel()
	err = f.run(ctx, flight)
	cancel()
	if f.flying != nil { // the session has failed; wait for its last call to return before another session begins
		if lost := <-f.landed; err == nil {
			err = lost
		}
	}
	source.Close()
	return err
}

func (f *flow) run(ctx, work context.Context) error {
	idle := time.NewTicker(idleInterval)
	defer idle.Stop()
	stop := ctx.Done()
	for {
		f.launch(ctx, work)
		if stop == nil && f.flying == nil { // drained
			return f.storeIdle(work)
		}
		var events <-chan []replication.Event
		if len(f.ready) == 0 && stop != nil {
			events = f.source.Events()
		}
		due, stopDue := f.due()
		select {
		case chunk := <-events:
			f.take(chunk)
			f.source.Reuse(chunk)
		case <-f.p.requests:
			f.asked = true
		case err := <-f.landed:
			if err != nil {
				f.flying = nil
				return err
			}
			f.land()
		case <-due:
			f.seal(batch.ByDelay)
		case <-idle.C:
			if err := f.storeIdle(work); err != nil {
				return err
			}
		case <-f.source.Done():
			return f.source.Err() // what was read and not taken is sent again
		case <-stop:
			stop = nil
			f.p.log.Info().Int("rows", f.builder.Len()).Msg("stopping: delivering what was received")
			if f.builder.Len() > 0 {
				f.seal(batch.ByDrain)
			}
		case <-work.Done():
			return context.Cause(work)
		}
		stopDue()
	}
}

// due fires when the gathered rows must be sealed by age. While a batch is in flight they may as well grow.
func (f *flow) due() (<-chan time.Time, func()) {
	if f.builder.Len() == 0 || f.flying != nil {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(f.builder.Due()))
	return timer.C, func() { timer.Stop() }
}

// launch sends the next sealed batch off, unless one is in flight.
func (f *flow) launch(ctx, work context.Context) {
	switch {
	case f.flying != nil:
	case f.asked && ctx.Err() == nil && (!f.served || len(f.ready) == 0): // in turns, if there is much of both
		f.asked, f.served, f.flying = false, true, &batch.Batch{} // of which nothing may be acknowledged
		go func() { f.landed <- f.p.redeliver(ctx, work) }()
	case len(f.ready) > 0:
		b := f.ready[0]
		f.served, f.flying, f.ready = false, b, f.ready[1:]
		go func() { f.landed <- f.p.deliver(work, b, true) }()
	}
}

// land acknowledges what the batch in flight has settled.
func (f *flow) land() {
	b := f.flying
	f.flying = nil
	if b.AckLSN > 0 { // settling has stored it
		f.stored = max(f.stored, b.AckLSN)
		failpoint.Hit("before-ack")
		f.source.Ack(b.AckLSN)
		failpoint.Hit("after-ack")
	}
	if f.afterFlight > 0 {
		f.idle, f.afterFlight = max(f.idle, f.afterFlight), 0
	}
}

// take adds a chunk of events to what is gathered.
func (f *flow) take(chunk []replication.Event) {
	rows := 0
	for i := range chunk {
		e := &chunk[i]
		if e.Kind != replication.Insert {
			f.settleable(e.LSN)
			continue
		}
		rows++
		if e.Row.Position.Compare(f.settled) <= 0 {
			continue // sent again after a restart
		}
		if cause := f.builder.Before(&e.Row); cause != "" {
			f.seal(cause)
		}
		f.builder.Add(&e.Row)
		if cause := f.builder.Full(); cause != "" {
			f.seal(cause)
		}
	}
	f.p.observer.Received(rows)
}

func (f *flow) seal(cause batch.Cause) {
	f.ready = append(f.ready, f.builder.Seal(cause))
}

// settleable notes that everything before lsn has been received: it may be acknowledged with the last batch that is not
// settled yet, or at once when there is none.
func (f *flow) settleable(lsn uint64) {
	switch {
	case f.builder.Len() > 0:
		f.builder.Commit(lsn)
	case len(f.ready) > 0:
		f.ready[len(f.ready)-1].AckLSN = lsn
	case f.flying != nil:
		f.afterFlight = lsn
	default:
		f.idle = lsn
	}
}

// storeIdle acknowledges a position at which nothing is open, after storing it: the check for a slot that somebody else moved
// compares the two (FACTS P4).
func (f *flow) storeIdle(work context.Context) error {
	if f.idle <= f.stored {
		return nil
	}
	if err := f.p.ledger.Allow(work, f.idle); err != nil {
		return err
	}
	f.stored = f.idle
	f.source.Ack(f.idle)
	return nil
}
