package ledger_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
	"github.com/sluicebox/sluicebox/outbox"
)

func TestMain(m *testing.M) { testdb.Main(m) }

const patience = time.Hour // a lease that never becomes stale in a test

func newPool(t *testing.T) (*pgxpool.Pool, string) {
	t.Helper()
	db := testdb.Migrated(t)
	pool := db.Postgres(t)
	exec(t, pool, `GRANT DELETE ON event_outbox TO sluicebox_daemon`) // for CDC_RETENTION
	return pool, db.Slot(t)
}

// newLedger is a ledger with the rights that a daemon has.
func newLedger(t *testing.T, pool *pgxpool.Pool, slot string) *ledger.Ledger {
	t.Helper()
	return ledger.New(as(t, pool, migrations.DaemonRole), slot, "public", "event_outbox")
}

// as is a pool of a role on the same database.
func as(t *testing.T, pool *pgxpool.Pool, role string) *pgxpool.Pool {
	t.Helper()
	config := pool.Config()
	config.ConnConfig.User = role
	own, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	return own
}

// leading is a ledger that leads, in a fresh database.
func leading(t *testing.T) (*pgxpool.Pool, string, *ledger.Ledger) {
	t.Helper()
	pool, slot := newPool(t)
	l := newLedger(t, pool, slot)
	lead(t, l, patience)
	return pool, slot, l
}

func lead(t *testing.T, l *ledger.Ledger, takeoverAfter time.Duration) *ledger.Lead {
	t.Helper()
	var lead *ledger.Lead
	until(t, "not leading", func() bool { // the server needs a moment to end the session of a leader that has ended
		var err error
		if lead, _, err = l.TryLead(t.Context(), "test", takeoverAfter); err != nil {
			t.Fatal(err)
		}
		return lead != nil
	})
	t.Cleanup(func() { lead.Close(t.Context()) })
	return lead
}

// publish writes n events and returns them as a batch.
func publish(t *testing.T, pool *pgxpool.Pool, n int) *batch.Batch {
	t.Helper()
	b := batch.NewBuilder(batch.Limits{Rows: n + 1, Bytes: 1 << 30})
	for i := range n {
		row := outbox.Row{
			Type: "t", Environment: "test", Context: []byte(`{"n": 1}`), MetadataVersion: 3, TraceContext: "trace",
			Position: outbox.Position{CommitLSN: uint64(5000 + 10*(i/3)), Ordinal: uint32(i%3 + 1)},
		}
		err := pool.QueryRow(t.Context(), `INSERT INTO event_outbox (event_type, environment, event_context, metadata_version, trace_context)
			VALUES ('t', 'test', '{"n": 1}', 3, 'trace') RETURNING id, event_date_time`).Scan(&row.ID, &row.Time)
		if err != nil {
			t.Fatal(err)
		}
		row.Time = row.Time.UTC()
		b.Add(&row)
	}
	b.Commit(9000)
	return b.Seal(batch.ByRows)
}

func processed(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM event_outbox WHERE processed AND processed_at IS NOT NULL`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSettle(t *testing.T) {
	t.Parallel()
	t.Run("marks the rows, advances the position and allows the acknowledgement, at once", func(t *testing.T) {
		t.Parallel()
		pool, _, l := leading(t)
		b := publish(t, pool, 10)
		if err := l.Plan(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a second time, as after a reply that was lost, changes nothing
			if err := l.Settle(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			state, err := l.State(t.Context())
			if err != nil || state.Settled != b.End || state.AckedLSN != 9000 || processed(t, pool) != 10 {
				t.Errorf("state %+v, %v, %d rows processed", state, err, processed(t, pool))
			}
		}
		planned, err := l.Planned(t.Context())
		if err != nil || len(planned) != 0 {
			t.Errorf("%d batches are left, %v", len(planned), err)
		}
	})
	t.Run("leaves a row alone that lies between those of the batch", func(t *testing.T) {
		t.Parallel()
		pool, _, l := leading(t)
		before := publish(t, pool, 5)
		between := publish(t, pool, 1)
		after := publish(t, pool, 4)
		b := &batch.Batch{IDs: slices.Concat(after.IDs, before.IDs), Rows: slices.Concat(before.Rows, after.Rows), End: after.End, AckLSN: 9000}
		if err := errors.Join(l.Plan(t.Context(), b), l.Settle(t.Context(), b)); err != nil {
			t.Fatal(err)
		}
		var alone bool
		err := pool.QueryRow(t.Context(), `SELECT NOT processed FROM event_outbox WHERE id = $1`, between.IDs[0]).Scan(&alone)
		if err != nil || !alone || processed(t, pool) != 9 {
			t.Errorf("%d rows are processed, the one between is not: %v, %v", processed(t, pool), alone, err)
		}
	})
	t.Run("does nothing at all when a row can't be seen", func(t *testing.T) {
		t.Parallel()
		pool, _, l := leading(t)
		b := publish(t, pool, 10)
		if err := l.Plan(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if _, err := pool.Exec(t.Context(), `DELETE FROM event_outbox WHERE id = $1`, b.IDs[4]); err != nil {
			t.Fatal(err)
		}
		err := l.Settle(t.Context(), b)
		if !errors.Is(err, ledger.ErrNotVisible) || !ledger.Retriable(err) {
			t.Errorf("error is %v, want ErrNotVisible", err)
		}
		state, stateErr := l.State(t.Context())
		if stateErr != nil || state.Settled != (outbox.Position{}) || state.AckedLSN != 0 || processed(t, pool) != 0 {
			t.Errorf("state %+v, %v, %d rows processed; want nothing changed", state, stateErr, processed(t, pool))
		}
	})
}

func TestSettleRefusedByAnotherConstraint(t *testing.T) {
	t.Parallel()
	pool, _, l := leading(t)
	b := publish(t, pool, 1)
	if err := l.Plan(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `ALTER TABLE event_outbox ADD CHECK (NOT processed) NOT VALID`); err != nil {
		t.Fatal(err)
	}
	if err := l.Settle(t.Context(), b); err == nil || errors.Is(err, ledger.ErrNotVisible) || ledger.Retriable(err) {
		t.Errorf("error is %v; it must not be taken for rows that can't be seen yet", err)
	}
}

func TestFence(t *testing.T) {
	t.Parallel()
	pool, slot := newPool(t)
	old := newLedger(t, pool, slot)
	first, _, err := old.TryLead(t.Context(), "old", patience)
	if err != nil || first == nil {
		t.Fatalf("not leading: %v", err)
	}
	first.Close(t.Context())
	planned := publish(t, pool, 3)
	if err := old.Plan(t.Context(), planned); err != nil {
		t.Fatal(err)
	}
	lead(t, newLedger(t, pool, slot), patience)

	for name, do := range map[string]func() error{
		"plan":           func() error { return old.Plan(t.Context(), publish(t, pool, 3)) },
		"plan anew":      func() error { return old.Replan(t.Context(), planned) },
		"settle":         func() error { return old.Settle(t.Context(), planned) },
		"heartbeat":      func() error { return old.Heartbeat(t.Context()) },
		"allow":          func() error { return old.Allow(t.Context(), 1<<40) },
		"begin backfill": func() error { return old.BeginBackfill(t.Context()) },
		"end backfill": func() error {
			_, err := old.EndBackfill(t.Context(), 1<<40, ledger.State{})
			return err
		},
		"lead again": func() error {
			_, _, err := old.TryLead(t.Context(), "old", patience)
			return err
		},
	} {
		if err := do(); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("%s: error is %v, want ErrFenced", name, err)
		}
	}
	if _, err := pool.Exec(t.Context(), `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, 1000000)`, slot); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Requested(t.Context(), outbox.Position{}, 10, 1000); err != nil {
		t.Fatal(err)
	}
	if err := old.ForgetRequests(t.Context()); err != nil {
		t.Fatal(err)
	}
	if has, err := old.HasRequests(t.Context()); err != nil || !has {
		t.Errorf("a fenced daemon has forgotten a request, %v", err)
	}
	state, err := old.State(t.Context())
	if err != nil || state.AckedLSN != 0 || processed(t, pool) != 0 {
		t.Errorf("a fenced daemon changed %+v, %v, %d rows", state, err, processed(t, pool))
	}
}

// TestRequested holds that requests which can't be met are forgotten, as many at a time as rows are read, and don't stand before those that can.
func TestRequested(t *testing.T) {
	t.Parallel()
	pool, slot, l := leading(t)
	publish(t, pool, 11)
	exec(t, pool, `UPDATE event_outbox SET processed = true WHERE id IN (SELECT id FROM event_outbox ORDER BY id DESC LIMIT 3)`)
	exec(t, pool, `INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, id FROM event_outbox UNION ALL VALUES ($1, 1000000)`, slot)
	rows, err := l.Requested(t.Context(), outbox.Position{}, 2, 1<<20)
	if err != nil || len(rows) == 0 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	fit := ids(t, pool, `SELECT id FROM event_outbox WHERE processed ORDER BY id`)
	if rows[0].ID != fit[0] {
		t.Errorf("the first row is %d, want %d", rows[0].ID, fit[0])
	}
	left := ids(t, pool, `SELECT id FROM sluicebox.redelivery ORDER BY id`)
	if diff := cmp.Diff(append(fit, 1000000), left); diff != "" {
		t.Errorf("requests that are left (-want +got):\n%s", diff)
	}
}

func TestUnfinished(t *testing.T) {
	t.Parallel()
	pool, _, l := leading(t)
	b := publish(t, pool, 100)
	b.Rows[0], b.Rows[50] = b.Rows[50], b.Rows[0] // ids are not in commit order
	b.IDs[0], b.IDs[50] = b.IDs[50], b.IDs[0]
	b.Deadline = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := l.Plan(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	check := func(want []outbox.Row) {
		t.Helper()
		planned, err := l.Planned(t.Context())
		if err != nil || len(planned) != 1 {
			t.Fatalf("%d planned, %v", len(planned), err)
		}
		u := planned[0]
		if unseen, err := l.Fill(t.Context(), u); err != nil || len(unseen) > 0 {
			t.Fatal(unseen, err)
		}
		if diff := cmp.Diff(want, u.Rows); diff != "" {
			t.Errorf("rows differ from those planned: %s", diff)
		}
		if u.Token != b.Token || u.Seq != b.Seq || u.End != b.End || u.AckLSN != b.AckLSN || len(u.IDs) != 100 || !u.Deadline.Equal(b.Deadline) {
			t.Errorf("read back as %+v", u)
		}
	}
	check(b.Rows)

	b.Rows = b.Rows[40:]
	b.Token = ""
	if err := l.Replan(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if b.Token == "" {
		t.Error("other rows got no new token")
	}
	check(b.Rows)
}

func TestPlan(t *testing.T) {
	t.Parallel()
	t.Run("puts rejected rows into quarantine, once", func(t *testing.T) {
		t.Parallel()
		pool, slot, l := leading(t)
		for _, b := range []*batch.Batch{publish(t, pool, 2), {}} { // with neighbours, and alone
			b.Rejected = []batch.Rejected{{ID: 77, Reason: "because", Position: outbox.Position{CommitLSN: 5, Ordinal: 6}}}
			b.End = outbox.Position{CommitLSN: 6000, Ordinal: 1}
			if err := l.Plan(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if err := l.Settle(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		var n int
		err := pool.QueryRow(t.Context(), `SELECT count(*) FROM sluicebox.quarantine WHERE slot = $1 AND id = 77 AND reason = 'because' AND lsn = '0/5' AND ordinal = 6`, slot).Scan(&n)
		if err != nil || n != 1 {
			t.Errorf("%d rows in quarantine, %v; want 1", n, err)
		}
	})
}

// TestPlanOfAnything has an id that no range of Postgres ends after, and reasons that no text of Postgres can hold.
func TestPlanOfAnything(t *testing.T) {
	t.Parallel()
	pool, _, l := leading(t)
	exec(t, pool, `INSERT INTO event_outbox (id, event_type, environment, event_context) OVERRIDING SYSTEM VALUE VALUES (9223372036854775807, 't', 'test', '{}')`)
	builder := batch.NewBuilder(batch.Limits{Rows: 10, Bytes: 1 << 30})
	builder.Add(&outbox.Row{
		ID: math.MaxInt64, Type: "t", Time: time.Now(), Environment: "e", Context: []byte("{}"), MetadataVersion: 1,
		Position: outbox.Position{CommitLSN: 10, Ordinal: 1},
	})
	if err := l.Plan(t.Context(), builder.Seal(batch.ByRows)); err != nil {
		t.Errorf("the last id: %v", err)
	}
	for _, reason := range []string{"Cannot parse uuid \xf0\x9f: x", "a\x00b"} {
		b := publish(t, pool, 1)
		b.Rejected = []batch.Rejected{{ID: b.IDs[0], Position: outbox.Position{CommitLSN: 10, Ordinal: 1}, Reason: reason}}
		if err := l.Plan(t.Context(), b); err != nil {
			t.Errorf("reason %q: %v", reason, err)
		}
	}
}

func TestTrim(t *testing.T) {
	t.Parallel()
	pool, slot, l := leading(t)
	for range 5 {
		b := publish(t, pool, 1)
		if err := errors.Join(l.Plan(t.Context(), b), l.Settle(t.Context(), b)); err != nil {
			t.Fatal(err)
		}
	}
	unsettled := publish(t, pool, 1)
	if err := l.Plan(t.Context(), unsettled); err != nil {
		t.Fatal(err)
	}
	left := func(keep int) (n int) {
		t.Helper()
		if err := l.Trim(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM sluicebox.batch WHERE slot = $1`, slot).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := left(3); n != 3 {
		t.Errorf("%d batches are left, want the newest 3", n)
	}
	if n := left(0); n != 1 {
		t.Errorf("%d batches are left, want the unsettled one", n)
	}
}

// holdPlans makes every plan wait after it has looked at the epoch, until it is released.
func holdPlans(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.Exec(t.Context(), `
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END';
CREATE TRIGGER hold BEFORE INSERT ON sluicebox.batch FOR EACH ROW EXECUTE FUNCTION hold();
SELECT pg_advisory_lock(1)`)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = conn.Hijack().Close(context.WithoutCancel(t.Context())) })
	t.Cleanup(release)
	return release
}

// until waits until done gives true.
func until(t *testing.T, problem string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal(problem)
		}
	}
}

func TestLead(t *testing.T) {
	t.Parallel()
	t.Run("of many at once, one leads and the others stand by", func(t *testing.T) {
		t.Parallel()
		pool, slot := newPool(t)
		leaders := make(chan *ledger.Lead, 10)
		var group sync.WaitGroup
		for range cap(leaders) {
			group.Go(func() {
				lead, standby, err := newLedger(t, pool, slot).TryLead(t.Context(), "one of many", patience)
				if err != nil || (lead == nil) == (standby == nil) {
					t.Errorf("lead %v, standby %v, %v", lead, standby, err)
				}
				if lead != nil {
					leaders <- lead
				}
			})
		}
		group.Wait()
		close(leaders)
		if len(leaders) != 1 {
			t.Errorf("%d lead, want 1", len(leaders))
		}
		for lead := range leaders {
			lead.Close(t.Context())
		}
	})
	t.Run("a leader that ended is succeeded at once", func(t *testing.T) {
		t.Parallel()
		pool, slot := newPool(t)
		first := lead(t, newLedger(t, pool, slot), patience)
		first.Close(t.Context())
		if second := lead(t, newLedger(t, pool, slot), patience); second.Epoch != first.Epoch+1 {
			t.Errorf("epoch %d after %d", second.Epoch, first.Epoch)
		}
	})
	t.Run("waits for a plan that is under way, and finds it", func(t *testing.T) {
		t.Parallel()
		pool, slot := newPool(t)
		old := newLedger(t, pool, slot)
		lead(t, old, patience)
		b := publish(t, pool, 3)
		release := holdPlans(t, pool)
		planned := make(chan error, 1)
		go func() { planned <- old.Plan(t.Context(), b) }()
		waiting := func(n int) bool {
			var is bool
			err := pool.QueryRow(t.Context(), `SELECT count(*) = $1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`, n).Scan(&is)
			if err != nil {
				t.Fatal(err)
			}
			return is
		}
		until(t, "the plan is not under way", func() bool { return waiting(1) })

		found := make(chan int, 1)
		go func() {
			defer close(found)
			next := newLedger(t, pool, slot)
			lead, standby, err := next.TryLead(t.Context(), "next", time.Nanosecond)
			if lead == nil {
				t.Errorf("not leading: %+v, %v", standby, err)
				return
			}
			defer lead.Close(t.Context())
			batches, err := next.Planned(t.Context())
			if err != nil {
				t.Error(err)
			}
			found <- len(batches)
		}()
		until(t, "nobody takes the lead", func() bool { return len(found) > 0 || waiting(2) })
		release()
		if err := <-planned; err != nil && !errors.Is(err, ledger.ErrFenced) {
			t.Error(err)
		}
		if n := <-found; n != 1 {
			t.Errorf("the successor found %d batches, want the one that was being planned", n)
		}
	})
	t.Run("a leader whose lease is stale is succeeded, and its session ended", func(t *testing.T) {
		t.Parallel()
		pool, slot := newPool(t)
		first := lead(t, newLedger(t, pool, slot), patience)
		lead(t, newLedger(t, pool, slot), time.Nanosecond)
		if err := first.Check(t.Context()); err == nil {
			t.Error("the session of the old leader is still there")
		}
	})
}
