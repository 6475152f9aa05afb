// Package pipeline is the loop that delivers: replication → batch → ledger → sink → ledger → replication.
//
//	Next ──▶ batch.Add ──▶ Plan ──▶ Write ──▶ Settle ──▶ Ack
//	                      ledger    sink      ledger     replication
//
// Why in that order: a batch is planned before it is written, so that whoever comes after a crash knows which rows its token
// is bound to. It is settled (rows marked, position advanced) after it is written, so that a mark means delivered. It is
// acknowledged last, because that is the only step that can't be undone: the server may forget the WAL then.
//
// A session is: take the lead, finish what others planned, see that the slot is whole (or page the table, see backfill.go),
// stream. Recovery is forgetting: on any trouble with Postgres the session ends, and the next one starts from the ledger.
// Trouble with ClickHouse is waited out inside the session, with the batch in hand, since its outcome is what must be found out.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/replication"
)

// Sink writes batches. Its errors are *[batch.Failure].
type Sink interface {
	// Ready says whether batches can be written now, and warns of what weakens the promise.
	Ready(ctx context.Context) (warnings []string, err error)
	// Clock is the sink's time, and that after which it must refuse a batch that is planned now; zero: it can't.
	Clock(ctx context.Context) (now, deadline time.Time, err error)
	// Write stores the rows of a planned batch, all or none, once a token.
	Write(ctx context.Context, b *batch.Batch) error
	// Find returns which of the batch's rows are stored.
	Find(ctx context.Context, b *batch.Batch) (map[int64]struct{}, error)
	// SeesAll says whether Find surely sees what is stored.
	SeesAll(ctx context.Context) (bool, error)
	// Window is how many writes a token is remembered for; 0: tokens do nothing.
	Window(ctx context.Context) (int, error)
}

// State is what the pipeline is doing, in one word.
type State string

// The states.
const (
	Starting   State = "starting"   // not connected yet
	Standby    State = "standby"    // another daemon leads
	Recovering State = "recovering" // finishing what an earlier daemon planned
	Backfill   State = "backfill"   // paging the table, because there is no complete slot
	Streaming  State = "streaming"
	Paused     State = "paused" // waiting for Postgres or ClickHouse, with a reason
	Stopped    State = "stopped"
)

// Peer is whom the pipeline talks to.
type Peer string

// The peers.
const (
	Postgres   Peer = "postgres"
	ClickHouse Peer = "clickhouse"
)

// Observer is told what happens. Its methods must not block and may be called from several goroutines.
type Observer interface {
	State(state State, reason string)
	// Leads tells that this daemon leads, for the epoch'th time that somebody does; 0: not any more. What Progress and Slot told before is
	// of another session, and maybe of another server.
	Leads(epoch int64)
	// Received tells how many rows the stream gave, and how many of them were skipped because they had been settled before.
	Received(rows, skipped int)
	// Progress tells that everything before the position delivered is settled, and when the oldest row was committed, in microseconds since
	// 1970 by Postgres's clock, that has been received and is not settled; 0: there is none.
	Progress(delivered uint64, oldest int64)
	// InHand tells how many rows of the stream are gathered for the next batch, are being planned and written, and are being marked.
	InHand(gathered, writing, settling int)
	// Planned tells of a batch that is taken up, its rows in hand, before it is written: its plan is stored, just now or by an earlier daemon.
	// The observer may name a trace in it.
	Planned(b *batch.Batch)
	// Attempt tells of an insert of the batch that was planned last.
	Attempt(outcome string, took time.Duration)
	// Found tells that rows need not be sent again: an attempt whose outcome was unknown had stored them.
	Found(rows int)
	// Settled tells of a batch that is wholly delivered, how long that took from when it was taken up, and how much of it the marks took.
	Settled(b *batch.Batch, took, settling time.Duration)
	// Slot tells what the slot is like, and between which moments of our clock that was.
	Slot(slot replication.SlotState, asked, answered time.Time)
	// Retry tells that something failed, which is tried again until it works.
	Retry(peer Peer)
	// Incident tells of a loss that was noticed; its rows and duration are not known yet.
	Incident(kind string)
	// Columns tells how many columns of the outbox the sink ignores.
	Columns(ignored int)
	Trimmed(rows int64, partitions int)
}

// Config says how to deliver.
type Config struct {
	Replication   replication.Config
	Limits        batch.Limits
	Holder        string        // how this daemon calls itself in the ledger; no other one may have the name
	TakeoverAfter time.Duration // age of a lease from which it is taken over
	DrainTimeout  time.Duration // how long a graceful stop may take to deliver what was received
	MaxSlotWAL    int64         // bytes of WAL that may wait for us before the slot is dropped to keep Postgres's disk; 0: no limit
	HaltOnPoison  bool          // end with a HaltError instead of putting an event into quarantine
	PoisonShare   float64       // of a batch's rows that may be put into quarantine, 0 to 1; a few always may
	Retention     time.Duration // age from which settled rows are removed from the outbox; 0: never
}

// Pipeline delivers one stream.
type Pipeline struct {
	config   Config
	ledger   books
	postgres cluster
	sink     Sink
	observer Observer
	log      zerolog.Logger

	requests chan struct{} // holds one if operators want rows delivered again
	paging   atomic.Bool   // a snapshot of the outbox is open
	waiting  atomic.Int32  // how many steps wait for a database

	doing   State // what the session does, apart from pauses; set only while no batch is under way
	because string
	lost    *replication.GapError // why the last session found the slot incomplete; nil: it did not
	late    time.Time             // on the sink's clock: until then an insert of a batch that is settled may still land; zero: none
	since   int                   // writes since
	refused int                   // rows put into quarantine since ClickHouse last took one
	carried []string              // columns of the outbox that are no part of every event and that the sink takes
	ignored []string              // those that it does not
}

// New makes a pipeline. The pool serves the ledger and plain SQL; it must allow at least four connections.
func New(config Config, pool *pgxpool.Pool, sink Sink, observer Observer, log zerolog.Logger) *Pipeline {
	r := config.Replication
	l := ledger.New(pool, r.Slot, r.Schema, r.Table).Only(r.Share)
	return newOn(config, l, &postgres{pool: pool, ledger: l, config: r}, sink, observer, log)
}

func newOn(config Config, ledger books, postgres cluster, sink Sink, observer Observer, log zerolog.Logger) *Pipeline {
	return &Pipeline{
		config: config, ledger: ledger, postgres: postgres, sink: sink, observer: observer, log: log, requests: make(chan struct{}, 1),
	}
}

// Run delivers until ctx is done, and then drains. It returns nil after a graceful stop, [ledger.ErrFenced] when another daemon
// took over, a [*HaltError] when going on would not be safe, and waits out everything else.
func (p *Pipeline) Run(ctx context.Context) error {
	defer p.observer.State(Stopped, "")
	wait := newBackoff()
	for {
		p.enter(Starting, "")
		began := time.Now()
		err := p.session(ctx)
		if halt := new(HaltError); errors.Is(err, ledger.ErrFenced) || errors.As(err, &halt) {
			return err
		}
		if ctx.Err() != nil {
			return drained(err)
		}
		if time.Since(began) > sessionWorked {
			wait.Reset()
		}
		p.pause(err, "delivery is interrupted")
		if !sleep(ctx, wait.NextBackOff()) {
			return nil
		}
	}
}

// sessionWorked is how long a session must have lasted for the next wait to be short again.
const sessionWorked = time.Minute

// errDrain says that a graceful stop took too long. What was planned is finished by the next daemon.
var errDrain = errors.New("not everything received could be delivered in time; the next start delivers it")

// drained is the outcome of a session that ended because it was asked to.
func drained(err error) error {
	if errors.Is(err, errDrain) {
		return err
	}
	return nil
}

// session takes the lead and delivers. It ends with an error, or with nil when ctx is done and all is delivered.
func (p *Pipeline) session(ctx context.Context) error {
	lead, err := p.lead(ctx)
	if err != nil {
		return err
	}
	defer lead.Close(ctx)
	if table := p.config.Replication.Schema + "." + p.config.Replication.Table; lead.State.Outbox != "" && lead.State.Outbox != table {
		return &ForeignSlotError{Slot: p.config.Replication.Slot, Why: "is for table " + lead.State.Outbox + ", not for " + table}
	}
	// Before anything watches the slot, which may end in dropping it.
	slot, err := p.postgres.Slot(ctx)
	if err != nil {
		return err
	}
	if err := p.ours(ctx, slot, lead.State.Phase); err != nil {
		return err
	}
	p.log.Info().Int64("epoch", lead.Epoch).Stringer("settled", lead.State.Settled).Msg("leading the stream")
	p.observer.Leads(lead.Epoch)
	defer p.observer.Leads(0)

	// What must still be done after ctx is done, draining, runs on work.
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stopTimer := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(p.config.DrainTimeout, func() { cancel(errDrain) })
		context.AfterFunc(work, func() { timer.Stop() })
	})
	defer stopTimer()

	watching := make(chan struct{})
	watched := &watch{}
	go func() {
		defer close(watching)
		cancel(p.beside(work, lead, watched))
	}()
	err = p.deliverAll(ctx, work, lead, watched)
	if cause := context.Cause(work); cause != nil {
		err = cause // the loss of the lead, or of the slot, shows as a cancelled call elsewhere
	}
	cancel(nil)
	<-watching
	if gap := replication.Gap(err); gap != nil {
		p.lost = gap
		if note := p.begin(context.WithoutCancel(ctx), gap); note != nil {
			return errors.Join(err, note)
		}
	}
	if err == nil || ctx.Err() != nil {
		if releaseErr := p.ledger.Release(context.WithoutCancel(ctx)); releaseErr != nil {
			p.log.Warn().Err(releaseErr).Msg("the lease could not be released; a standby waits until it is stale")
		}
	}
	return err
}

func (p *Pipeline) deliverAll(ctx, work context.Context, lead *ledger.Lead, watched *watch) error {
	// Until the stream runs there is nothing to drain: what is planned waits in the ledger for the next start.
	setup, cancel := context.WithCancelCause(work)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })()
	if err := p.ready(setup); err != nil {
		return err
	}
	if err := p.finishPlanned(setup); err != nil {
		return err
	}
	if err := p.compare(setup); err != nil {
		return err
	}
	if err := p.ensureSlot(setup, lead, watched); err != nil {
		return err
	}
	return p.stream(ctx, work)
}

// ready waits until ClickHouse can be written to. This daemon leads already, so that the slot is watched meanwhile.
func (p *Pipeline) ready(ctx context.Context) error {
	return p.again(ctx, "ClickHouse is not ready", sinkFailed, func() error {
		warnings, err := p.sink.Ready(ctx)
		for _, warning := range warnings {
			p.log.Warn().Msg(warning)
		}
		return err
	})
}

// lead waits until this daemon leads.
func (p *Pipeline) lead(ctx context.Context) (*ledger.Lead, error) {
	const poll = 500 * time.Millisecond
	told := false
	for {
		lead, standby, err := p.ledger.TryLead(ctx, p.config.Holder, p.config.TakeoverAfter)
		if err != nil || lead != nil {
			return lead, err
		}
		reason := fmt.Sprintf("%s leads (slot read by pid %d)", standby.Holder, standby.PID)
		p.enter(Standby, reason)
		if !told {
			p.log.Info().Str("leader", standby.Holder).Int32("slot_pid", standby.PID).Dur("takeover_after", p.config.TakeoverAfter).
				Msg("another daemon leads; standing by")
			told = true
		}
		if !sleep(ctx, poll) {
			return nil, ctx.Err()
		}
	}
}

// enter notes what the session does now.
func (p *Pipeline) enter(state State, reason string) {
	p.doing, p.because = state, reason
	p.observer.State(state, reason)
}

// hold notes that something waits, release that it does not any more. The state is what the session does again when nothing waits.
func (p *Pipeline) hold(wait *pacer) {
	if !wait.paused {
		wait.paused = true
		p.waiting.Add(1)
	}
}

func (p *Pipeline) release(wait *pacer) {
	if wait.paused && p.waiting.Add(-1) == 0 {
		p.observer.State(p.doing, p.because)
	}
	wait.paused = false
}

// pause tells why nothing is delivered at the moment.
func (p *Pipeline) pause(err error, message string) {
	peer := Postgres
	if sinkFailed(err) {
		peer = ClickHouse
	}
	p.observer.Retry(peer)
	hint := Hint(err)
	p.observer.State(Paused, Reason(err, hint))
	p.log.Error().Err(err).Str("hint", hint).Msg(message)
}

// pacer is the one way in which this package waits between tries: exponentially longer, with jitter.
type pacer struct {
	*backoff.ExponentialBackOff

	paused bool // it is counted as waiting; see Pipeline.hold
}

func newBackoff() *pacer {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 15*time.Second
	return &pacer{ExponentialBackOff: b}
}

// sleep waits for d; false: ctx was done first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
