package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/replication"
)

// watch is what the watcher compares the database with; set once the slot is known to be whole.
type watch struct {
	publication atomic.Pointer[string]
}

// watch renews the lease and looks whether the lead, the slot and the publication are still what they were. It returns when
// ctx is done or one of them is not.
func (p *Pipeline) watch(ctx context.Context, lead *ledger.Lead, watched *watch) error {
	// Several beats fit into the lease, so that one that is lost or late does not cost the lead.
	interval := min(p.config.TakeoverAfter/4, time.Second)
	const trimEvery, keep = 100, 5000 // beats; batches of history
	for beat := 1; sleep(ctx, interval); beat++ {
		if err := lead.Check(ctx); err != nil {
			return err
		}
		if err := p.ledger.Heartbeat(ctx); err != nil {
			return err
		}
		if err := p.checkSlot(ctx, watched.publication.Load()); err != nil {
			return err
		}
		if p.paging.Load() {
			if err := p.giveWay(ctx); err != nil {
				return err
			}
		}
		if beat%trimEvery == 0 {
			if err := p.ledger.Trim(ctx, keep); err != nil {
				return err
			}
		}
		has, err := p.ledger.HasRequests(ctx)
		if err != nil {
			return err
		}
		if has {
			p.ask()
		}
	}
	return context.Cause(ctx)
}

// giveWay ends the session when somebody waits to alter the outbox: the snapshot of a backfill keeps them waiting, and everybody who
// writes events waits behind them. What was settled is settled; the next session goes on with the rest.
func (p *Pipeline) giveWay(ctx context.Context) error {
	waits, err := p.ledger.Awaited(ctx)
	if err == nil && waits {
		err = errors.New("somebody waits to alter the outbox; the backfill lets them, and goes on then")
	}
	return err
}

// checkSlot looks for the losses that a running stream does not tell of (FACTS P5, P9), and whether too much WAL waits for us. want is
// the identity of the publication; nil while the slot is not known to be whole.
func (p *Pipeline) checkSlot(ctx context.Context, want *string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	asked := time.Now()
	slot, err := p.postgres.Slot(ctx)
	if err != nil {
		return err
	}
	p.observer.Slot(slot, asked, time.Now())
	if limit := p.config.MaxSlotWAL; limit > 0 && slot.WaitingWAL > limit {
		return &replication.GapError{
			Kind: replication.DiskGuard, Reason: fmt.Sprintf("%d bytes of WAL wait for this daemon, more than CDC_MAX_SLOT_WAL allows", slot.WaitingWAL),
		}
	}
	if want == nil {
		return nil
	}
	got, err := p.postgres.FindPublication(ctx)
	if err != nil && !errors.Is(err, replication.ErrNoPublication) {
		return err
	}
	if got != *want {
		return publicationGap()
	}
	if gap := slotGap(slot, math.MaxUint64); gap != nil { // what is acknowledged changes meanwhile
		return gap
	}
	return nil
}

// dropSlot gives the slot up, so that Postgres can remove the WAL it holds. The session that read it may still be ending.
func (p *Pipeline) dropSlot(ctx context.Context) error {
	inUse := func(err error) bool {
		refused, is := errors.AsType[*pgconn.PgError](err)
		return is && refused.Code == "55006"
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return p.again(ctx, "the slot can't be dropped yet", inUse, func() error { return p.postgres.DropSlot(ctx) })
}

// ensureSlot sees that the slot holds every event that is not settled, and has it created anew if not.
func (p *Pipeline) ensureSlot(ctx context.Context, lead *ledger.Lead, watched *watch) error {
	slot, err := p.postgres.Slot(ctx)
	if err != nil {
		return err
	}
	now := lead.State
	if now.SystemIdentifier, now.Timeline, err = p.postgres.Identity(ctx); err != nil {
		return err
	}
	if err := p.ours(ctx, slot, now.Phase); err != nil {
		return err
	}
	publication, err := p.postgres.EnsurePublication(ctx)
	if err != nil {
		return err
	}
	if err := p.ledger.Alone(ctx); err != nil {
		return err
	}
	now.Publication = publication
	if err := p.heal(ctx, lead.State, now, slot); err != nil {
		return err
	}
	p.lost = nil
	watched.publication.Store(&publication)
	return nil
}

// heal reads from the table what the slot does not hold, if there is anything.
func (p *Pipeline) heal(ctx context.Context, was, now ledger.State, slot replication.SlotState) error {
	reason := "first start"
	switch was.Phase {
	case ledger.PhaseNew:
	case ledger.PhaseBackfill: // its incident is open, unless it was the first start
		reason = "an earlier backfill did not end"
		if p.lost != nil {
			reason = p.lost.Reason
		}
	case ledger.PhaseStream:
		gap := gap(was, now, slot)
		if gap == nil {
			_, err := p.ledger.EndLoss(ctx, was.AckedLSN) // of a daemon that died before it could
			return err
		}
		if err := p.begin(ctx, gap); err != nil {
			return err
		}
		reason = gap.Reason
	}
	if err := p.backOff(ctx); err != nil {
		return err
	}
	if err := p.otherHistory(ctx, was, now); err != nil {
		return err
	}
	return p.backfill(ctx, reason, slot, now)
}

// otherHistory waits, after a failover or a restore, until no insert can land any more whose plan the ledger has lost with it.
func (p *Pipeline) otherHistory(ctx context.Context, was, now ledger.State) error {
	if was.SystemIdentifier == "" || was.SystemIdentifier == now.SystemIdentifier && was.Timeline == now.Timeline {
		return nil
	}
	_, deadline, err := p.clock(ctx)
	if err != nil {
		return err
	}
	until, err := p.lands(ctx, deadline)
	if err != nil {
		return err
	}
	return p.outlive(ctx, until)
}

// begin notes that the slot is no longer complete.
func (p *Pipeline) begin(ctx context.Context, gap *replication.GapError) error {
	p.log.Error().Str("kind", gap.Kind).Str("reason", gap.Reason).
		Msg("the slot does not hold every event any more; no event is lost: they are read from the table")
	opened, err := p.ledger.Open(ctx, gap.Kind, gap.Reason)
	if err != nil {
		return err
	}
	if opened {
		p.observer.Incident(gap.Kind)
	}
	if err := p.ledger.BeginBackfill(ctx); err != nil {
		return err
	}
	if gap.Kind == replication.DiskGuard {
		p.log.Error().Msg("dropping the slot, so that Postgres's disk does not fill up; it is created anew when ClickHouse takes events again")
		return p.dropSlot(ctx)
	}
	return nil
}

// backOff waits before the slot is created anew, if it was lost again and again: paging the table has a price, too.
func (p *Pipeline) backOff(ctx context.Context) error {
	const few, first, most = 3, 5 * time.Second, 5 * time.Minute
	losses, since, err := p.ledger.Losses(ctx, time.Hour)
	if err != nil || losses < few {
		return err
	}
	wait := min(first<<min(losses-few, 10), most) - since
	if wait <= 0 {
		return nil
	}
	reason := fmt.Sprintf("the slot was lost %d times within an hour; waiting %s before it is created anew", losses+1, wait.Round(time.Second))
	p.enter(Paused, reason)
	p.log.Error().Str("hint", "look at the incidents (cdc status); raise max_slot_wal_keep_size or CDC_MAX_SLOT_WAL, or find who drops the slot").Msg(reason)
	if !sleep(ctx, wait) {
		return context.Cause(ctx)
	}
	return nil
}

// compare looks whether ClickHouse still has what it confirmed last. It does not if it was restored to an earlier time, or created anew.
func (p *Pipeline) compare(ctx context.Context) error {
	const batches = 100
	rows, err := p.ledger.Delivered(ctx, batches, false)
	if err != nil || len(rows) == 0 {
		return err
	}
	all, err := p.there(ctx, &batch.Batch{Rows: rows})
	if err != nil {
		return err
	}
	if all {
		_, err := p.ledger.EndClickHouse(ctx)
		return err
	}
	const reason = "ClickHouse lacks events that it had confirmed: it was restored to an earlier time, or has lost data"
	opened, err := p.ledger.Open(ctx, "clickhouse", reason)
	if err != nil {
		return err
	}
	if opened {
		p.observer.Incident("clickhouse")
	}
	p.log.Error().Str("hint", "run `cdc audit --repair`, which delivers what the outbox still has").Msg(reason)
	return nil
}

// ours refuses to touch a slot that belongs to somebody else.
func (p *Pipeline) ours(ctx context.Context, slot replication.SlotState, phase ledger.Phase) error {
	if !slot.Exists {
		return nil
	}
	database, err := p.postgres.Database(ctx)
	if err != nil {
		return err
	}
	return Foreign(p.config.Replication.Slot, slot, database, phase)
}

// Foreign says why an existing slot is not the one of a stream in a database, as a *[ForeignSlotError]; nil: it is.
func Foreign(name string, slot replication.SlotState, database string, phase ledger.Phase) error {
	switch {
	case slot.Database != database:
		return &ForeignSlotError{Slot: name, Why: "belongs to database " + slot.Database}
	case slot.Plugin != "pgoutput":
		return &ForeignSlotError{Slot: name, Why: "uses the output plugin " + slot.Plugin}
	case phase == ledger.PhaseNew:
		return &ForeignSlotError{Slot: name, Why: "was not created by sluicebox"}
	}
	return nil
}

// ForeignSlotError says that a slot of the configured name is not ours to use.
type ForeignSlotError struct{ Slot, Why string }

func (e *ForeignSlotError) Error() string {
	return fmt.Sprintf("replication slot %s exists and %s", e.Slot, e.Why)
}

func publicationGap() *replication.GapError {
	return &replication.GapError{Kind: replication.Publication, Reason: "the publication was dropped or altered"}
}

// slotGap says why a slot does not have everything from what was acknowledged on; nil: it has.
func slotGap(slot replication.SlotState, acked uint64) *replication.GapError {
	switch {
	case !slot.Exists:
		return &replication.GapError{Kind: replication.SlotMissing, Reason: "the slot is missing"}
	case slot.Lost != "":
		return &replication.GapError{Kind: replication.SlotLost, Reason: "the slot is lost: " + slot.Lost}
	case slot.ConfirmedFlush > acked:
		return &replication.GapError{Kind: replication.SlotMoved, Reason: "the slot was moved forward or created again by somebody else"}
	}
	return nil
}

// gap says why the slot does not hold every event that is not settled; nil: it does.
func gap(was, now ledger.State, slot replication.SlotState) *replication.GapError {
	switch {
	case was.SystemIdentifier != now.SystemIdentifier:
		return &replication.GapError{Kind: replication.OtherCluster, Reason: "this is another Postgres cluster than before"}
	case was.Timeline != now.Timeline: // what followed the settled position may be another history
		return &replication.GapError{
			Kind:   replication.OtherTimeline,
			Reason: fmt.Sprintf("Postgres was promoted or restored: timeline %d, before %d", now.Timeline, was.Timeline),
		}
	}
	if gap := slotGap(slot, was.AckedLSN); gap != nil {
		return gap
	}
	if was.Publication != now.Publication {
		return publicationGap()
	}
	return nil
}
