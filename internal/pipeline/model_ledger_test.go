package pipeline

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/outbox"
)

// memoryLedger does what *[ledger.Ledger] promises, for one process. Its tests hold the real one to the same.
type memoryLedger struct{ *daemon }

func rowIDs(rows []outbox.Row) []int64 {
	ids := make([]int64, len(rows))
	for i := range rows {
		ids[i] = rows[i].ID
	}
	return ids
}

// fenced runs a statement that asks for the epoch.
func (l *memoryLedger) fenced(ctx context.Context, name string, effect func() error) error {
	return l.call(ctx, name, func() error {
		if l.epoch != l.w.epoch {
			return ledger.ErrFenced
		}
		return effect()
	})
}

func (l *memoryLedger) State(ctx context.Context) (state ledger.State, err error) {
	err = l.call(ctx, "state", func() error {
		state = l.w.state
		return nil
	})
	return state, err
}

func (l *memoryLedger) Allow(ctx context.Context, lsn uint64) error {
	return l.fenced(ctx, "allow", func() error {
		l.w.state.AckedLSN = max(l.w.state.AckedLSN, lsn)
		return nil
	})
}

func (l *memoryLedger) Plan(ctx context.Context, b *batch.Batch) error {
	err := l.fenced(ctx, "plan", func() error {
		b.Seq, b.Token = l.seq+1, l.w.newToken()
		if l.w.batches[b.Seq] != nil {
			return fmt.Errorf("batch %d is there", b.Seq)
		}
		if len(b.IDs) > 0 {
			l.w.batches[b.Seq] = &planned{open: true}
			l.w.bind(b)
		}
		l.w.reject(b.Rejected)
		return nil
	})
	if err == nil {
		l.seq = b.Seq
	}
	return err
}

func (w *world) newToken() string {
	w.nextName++
	return fmt.Sprintf("token %d", w.nextName)
}

// bind stores a batch as it is.
func (w *world) bind(b *batch.Batch) {
	p := w.batches[b.Seq]
	p.Batch = *b
	p.Rows, p.Rest, p.IDs, p.Rejected = nil, nil, slices.Clone(b.IDs), nil
	p.rows, p.rest = slices.Clone(b.Rows), slices.Clone(b.Rest)
	w.say("batch %d: %s for %v, then %v, deadline %s", b.Seq, b.Token, rowIDs(b.Rows), rowIDs(b.Rest), b.Deadline.Format("05"))
	if len(b.Rows) == 0 {
		return
	}
	if bound, known := w.bound[b.Token]; known && !slices.Equal(bound, rowIDs(b.Rows)) {
		w.wrong("the token of %v is bound to %v", bound, rowIDs(b.Rows))
	}
	w.bound[b.Token] = rowIDs(b.Rows)
}

func (w *world) reject(rejected []batch.Rejected) {
	for _, r := range rejected {
		e := w.event(r.ID)
		if e.marked {
			continue
		}
		e.quarantined, e.requested = true, false
		if e.stored > 0 {
			w.wrong("row %d is put into quarantine, and in ClickHouse", e.ID)
		}
	}
}

func (l *memoryLedger) Replan(ctx context.Context, b *batch.Batch) error {
	return l.fenced(ctx, "plan anew", func() error {
		p := l.w.batches[b.Seq]
		if p == nil || !p.open {
			return fmt.Errorf("plan batch %d anew: it is not in the ledger as planned", b.Seq)
		}
		if b.Token == "" {
			b.Token = l.w.newToken()
		}
		l.w.bind(b)
		l.w.reject(b.Rejected)
		return nil
	})
}

func (l *memoryLedger) Settle(ctx context.Context, b *batch.Batch) error {
	return l.fenced(ctx, "settle", func() error {
		w := l.w
		p := w.batches[b.Seq]
		if p == nil && len(b.IDs) > 0 {
			return fmt.Errorf("settle batch %d: it is not in the ledger", b.Seq)
		}
		for _, id := range b.IDs {
			if !w.event(id).seen() && w.weak != partialMarks {
				return fmt.Errorf("settle batch %d: %w", b.Seq, ledger.ErrNotVisible)
			}
		}
		for _, id := range b.IDs {
			e := w.event(id)
			if !e.seen() {
				continue
			}
			e.marked, e.quarantined, e.requested = true, false, false
			if e.stored == 0 {
				w.wrong("row %d is settled and not in ClickHouse", id)
			}
		}
		if w.state.Settled.Compare(b.End) < 0 {
			w.state.Settled = b.End
		}
		w.state.AckedLSN = max(w.state.AckedLSN, b.AckLSN)
		if p != nil {
			p.open = false
		}
		return nil
	})
}

func (l *memoryLedger) Planned(ctx context.Context) (unfinished []*ledger.Unfinished, err error) {
	err = l.call(ctx, "planned", func() error {
		for _, seq := range slices.Sorted(maps.Keys(l.w.batches)) {
			if p := l.w.batches[seq]; p.open {
				u := p.Unfinished
				u.IDs, u.SealedBy = slices.Clone(p.IDs), batch.ByRecovery
				unfinished = append(unfinished, &u)
			}
		}
		return nil
	})
	return unfinished, err
}

func (l *memoryLedger) Fill(ctx context.Context, u *ledger.Unfinished) (unseen []batch.Rejected, err error) {
	err = l.call(ctx, "fill", func() error {
		p := l.w.batches[u.Seq]
		u.Rows, u.Rest = nil, nil
		for i, row := range slices.Concat(p.rows, p.rest) {
			switch {
			case !l.w.event(row.ID).seen():
				unseen = append(unseen, batch.Rejected{ID: row.ID, Position: row.Position, Reason: "unseen"})
			case i < len(p.rows):
				u.Rows = append(u.Rows, row)
			default:
				u.Rest = append(u.Rest, row)
			}
		}
		return nil
	})
	return unseen, err
}

func (l *memoryLedger) Unseen(ctx context.Context, ids []int64) (unseen []int64, err error) {
	err = l.call(ctx, "unseen", func() error {
		for _, id := range ids {
			if !l.w.event(id).seen() {
				unseen = append(unseen, id)
			}
		}
		return nil
	})
	return unseen, err
}

// Horizon is the number of transactions that have begun.
func (l *memoryLedger) Horizon(ctx context.Context) (xid uint64, err error) {
	err = l.call(ctx, "horizon", func() error {
		xid = uint64(len(l.w.events))
		return nil
	})
	return xid, err
}

func (l *memoryLedger) Passed(ctx context.Context, horizon uint64) (passed bool, err error) {
	err = l.call(ctx, "passed", func() error {
		passed = !slices.ContainsFunc(l.w.events[:horizon], func(e *event) bool { return !e.seen() })
		return nil
	})
	return passed, err
}

func (l *memoryLedger) Delivered(ctx context.Context, n int, backfilled bool) (rows []outbox.Row, err error) {
	err = l.call(ctx, "delivered", func() error {
		for _, seq := range slices.Backward(slices.Sorted(maps.Keys(l.w.batches))) {
			p := l.w.batches[seq]
			if len(rows) < n && !p.open && len(p.IDs) > 0 && !p.Requested() && (backfilled || p.End.Ordinal > 0) {
				rows = append(rows, outbox.Row{ID: slices.Min(p.IDs)})
			}
		}
		return nil
	})
	return rows, err
}

func (l *memoryLedger) HasRequests(ctx context.Context) (has bool, err error) {
	err = l.call(ctx, "beat", func() error {
		has = slices.ContainsFunc(l.w.events, func(e *event) bool { return e.requested })
		return nil
	})
	return has, err
}

func (l *memoryLedger) Requested(ctx context.Context, at outbox.Position, limit, _ int) (rows []outbox.Row, err error) {
	err = l.call(ctx, "requested", func() error {
		for _, e := range l.w.events {
			if e.requested && !e.marked && !e.quarantined {
				e.requested = false
			}
			if e.requested && len(rows) < limit {
				row := e.Row
				row.Position = at
				rows = append(rows, row)
			}
		}
		return nil
	})
	return rows, err
}

func (l *memoryLedger) ForgetRequests(context.Context) error { return nil }

func (l *memoryLedger) Trim(context.Context, int) error { return nil }

func (l *memoryLedger) TrimOutbox(context.Context, time.Duration, int64, int) (ledger.Trimmed, error) {
	return ledger.Trimmed{}, nil
}

func (l *memoryLedger) PastPartitions(context.Context) ([]string, bool, error) {
	return nil, false, nil
}

func (l *memoryLedger) DropPartition(context.Context, string, time.Duration) (bool, error) {
	return false, nil
}
