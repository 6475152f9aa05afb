package pipeline

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/outbox"
)

// Who leads, and how the slot is healed, in the ledger in memory.

func (l *memoryLedger) TryLead(ctx context.Context, holder string, takeoverAfter time.Duration) (lead *ledger.Lead, standby *ledger.Standby, err error) {
	var newest int64
	err = l.call(ctx, "lead", func() error {
		w := l.w
		if l.epoch != 0 && l.epoch != w.epoch && w.holder != holder {
			return ledger.ErrFenced
		}
		read := w.slot != nil && w.slot.reader != nil
		if w.lock != nil || read {
			if w.holder == "" || time.Since(w.beat) <= takeoverAfter {
				standby = &ledger.Standby{Holder: w.holder, Age: time.Since(w.beat)}
				return nil
			}
			w.endSessions()
		}
		w.epoch++
		w.holder, w.beat = holder, time.Now()
		w.lock = &session{d: l.daemon}
		lead = &ledger.Lead{State: w.state, Epoch: w.epoch, Lock: w.lock}
		newest = slices.Max(append(slices.Collect(maps.Keys(w.batches)), 0))
		return nil
	})
	if err != nil {
		if lead != nil {
			_ = lead.Lock.Close(ctx)
		}
		return nil, nil, err
	}
	if lead != nil {
		l.epoch, l.seq = lead.Epoch, newest
	}
	return lead, standby, nil
}

func (l *memoryLedger) Heartbeat(ctx context.Context) error {
	return l.fenced(ctx, "beat", func() error {
		l.w.beat = time.Now()
		return nil
	})
}

func (l *memoryLedger) Release(ctx context.Context) error {
	return l.call(ctx, "release", func() error {
		if l.epoch == l.w.epoch {
			l.w.holder = ""
		}
		return nil
	})
}

func (l *memoryLedger) Open(ctx context.Context, kind, _ string) (opened bool, err error) {
	if kind == "clickhouse" {
		l.w.mu.Lock()
		l.w.wrong("ClickHouse lacks what it confirmed")
		l.w.mu.Unlock()
	}
	return true, l.call(ctx, "open", func() error { return nil })
}

func (l *memoryLedger) BeginBackfill(ctx context.Context) error {
	return l.fenced(ctx, "begin backfill", func() error {
		l.w.state.Phase, l.w.state.Outbox = ledger.PhaseBackfill, "public.event_outbox"
		return nil
	})
}

func (l *memoryLedger) EndBackfill(ctx context.Context, start uint64, s ledger.State) (*ledger.Incident, error) {
	return nil, l.fenced(ctx, "end backfill", func() error {
		state := &l.w.state
		state.Phase, state.Settled, state.AckedLSN = ledger.PhaseStream, outbox.Position{CommitLSN: start}, start
		state.SystemIdentifier, state.Publication, state.Timeline = s.SystemIdentifier, s.Publication, s.Timeline
		return nil
	})
}

func (l *memoryLedger) EndLoss(context.Context, uint64) (*ledger.Incident, error) { return nil, nil }

func (l *memoryLedger) EndClickHouse(context.Context) (*ledger.Incident, error) { return nil, nil }

func (l *memoryLedger) Losses(context.Context, time.Duration) (int, time.Duration, error) {
	return 0, 0, nil
}

func (l *memoryLedger) Alone(context.Context) error { return nil }

func (l *memoryLedger) Awaited(context.Context) (bool, error) { return false, nil }

func (l *memoryLedger) Unprintable(context.Context, int64) (int64, error) { return 0, errGone }

// session holds the lock of the stream.
type session struct {
	d     *daemon
	ended bool
}

func (s *session) Ping(ctx context.Context) error {
	return s.d.call(ctx, "check", func() error {
		if s.ended {
			return errGone
		}
		return nil
	})
}

func (s *session) Close(context.Context) error {
	s.d.w.mu.Lock()
	defer s.d.w.mu.Unlock()
	s.end()
	return nil
}

func (s *session) end() {
	s.ended = true
	if s.d.w.lock == s {
		s.d.w.lock = nil
	}
}
