package pipeline

import (
	"context"
	"sync"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/failpoint"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/outbox"
)

// idleInterval is how often a position at which nothing is open, gathered or in flight is stored and acknowledged. Storing it
// writes WAL itself, so it must not follow each keepalive; too seldom, and WAL of other tables is held for longer (FACTS P7).
const idleInterval = 3 * time.Second

// flow is the state of one stream. Two batches are under way at most: one is planned and written while the one before it is settled. Both
// steps keep the order, and each has one batch at a time. The next batch is gathered meanwhile. Nothing is read while a sealed batch
// waits: that bounds the memory, and is the backpressure.
type flow struct {
	p       *Pipeline
	source  source
	settled outbox.Position // rows at or before it are skipped
	builder *batch.Builder
	ready   []*batch.Batch // sealed, waiting; more than one only when a single chunk of events fills several
	asked   bool           // operators want rows delivered again
	served  bool           // the last thing that was launched was for them

	writing  *batch.Batch   // being planned and written; nil: none is
	planning bool           // it is not planned yet
	written  []*batch.Batch // waiting to be settled; more than one only for a moment
	settling *batch.Batch   // nil: none is
	hand     hand           // the rows of what is under way
	planned  chan struct{}  // the batch in writing is planned
	wrote    chan error     // the outcome of writing
	landed   chan error     // the outcome of settling
	flights  sync.WaitGroup

	afterFlight uint64 // may be acknowledged once every batch under way is settled
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
		planned: make(chan struct{}, 1), wrote: make(chan error, 1), landed: make(chan error, 1), stored: state.AckedLSN,
	}
	p.enter(Streaming, "")
	p.log.Info().Stringer("from", state.Settled).Msg("streaming")
	flight, cancel := context.WithCancel(work)
	defer cancel()
	err = f.run(ctx, flight)
	cancel()
	f.flights.Wait() // if the session has failed, its last calls return before another one begins
	source.Close()
	return err
}

func (f *flow) run(ctx, work context.Context) error {
	idle := time.NewTicker(idleInterval)
	defer idle.Stop()
	stop := ctx.Done()
	for {
		f.launch(ctx, work)
		f.p.observer.Progress(max(f.stored, f.idle), f.oldest())
		f.p.observer.InHand(f.gathered(), f.hand.writing, f.hand.settling)
		if stop == nil && !f.busy() { // drained
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
		case <-f.planned:
			f.planning = false
		case err := <-f.wrote:
			if err != nil {
				return err
			}
			f.wroteOne()
		case err := <-f.landed:
			if err != nil {
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

// due fires when the gathered rows must be sealed by age. While a batch is being written they may as well grow.
func (f *flow) due() (<-chan time.Time, func()) {
	if f.builder.Len() == 0 || f.writing != nil {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(f.builder.Due()))
	return timer.C, func() { timer.Stop() }
}

// busy says whether anything is under way.
func (f *flow) busy() bool { return f.writing != nil || len(f.written) > 0 || f.settling != nil }

// oldest is when the oldest row was committed that is received and not settled; 0: there is none, or it is not known.
func (f *flow) oldest() int64 {
	for _, batches := range [...][]*batch.Batch{{f.settling}, f.written, {f.writing}, f.ready} {
		for _, b := range batches {
			if b != nil && b.Oldest() != 0 {
				return b.Oldest()
			}
		}
	}
	return f.builder.Oldest()
}

// hand counts rows under way, as they were when their batch was launched: the batch itself belongs to another goroutine then.
type hand struct{ writing, settling int }

// gathered counts the rows that no batch under way has.
func (f *flow) gathered() int {
	n := f.builder.Len()
	for _, b := range f.ready {
		n += len(b.IDs)
	}
	return n
}

// launch sends the next batches off. A batch is settled once the next one is planned, if there is one: both lock the stream's row, and
// the plan is the shorter, so that it must not wait for the marks.
func (f *flow) launch(ctx, work context.Context) {
	asked := f.asked && ctx.Err() == nil && (!f.served || len(f.ready) == 0) // in turns, if there is much of both
	switch {
	case f.writing != nil:
	case f.settling != nil && len(f.written) > 0: // settling can't keep up, or waits
	case asked && f.busy(): // what operators ask for is delivered alone
	case asked:
		f.asked, f.served, f.writing = false, true, &batch.Batch{SealedBy: batch.ByRequest}
		f.flights.Go(func() { f.wrote <- f.p.redeliver(ctx, work) })
	case len(f.ready) > 0:
		b := f.ready[0]
		f.served, f.writing, f.planning, f.ready = false, b, true, f.ready[1:]
		f.hand.writing = len(b.IDs)
		f.flights.Go(func() { f.wrote <- f.p.write(work, b, true, func() { f.planned <- struct{}{} }) })
	}
	if f.settling == nil && len(f.written) > 0 && !f.planning {
		b := f.written[0]
		f.settling, f.written = b, f.written[1:]
		f.hand.settling = len(b.IDs)
		f.flights.Go(func() { f.landed <- f.p.finish(work, b) })
	}
}

// wroteOne passes the batch that was written on.
func (f *flow) wroteOne() {
	b := f.writing
	f.writing, f.planning, f.hand.writing = nil, false, 0
	select { // it was told before, and what is left there would keep the next batch from telling
	case <-f.planned:
	default:
	}
	if b.SealedBy != batch.ByRequest { // those are settled by now
		f.written = append(f.written, b)
		f.builder.Reuse(b)
	}
	f.rest()
}

// land acknowledges what the batch that was settled allows.
func (f *flow) land() {
	b := f.settling
	f.settling, f.hand.settling = nil, 0
	if b.AckLSN > 0 { // settling has stored it
		f.stored = max(f.stored, b.AckLSN)
		failpoint.Hit("before-ack")
		f.source.Ack(b.AckLSN)
		failpoint.Hit("after-ack")
	}
	f.rest()
}

// rest notes what may be acknowledged when nothing is under way any more.
func (f *flow) rest() {
	if f.afterFlight > 0 && !f.busy() {
		f.idle, f.afterFlight = max(f.idle, f.afterFlight), 0
	}
}

// take adds a chunk of events to what is gathered.
func (f *flow) take(chunk []replication.Event) {
	rows, skipped := 0, 0
	for i := range chunk {
		e := &chunk[i]
		if e.Kind != replication.Insert {
			f.settleable(e.LSN)
			continue
		}
		rows++
		if e.Row.Position.Compare(f.settled) <= 0 {
			skipped++ // sent again after a restart
			continue
		}
		if cause := f.builder.Before(&e.Row); cause != "" {
			f.seal(cause)
		}
		f.builder.AddCommitted(&e.Row, e.Committed)
		if cause := f.builder.Full(); cause != "" {
			f.seal(cause)
		}
	}
	f.p.observer.Received(rows, skipped)
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
	case f.busy():
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
