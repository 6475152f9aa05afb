package ledger_test

import (
	"testing"
	"time"
)

func TestHistory(t *testing.T) {
	t.Parallel()
	pool, _, l := leading(t)
	for i := range 3 {
		b := publish(t, pool, 10+i)
		if err := l.Plan(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			break // it stays on the way
		}
		if err := l.Settle(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	history, err := l.History(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	if len(history) != 2 || history[0].Rows != 12 || history[1].Rows != 11 || history[0].Seq != history[1].Seq+1 {
		t.Fatalf("%+v, want the newest two, newest first", history)
	}
	if history[0].SettledAt != nil || history[1].SettledAt == nil || history[1].SettledAt.Before(history[1].PlannedAt) {
		t.Errorf("%+v, want the newest on the way and the other one settled", history)
	}
	if b := history[1]; b.SealedBy != "rows" || b.Bytes <= 0 || time.Since(b.PlannedAt) > patience {
		t.Errorf("%+v", b)
	}
}

// TestBrief holds that what the status page reads every few seconds does not wait for the outbox.
func TestBrief(t *testing.T) {
	t.Parallel()
	pool, _, l := leading(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }() // whatever the outcome, or the pool could not be closed
	if _, err := tx.Exec(t.Context(), `LOCK TABLE event_outbox`); err != nil {
		t.Fatal(err)
	}
	s, err := l.Brief(t.Context())
	if err != nil || !s.Leader.Leads || s.Unprocessed.Problem != "not counted" || s.Unprocessed.Newest != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
