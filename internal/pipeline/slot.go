package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

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
		if want := watched.publication.Load(); want != nil {
			if err := p.checkWhole(ctx, *want); err != nil {
				return err
			}
		}
		if beat%trimEvery == 0 {
			if err := p.ledger.Trim(ctx, keep); err != nil {
				return err
			}
		}
	}
	return context.Cause(ctx)
}

// checkWhole looks for the losses that a running stream does not tell of (FACTS P5, P9).
func (p *Pipeline) checkWhole(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	got, err := replication.FindPublication(ctx, p.pool, p.config.Replication)
	if err != nil && !errors.Is(err, replication.ErrNoPublication) {
		return err
	}
	if got != want {
		return &replication.GapError{Reason: "the publication was dropped or altered"}
	}
	slot, err := replication.Slot(ctx, p.pool, p.config.Replication.Slot)
	if err != nil {
		return err
	}
	if reason := slotGap(slot, math.MaxUint64); reason != "" { // what is acknowledged changes meanwhile
		return &replication.GapError{Reason: reason}
	}
	p.observer.Slot(slot.RetainedWAL)
	return nil
}

// ensureSlot sees that the slot holds every event that is not settled, and has it created anew if not.
func (p *Pipeline) ensureSlot(ctx context.Context, lead *ledger.Lead, watched *watch) error {
	slot, err := replication.Slot(ctx, p.pool, p.config.Replication.Slot)
	if err != nil {
		return err
	}
	now := lead.State
	if err := p.pool.QueryRow(ctx, `SELECT system_identifier::text FROM pg_control_system()`).Scan(&now.SystemIdentifier); err != nil {
		return fmt.Errorf("ask Postgres for its system identifier: %w", err)
	}
	if err := p.ours(ctx, slot, now.Phase); err != nil {
		return err
	}
	publication, err := replication.EnsurePublication(ctx, p.pool, p.config.Replication)
	if err != nil {
		return err
	}
	now.Publication = publication
	if reason := gap(lead.State, now, slot); reason != "" {
		if err := p.backfill(ctx, cmp.Or(p.lost, reason), slot, now); err != nil {
			return err
		}
	}
	p.lost = ""
	watched.publication.Store(&publication)
	return nil
}

// ours refuses to touch a slot that belongs to somebody else.
func (p *Pipeline) ours(ctx context.Context, slot replication.SlotState, phase ledger.Phase) error {
	if !slot.Exists {
		return nil
	}
	var database string
	if err := p.pool.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return fmt.Errorf("ask Postgres for the database: %w", err)
	}
	name := p.config.Replication.Slot
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

// slotGap says why a slot does not have everything from what was acknowledged on; empty: it has.
func slotGap(slot replication.SlotState, acked uint64) string {
	switch {
	case !slot.Exists:
		return "the slot is missing"
	case slot.Lost != "":
		return "the slot is lost: " + slot.Lost
	case slot.ConfirmedFlush > acked:
		return "the slot was moved forward or created again by somebody else"
	}
	return ""
}

// gap says why the slot does not hold every event that is not settled; empty: it does.
func gap(was, now ledger.State, slot replication.SlotState) string {
	switch was.Phase {
	case ledger.PhaseNew:
		return "first start"
	case ledger.PhaseBackfill:
		return "an earlier backfill did not end"
	case ledger.PhaseStream:
	}
	if reason := slotGap(slot, was.AckedLSN); reason != "" {
		return reason
	}
	switch {
	case was.SystemIdentifier != now.SystemIdentifier:
		return "this is another Postgres cluster than before"
	case was.Publication != now.Publication:
		return "the publication was dropped or altered"
	}
	return ""
}
