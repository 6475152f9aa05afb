package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// load is what writes: transactions of many shapes by SQL, and users by the API. It writes into the journal what it knows of each event.
type load struct {
	s      *stage
	gate   sync.RWMutex // held for reading during each transaction; for writing while nobody may write
	end    context.CancelFunc
	done   sync.WaitGroup
	aggs   atomic.Uint32
	shaped struct { // how many transactions
		sync.Mutex

		of map[string]int
	}
	users sync.Map // key → *userCall
}

// writers and apiWriters are how many write at once.
const (
	sqlWriters = 4
	apiWriters = 2
)

func newLoad(s *stage) *load {
	l := &load{s: s, end: func() {}}
	l.shaped.of = map[string]int{}
	return l
}

// start starts the writers.
func (l *load) start(ctx context.Context, seed uint64) {
	ctx, l.end = context.WithCancel(ctx)
	for n := range sqlWriters {
		w := &writer{l: l, number: n + 1, random: rand.New(rand.NewPCG(seed, uint64(n)))}
		l.done.Go(func() { w.run(ctx) })
	}
	for n := range apiWriters {
		random := rand.New(rand.NewPCG(seed, uint64(100+n)))
		l.done.Go(func() { l.callAPI(ctx, random) })
	}
}

// stop ends the writers.
func (l *load) stop() {
	l.end()
	l.done.Wait()
}

// hold keeps everybody from writing until the returned function is called.
func (l *load) hold() (release func()) {
	l.gate.Lock()
	return l.gate.Unlock
}

// writer writes by SQL, one transaction after the other.
type writer struct {
	l      *load
	number int
	random *rand.Rand
	conn   *pgx.Conn
	aggs   [3]aggregate

	monthsAgo int // of the event times of the transaction, which then is in a partition of its own
}

// aggregate numbers its events in the order in which they are committed.
type aggregate struct{ id, n uint32 }

// transactionTimeout bounds one transaction, whose outcome is unknown then.
const transactionTimeout = 10 * time.Second

func (w *writer) run(ctx context.Context) {
	w.renew()
	defer func() {
		if w.conn != nil {
			_ = w.conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for ctx.Err() == nil {
		began := time.Now()
		w.l.gate.RLock()
		rows := w.transaction(context.WithoutCancel(ctx)) // one that has begun comes to its end
		w.l.gate.RUnlock()
		due := time.Duration(rows) * time.Second * sqlWriters / time.Duration(w.l.s.o.rate)
		if rows == 0 {
			due = 200 * time.Millisecond
		}
		sleep(ctx, due-time.Since(began))
	}
}

// renew takes new aggregates: a transaction whose outcome is unknown may still commit, after the next one.
func (w *writer) renew() {
	for i := range w.aggs {
		w.aggs[i] = aggregate{id: w.l.aggs.Add(1)}
	}
}

// shape is a kind of transaction. It writes within tx and returns the keys that live if tx commits.
type shape struct {
	name   string
	weight int
	write  func(ctx context.Context, w *writer, tx pgx.Tx) (keys []uint64, err error)
	abort  bool          // it is rolled back at the end
	limit  time.Duration // within which it must end; 0: transactionTimeout
}

var errAbort = errors.New("rolled back on purpose")

func shapes() []shape {
	return []shape{
		{name: "single row", weight: 40, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) { return w.insert(ctx, tx, 1) }},
		{name: "row by row", weight: 20, write: func(ctx context.Context, w *writer, tx pgx.Tx) (keys []uint64, err error) {
			for range 2 + w.random.IntN(15) {
				more, err := w.insert(ctx, tx, 1)
				keys = append(keys, more...)
				if err != nil {
					return keys, err
				}
			}
			return keys, nil
		}},
		{name: "hundreds", weight: 6, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return w.insert(ctx, tx, 100+w.random.IntN(300))
		}},
		{name: "copy", weight: 6, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return w.copy(ctx, tx, 50+w.random.IntN(300))
		}},
		{name: "savepoint rolled back", weight: 12, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return w.savepoints(ctx, tx, 1+w.random.IntN(3))
		}},
		{name: "aborted", weight: 10, abort: true, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return nil, w.ghosts(ctx, tx, 1+w.random.IntN(60))
		}},
		{name: "of another month", weight: 1, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			w.monthsAgo = 1 + w.random.IntN(3)
			defer func() { w.monthsAgo = 0 }()
			return w.insert(ctx, tx, 50)
		}},
		{name: "long open with a low id", weight: 1, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			keys, err := w.insert(ctx, tx, 2)
			if err != nil {
				return keys, err
			}
			sleep(ctx, time.Duration(500+w.random.IntN(2500))*time.Millisecond)
			more, err := w.insert(ctx, tx, 2)
			return append(keys, more...), err
		}},
	}
}

// transaction makes one transaction of a random shape, and returns how many rows it has written.
func (w *writer) transaction(ctx context.Context) int {
	all, total := shapes(), 0
	for _, s := range all {
		total += s.weight
	}
	at := w.random.IntN(total)
	for _, s := range all {
		if at -= s.weight; at < 0 {
			return w.perform(ctx, s)
		}
	}
	return 0
}

// perform makes a transaction and enters its outcome into the journal.
func (w *writer) perform(ctx context.Context, s shape) int {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.limit, transactionTimeout))
	defer cancel()
	if !w.connect(ctx) {
		return 0
	}
	var keys []uint64
	tx, err := w.conn.Begin(ctx)
	if err != nil {
		w.drop(ctx)
		return 0
	}
	keys, err = s.write(ctx, w, tx)
	if err != nil || s.abort {
		w.l.s.journal.end(keys, aborted, 0)
		if tx.Rollback(ctx) != nil {
			w.drop(ctx)
		}
		return len(keys)
	}
	switch err := tx.Commit(ctx); {
	case err == nil:
		w.l.s.journal.end(keys, committed, w.upper(ctx))
		w.l.count(s.name)
	case refused(err):
		w.l.s.journal.end(keys, aborted, 0)
		w.drop(ctx)
	default:
		w.l.s.journal.end(keys, maybe, 0)
		w.renew()
		w.drop(ctx)
	}
	return len(keys)
}

// refused tells whether Postgres itself said that a commit did not happen. An end of the session says nothing: it may come after the
// commit's record is written, as it does when a synchronous standby is waited for. So may a panic, which tells the same: the WAL that can't be
// written can be that after the record.
func refused(err error) bool {
	var refusal *pgconn.PgError
	return errors.As(err, &refusal) && refusal.SeverityUnlocalized != "PANIC" && !strings.HasPrefix(refusal.Code, "57") && !strings.HasPrefix(refusal.Code, "08")
}

// upper is an LSN after everything that is committed.
func (w *writer) upper(ctx context.Context) uint64 {
	var text string
	if err := w.conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
		w.drop(ctx)
		return 0
	}
	lsn, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return 0
	}
	return uint64(lsn)
}

func (w *writer) connect(ctx context.Context) bool {
	if w.conn != nil && !w.conn.IsClosed() {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var err error
	w.conn, err = pgx.Connect(ctx, w.l.s.as(writerRole, writerPassword, linkWriters))
	return err == nil
}

func (w *writer) drop(ctx context.Context) {
	if w.conn != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = w.conn.Close(ctx) // it is given up either way
		w.conn = nil
	}
}

// event makes an event of one of the writer's aggregates, or of none if it is a ghost.
func (w *writer) event(ghost bool) row {
	r := row{typ: fmt.Sprintf("thing %d has happened", w.random.IntN(4)), at: time.Now().UTC().Truncate(time.Microsecond)}
	var agg aggregate
	pad := personal
	for range 2 + w.random.IntN(10) { // nothing that compresses well, so that blocks have some size
		pad += strconv.FormatUint(w.random.Uint64(), 36)
	}
	switch draw := w.random.IntN(2000); {
	case ghost:
		r.typ = ghostType
	case draw == 0:
		r.kind, r.typ = poison, "time without a place"
	case draw < 6:
		r.kind, pad = refusable, refusedWord+" "+pad
	}
	r.at = r.at.AddDate(0, -w.monthsAgo, 0)
	if !ghost {
		place := &w.aggs[w.random.IntN(len(w.aggs))]
		place.n++
		agg = *place
	}
	r.key = w.l.s.journal.add(func(key uint64) event {
		r.context = contextOf(key, w.number, agg.id, agg.n, pad)
		e := event{hash: contentHash(r.typ, environment, r.context, version), micros: r.at.UnixMicro(), agg: agg.id, n: agg.n, kind: r.kind}
		if r.kind == poison {
			e.micros = 0
		}
		return e
	})
	return r
}

func (r *row) time() string {
	if r.kind == poison {
		return "infinity"
	}
	return r.at.Format("2006-01-02 15:04:05.999999+00")
}

func (w *writer) events(n int, ghost bool) (rows []row, keys []uint64) {
	for range n {
		r := w.event(ghost)
		rows, keys = append(rows, r), append(keys, r.key)
	}
	return rows, keys
}

// insert inserts n events in one statement.
func (w *writer) insert(ctx context.Context, tx pgx.Tx, n int) ([]uint64, error) {
	rows, keys := w.events(n, false)
	return keys, insertRows(ctx, tx, rows)
}

// ghosts inserts n events that are to be rolled back.
func (w *writer) ghosts(ctx context.Context, tx pgx.Tx, n int) error {
	rows, keys := w.events(n, true)
	w.l.s.journal.end(keys, aborted, 0)
	return insertRows(ctx, tx, rows)
}

func insertRows(ctx context.Context, tx pgx.Tx, rows []row) error {
	types, times, contexts := make([]string, len(rows)), make([]string, len(rows)), make([]string, len(rows))
	for i := range rows {
		types[i], times[i], contexts[i] = rows[i].typ, rows[i].time(), rows[i].context
	}
	_, err := tx.Exec(ctx, `
INSERT INTO event_outbox (event_type, event_date_time, environment, event_context, metadata_version)
SELECT t, at::timestamptz, $4, c::jsonb, $5 FROM unnest($1::text[], $2::text[], $3::text[]) WITH ORDINALITY AS r (t, at, c, place) ORDER BY place`,
		types, times, contexts, environment, version)
	return err
}

// copy writes n events with COPY, whose rows share one position in the WAL.
func (w *writer) copy(ctx context.Context, tx pgx.Tx, n int) ([]uint64, error) {
	rows, keys := w.events(n, false)
	var lines strings.Builder
	for i := range rows {
		fmt.Fprintf(&lines, "%s\t%s\t%s\t%s\t%d\n", rows[i].typ, rows[i].time(), environment, rows[i].context, version)
	}
	_, err := tx.Conn().PgConn().CopyFrom(ctx, strings.NewReader(lines.String()),
		`COPY event_outbox (event_type, event_date_time, environment, event_context, metadata_version) FROM STDIN`)
	return keys, err
}

// savepoints writes events between savepoints that are rolled back with others in them.
func (w *writer) savepoints(ctx context.Context, tx pgx.Tx, n int) (keys []uint64, err error) {
	for range n {
		more, err := w.insert(ctx, tx, 1)
		keys = append(keys, more...)
		if err != nil {
			return keys, err
		}
		err = pgx.BeginFunc(ctx, tx, func(inner pgx.Tx) error {
			if err := w.ghosts(ctx, inner, 1+w.random.IntN(3)); err != nil {
				return err
			}
			return errAbort
		})
		if !errors.Is(err, errAbort) {
			return keys, err
		}
	}
	more, err := w.insert(ctx, tx, 1)
	return append(keys, more...), err
}

// once makes one transaction for a fault, by a writer of its own.
func (l *load) once(ctx context.Context, seed uint64, s shape) error {
	w := &writer{l: l, number: 99, random: rand.New(rand.NewPCG(seed, 99))}
	w.renew()
	l.gate.RLock()
	defer l.gate.RUnlock()
	if w.perform(ctx, s) == 0 && !s.abort {
		return errors.New("nothing could be written")
	}
	w.drop(ctx)
	return nil
}

// probe commits one event, straight, and returns its key; 0: Postgres is away.
func (l *load) probe(ctx context.Context) uint64 {
	w := &writer{l: l, number: 98, random: rand.New(rand.NewPCG(1, l.s.journal.len()))}
	w.renew()
	r := w.event(false)
	for r.kind != ordinary {
		l.s.journal.end([]uint64{r.key}, aborted, 0)
		r = w.event(false)
	}
	l.gate.RLock()
	defer l.gate.RUnlock()
	err := pgx.BeginFunc(ctx, l.s.admin, func(tx pgx.Tx) error { return insertRows(ctx, tx, []row{r}) })
	if err != nil {
		l.s.journal.end([]uint64{r.key}, maybe, 0)
		return 0
	}
	l.s.journal.end([]uint64{r.key}, committed, 0)
	return r.key
}

func (l *load) count(shape string) {
	l.shaped.Lock()
	defer l.shaped.Unlock()
	l.shaped.of[shape]++
}
