package pipeline_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/sink"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// faulty is the real sink, with faults that no real server can be made to have at a chosen moment.
type faulty struct {
	pipeline.Sink

	mu         sync.Mutex
	deadlineIn time.Duration              // of a batch; 0: as the real sink has it
	before     func(b *batch.Batch) error // called instead of the next writes, as long as it is set; nil error: the write goes on
}

func (f *faulty) Write(ctx context.Context, b *batch.Batch) error {
	f.mu.Lock()
	before := f.before
	f.mu.Unlock()
	if before != nil {
		if err := before(b); err != nil {
			return err
		}
	}
	return f.Sink.Write(ctx, b)
}

func (f *faulty) set(before func(b *batch.Batch) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before = before
}

// Clock gives deadlines that are as far off as the test wants.
func (f *faulty) Clock(ctx context.Context) (now, deadline time.Time, err error) {
	now, deadline, err = f.Sink.Clock(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.deadlineIn > 0 {
		deadline = now.Add(f.deadlineIn).Truncate(time.Second)
	}
	return now, deadline, err
}

// recorder notes what an observer is told.
type recorder struct {
	mu        sync.Mutex
	states    []string // state: reason
	incidents []string
	ignored   int
}

func (r *recorder) State(state pipeline.State, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.states = append(r.states, string(state)+": "+reason)
}

func (r *recorder) Incident(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.incidents = append(r.incidents, kind)
}

func (r *recorder) Columns(ignored int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ignored = ignored
}

func (*recorder) Leads(int64)                                        {}
func (*recorder) Received(int, int)                                  {}
func (*recorder) Progress(uint64, int64)                             {}
func (*recorder) InHand(int, int, int)                               {}
func (*recorder) Planned(*batch.Batch)                               {}
func (*recorder) Attempt(string, time.Duration)                      {}
func (*recorder) Found(int)                                          {}
func (*recorder) Settled(*batch.Batch, time.Duration, time.Duration) {}
func (*recorder) Slot(replication.SlotState, time.Time, time.Time)   {}
func (*recorder) Retry(pipeline.Peer)                                {}
func (*recorder) Trimmed(int64, int)                                 {}

// said waits until the observer was told of a state with a reason.
func (r *recorder) said(t *testing.T, text string) {
	t.Helper()
	until(t, "never said: "+text, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.ContainsFunc(r.states, func(state string) bool { return strings.Contains(state, text) })
	})
}

// rig is a pipeline on real databases.
type rig struct {
	pg       *pgxpool.Pool
	ch       driver.Conn
	slot     string
	sink     *faulty
	config   pipeline.Config
	observer *recorder
	run      func() (stop func() error)
	done     chan error // how the last run ended, unless stop was told
}

func newRig(t *testing.T) *rig {
	t.Helper()
	db := testdb.Migrated(t)
	r := &rig{pg: db.Postgres(t), ch: db.ClickHouse(t), slot: db.Slot(t)}
	client, err := sink.New(func() string { return db.Warehouse }, "event_log", r.slot, sink.DefaultDeadline)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	r.sink = &faulty{Sink: client}
	r.observer = &recorder{}
	r.config = pipeline.Config{
		Replication: replication.Config{URL: db.Replication, Slot: r.slot, Publication: "sluicebox", Schema: "public", Table: "event_outbox"},
		// The delay is so long that the events of one transaction come in one batch, on a busy machine too.
		Limits:        batch.Limits{Rows: events, Bytes: 1 << 20, Delay: 5 * time.Second},
		Holder:        "test",
		TakeoverAfter: 30 * time.Second,
		DrainTimeout:  20 * time.Second,
	}
	poolConfig, err := pgxpool.ParseConfig(db.Daemon)
	if err != nil {
		t.Fatal(err)
	}
	poolConfig.MaxConns, poolConfig.AfterConnect = 6, ledger.Prepare
	r.run = func() func() error {
		pool, err := pgxpool.NewWithConfig(t.Context(), poolConfig)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		r.done = done
		log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
		go func() { done <- pipeline.New(r.config, pool, r.sink, r.observer, log).Run(ctx) }()
		stop := sync.OnceValue(func() error {
			cancel()
			err := <-done
			done <- err // for who asks again
			pool.Close()
			return err
		})
		t.Cleanup(func() { _ = stop() })
		return stop
	}
	return r
}

// events is how many events each test has.
const events = 100

func (r *rig) write(t *testing.T) {
	t.Helper()
	_, err := r.pg.Exec(t.Context(), `INSERT INTO event_outbox (event_type, environment, event_context) SELECT 't', 'test', '{}' FROM generate_series(1, $1)`, events)
	if err != nil {
		t.Fatal(err)
	}
}

// wait waits until a query gives true.
func (r *rig) wait(t *testing.T, query string) {
	t.Helper()
	until(t, "never true: "+query, func() bool {
		var ok bool
		if err := r.pg.QueryRow(t.Context(), query).Scan(&ok); err != nil {
			t.Fatal(err)
		}
		return ok
	})
}

// until waits until done gives true.
func until(t *testing.T, problem string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(3 * time.Minute)
	for !done() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal(problem)
		}
	}
}

// planned runs the pipeline until a batch of all events is planned and its write has failed, and stops it.
func (r *rig) planned(t *testing.T) {
	t.Helper()
	stop := r.run()
	r.streaming(t)
	r.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('t', 'test', '{}')`) // a batch that is settled
	r.wait(t, `SELECT count(*) = 1 FROM event_outbox WHERE processed`)
	lost := errors.New("the network is gone")
	r.sink.set(func(*batch.Batch) error { return &batch.Failure{Class: batch.Unknown, Err: lost} })
	r.write(t)
	r.wait(t, `SELECT count(*) = 1 FROM sluicebox.batch WHERE state = 'planned'`)
	r.abandon(t)
	if err := stop(); !errors.Is(err, ledger.ErrFenced) {
		t.Fatalf("the pipeline ended with %v, want ErrFenced", err)
	}
	r.sink.set(nil)
}

// abandon makes the running pipeline lose the lead: it ends without a drain, as a killed one would.
func (r *rig) abandon(t *testing.T) {
	t.Helper()
	r.exec(t, `UPDATE sluicebox.stream SET epoch = epoch + 1`)
}

// ended stops the pipeline, which must succeed, and waits until the server has ended the session that read the slot.
func (r *rig) ended(t *testing.T, stop func() error) {
	t.Helper()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	r.notRead(t)
}

// notRead waits until the server has ended the session that read the slot.
func (r *rig) notRead(t *testing.T) {
	t.Helper()
	r.wait(t, `SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = '`+r.slot+`' AND active`)
}

// fenced waits until a pipeline that was abandoned has ended.
func (r *rig) fenced(t *testing.T) {
	t.Helper()
	err := <-r.done
	r.done <- err // for the cleanup
	if !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("the pipeline ended with %v, want ErrFenced", err)
	}
}

// token is that of the planned batch.
func (r *rig) token(t *testing.T) (token string) {
	t.Helper()
	if err := r.pg.QueryRow(t.Context(), `SELECT token FROM sluicebox.batch WHERE state = 'planned'`).Scan(&token); err != nil {
		t.Fatal(err)
	}
	return token
}

func TestPlannedBatch(t *testing.T) {
	t.Parallel()
	t.Run("of which ClickHouse has nothing is sent under its token", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.planned(t)
		token := r.token(t)
		var tokens []string
		r.sink.set(func(b *batch.Batch) error { tokens = append(tokens, b.Token); return nil })
		stop := r.run()
		r.everything(t)
		r.ended(t, stop)
		if len(tokens) != 1 || tokens[0] != token {
			t.Errorf("sent under %q, planned under %q", tokens, token)
		}
	})
	t.Run("of which ClickHouse has some rows gets a new token for the others", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.planned(t)
		r.insertPart(t, 40)
		r.run()
		r.everything(t)
	})
	t.Run("of which ClickHouse has all rows is settled and not sent", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.planned(t)
		r.insertPart(t, 100)
		r.sink.set(func(b *batch.Batch) error { t.Errorf("batch %d was sent", b.Seq); return nil })
		r.run()
		r.everything(t)
	})
	t.Run("whose token ClickHouse knows for other rows is found missing and sent under another", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		r.planned(t)
		token := r.token(t)
		if err := r.ch.Exec(t.Context(), `INSERT INTO event_log (source, id, event_type, event_date_time) SETTINGS async_insert = 0, insert_deduplication_token = '`+token+`'
			SELECT 'other', 1000000, 'x', now()`); err != nil {
			t.Fatal(err)
		}
		r.run()
		r.everything(t)
	})
}

// insertPart puts the first n rows of the planned batch into ClickHouse, as a first insert would have.
func (r *rig) insertPart(t *testing.T, n int) {
	t.Helper()
	rows, err := r.pg.Query(t.Context(), `SELECT o.id, o.event_date_time, (b.end_lsn - '0/0'::pg_lsn)::bigint FROM event_outbox o, sluicebox.batch b
		WHERE b.state = 'planned' AND NOT o.processed ORDER BY o.id LIMIT $1`, n)
	if err != nil {
		t.Fatal(err)
	}
	insert, err := r.ch.PrepareBatch(t.Context(), `INSERT INTO event_log (source, id, event_type, event_date_time, lsn)`)
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		var id, lsn int64
		var at time.Time
		if err := rows.Scan(&id, &at, &lsn); err != nil {
			t.Fatal(err)
		}
		if err := insert.Append(r.slot, uint64(id), "t", at, uint64(lsn)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(rows.Err(), insert.Send()); err != nil {
		t.Fatal(err)
	}
}

func TestExpiredDeadline(t *testing.T) {
	t.Parallel()
	for name, reachesClickHouse := range map[string]bool{"nothing had arrived": false, "an earlier attempt had arrived": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			through := r.sink.Sink
			late := true
			r.sink.set(func(b *batch.Batch) error {
				if !late {
					return nil
				}
				late = false
				if reachesClickHouse {
					if err := through.Write(t.Context(), b); err != nil {
						t.Error(err)
					}
				}
				b.Deadline = time.Now().Add(-time.Hour) // a pause of an hour would have the same effect
				return nil
			})
			r.run()
			r.streaming(t)
			r.write(t)
			r.everything(t)
			if late {
				t.Error("nothing was written; the test proves nothing")
			}
		})
	}
}

func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	through := r.sink.Sink
	failures := 3
	r.sink.set(func(b *batch.Batch) error {
		if failures == 0 {
			return nil
		}
		failures--
		if err := through.Write(t.Context(), b); err != nil { // it arrives each time, and nobody says so
			t.Error(err)
		}
		return &batch.Failure{Class: batch.Unknown, Err: errors.New("the reply is lost")}
	})
	r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
}

// pausing calls a function after each look-up.
type pausing struct {
	pipeline.Sink

	after func()
}

func (p pausing) Find(ctx context.Context, b *batch.Batch) (map[int64]struct{}, error) {
	found, err := p.Sink.Find(ctx, b)
	p.after()
	return found, err
}

// TestDeadlineOfAFurtherAttempt holds that a pause after the look-up does not put the deadline off: an earlier attempt may land in it, and
// its token be forgotten.
func TestDeadlineOfAFurtherAttempt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.sink.deadlineIn = time.Hour
	r.sink.Sink = pausing{r.sink.Sink, func() {
		r.sink.mu.Lock()
		defer r.sink.mu.Unlock()
		r.sink.deadlineIn = 24 * time.Hour // as if a day had passed
	}}
	attempts := 0
	r.sink.set(func(b *batch.Batch) error {
		if attempts++; attempts == 1 {
			return &batch.Failure{Class: batch.Unknown, Err: errors.New("the reply is lost")}
		}
		if left := time.Until(b.Deadline); left > 2*time.Hour {
			t.Errorf("the deadline is %s off, counted from after the look-up", left)
		}
		return nil
	})
	r.run()
	r.streaming(t)
	r.write(t)
	r.everything(t)
	if attempts != 2 {
		t.Errorf("%d attempts, want 2", attempts)
	}
}
