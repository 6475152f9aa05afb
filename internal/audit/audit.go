// Package audit proves that Postgres and ClickHouse hold the same events, or says which of them differ.
//
//	compare ──▶ look closer ──▶ look ──────────────▶ look again
//	count and    id and hash     Postgres, ClickHouse,  what is young,
//	checksum     of the groups   Postgres once more:    after growing
//	per group    that differ     a verdict per id       waits
//
// A group is the events of one day (UTC, of event_date_time) in one bucket of neighbouring ids: the servers hash and add, and only
// sums travel. Events are delivered meanwhile, so a group that differs proves nothing. The looks do, by their order:
//
//   - What Postgres says is processed, and ClickHouse lacks when it is asked after that, is missing.
//   - What ClickHouse has was planned before it was written. So when Postgres is asked after that, it shows the row processed,
//     or its batch still planned. The mark, and the batch it closes, are one statement; rows and batches are read in one, too.
//
// That is why the statements need no common snapshot, and none is held open for long: it would keep vacuum from its work.
package audit

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says what is compared. The zero value of an optional field is explained beside it.
type Config struct {
	ClickHouseURL string // as clickhouse-go takes it
	Slot          string // of the stream; also the source of its rows in ClickHouse
	Schema, Table string // of the outbox
	TargetTable   string // in ClickHouse

	// Since and Until bound event_date_time: from, and before. Zero: no bound.
	Since, Until time.Time
	// Patience is for how long a difference of an event that is younger than a minute is looked at again before it is believed:
	// a replica of ClickHouse may lag behind the one that confirmed the insert. Zero: not at all.
	Patience time.Duration
	// Progress is told how much of a step is done, from 0 to 1. It may be called from several goroutines. Nil: nobody is told.
	Progress func(step string, done float64)
}

// Audit is one comparison. It is good for one [Audit.Run] and then one [Audit.Repair].
type Audit struct {
	config Config
	pg     *postgres
	ch     *clickHouse

	report  *Report
	cut     time.Time // what ClickHouse took before it may have been removed from Postgres; zero: nothing was
	days    map[int32]*Day
	runs    []run
	missing []missing // what Repair can ask for, at most maxRepair
	waiting uint64    // unprocessed rows, whatever the reason
}

const (
	// maxAgain bounds the ids that are kept to be looked at again, 8 bytes each. The verdict on more is believed at once.
	maxAgain = 1_000_000
	// maxRepair bounds the missing ids that are kept for a repair, 16 bytes each.
	maxRepair = 1_000_000
	// maxRun is how many neighbouring buckets that differ are looked at in one query.
	maxRun = 4
)

// The steps that [Config.Progress] is told of.
const (
	StepCompare = "comparing checksums"
	StepCloser  = "looking closer at what differs"
	StepAgain   = "looking again at what is young"
	StepRepair  = "waiting for the daemon to deliver what is missing"
)

// Open looks at both databases. The error is a [*SetupError] when something has to be changed before they can be compared. The
// pool stays the caller's; one connection of it is used at a time.
func Open(ctx context.Context, pool *pgxpool.Pool, config Config) (*Audit, error) {
	pg, err := openPostgres(ctx, pool, config)
	if err != nil {
		return nil, err
	}
	ch, err := openClickHouse(ctx, config)
	if err != nil {
		return nil, err
	}
	ch.sources, ch.mine = pg.slots, pg.mine
	pg.text, ch.text = pg.canonical(ch.compared), ch.canonical(ch.compared)
	return &Audit{config: config, pg: pg, ch: ch, days: map[int32]*Day{}}, nil
}

// Close gives the connections to ClickHouse up.
func (a *Audit) Close() error { return a.ch.conn.Close() }

// Run compares. An error means that nothing is known, never that both sides are the same.
func (a *Audit) Run(ctx context.Context) (*Report, error) {
	began := time.Now()
	a.report = newReport(a.config, began, a.ch.notCompared)
	trimmed, err := a.pg.trimmedBefore(ctx)
	if err != nil {
		return nil, err
	}
	a.cut = trimCut(trimmed)
	size, err := a.size(ctx)
	if err != nil {
		return nil, err
	}
	progress := a.both(StepCompare)
	err = join(ctx,
		func(ctx context.Context, each func(group) error) error {
			return a.pg.groups(ctx, size, progress(0), each)
		},
		func(ctx context.Context, each func(group) error) error {
			return a.ch.groups(ctx, size, a.cut, progress(1), each)
		},
		func(a, b *group) int { return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.day, b.day)) },
		a.compare)
	if err != nil {
		return nil, err
	}
	if err := a.closer(ctx, size); err != nil {
		return nil, err
	}
	if a.report.Quarantined, err = a.pg.quarantined(ctx); err != nil {
		return nil, err
	}
	unmarked := a.report.Differences[Unmarked].Count
	a.report.Waiting = a.waiting - min(a.waiting, a.report.Quarantined+unmarked)
	a.finish(time.Since(began))
	return a.report, nil
}

// size is that of the buckets: about as many rows in each, however sparse the ids are.
func (a *Audit) size(ctx context.Context) (buckets, error) {
	pg, err := a.pg.extent(ctx)
	if err != nil {
		return buckets{}, err
	}
	ch, err := a.ch.extent(ctx)
	if err != nil {
		return buckets{}, err
	}
	return sizeBuckets(pg, ch), nil
}

// compare takes the groups of both sides in their order. A side that has none gives nil.
func (a *Audit) compare(pg, ch *group) error {
	if pg == nil {
		pg = &group{bucket: ch.bucket, day: ch.day}
	}
	if ch == nil {
		ch = &group{bucket: pg.bucket, day: pg.day}
	}
	day := a.day(pg.day)
	day.Postgres += pg.rows
	day.ClickHouse += ch.rows
	day.sumPostgres += pg.sum
	day.sumClickHouse += ch.sum
	a.report.Postgres += pg.rows
	a.report.ClickHouse += ch.rows
	a.waiting += pg.waiting
	switch {
	case pg.rows == ch.rows && pg.sum == ch.sum:
	case pg.rows == 0 && pg.waiting == 0 && ch.rows == ch.old: // the retention has removed all of it
		a.expired(pg.day, ch.rows)
	default:
		a.differs(pg.bucket, pg.day)
	}
	return nil
}

func (a *Audit) expired(day int32, rows uint64) {
	a.day(day).Expired += rows
	a.report.Expired += rows
}

func (a *Audit) day(number int32) *Day {
	day := a.days[number]
	if day == nil {
		day = &Day{Date: dateOf(number), Differences: map[Kind]uint64{}, number: number}
		a.days[number] = day
	}
	return day
}

// run is neighbouring buckets with groups that differ, and the days of these. An event that one side has on another day is in a
// group that differs, too, so the days hold both of its places.
type run struct {
	from, to  int64 // buckets, both included
	first     int32
	last      int32
	unlimited bool // an infinite event time has no day
}

func (a *Audit) differs(bucket int64, day int32) {
	if n := len(a.runs); n > 0 && bucket <= a.runs[n-1].to+1 && bucket < a.runs[n-1].from+maxRun {
		r := &a.runs[n-1]
		r.to, r.first, r.last = bucket, min(r.first, day), max(r.last, day)
		r.unlimited = r.unlimited || day == noDay
		return
	}
	a.runs = append(a.runs, run{from: bucket, to: bucket, first: day, last: day, unlimited: day == noDay})
}

// closer holds the events of groups that differ against each other, and looks at the ids that differ.
func (a *Audit) closer(ctx context.Context, size buckets) error {
	var suspects, again []int64
	whole := a.config.Since.IsZero() && a.config.Until.IsZero() // else Postgres may have the event beyond the bounds
	look := func() error {
		young, err := a.look(ctx, suspects, len(again) >= maxAgain)
		again, suspects = append(again, young...), suspects[:0]
		return err
	}
	for i, r := range a.runs {
		a.progress(StepCloser, float64(i)/float64(len(a.runs)))
		within := a.period(r)
		from, to := size.ids(r)
		err := join(ctx,
			func(ctx context.Context, each func(hashed) error) error {
				return a.pg.hashes(ctx, from, to, within, each)
			},
			func(ctx context.Context, each func(hashed) error) error {
				return a.ch.hashes(ctx, from, to, within, a.cut, each)
			},
			func(a, b *hashed) int { return cmp.Compare(a.id, b.id) },
			func(pg, ch *hashed) error {
				switch {
				case pg == nil && ch.old && whole: // as the look would say, but there may be many
					a.expired(ch.day, ch.rows)
				case pg == nil:
					suspects = append(suspects, ch.id)
				case ch == nil && !pg.processed: // waits to be delivered
				case ch == nil || !pg.processed || ch.rows != 1 || ch.hash != pg.hash:
					suspects = append(suspects, pg.id)
				}
				return nil
			})
		if err != nil {
			return err
		}
		if err := look(); err != nil {
			return err
		}
	}
	return a.lookAgain(ctx, again)
}

// period is the time of the events of a run, within what the audit is about.
func (a *Audit) period(r run) period {
	p := period{a.config.Since, a.config.Until}
	if r.unlimited {
		return p
	}
	if start := startOf(r.first); p.since.IsZero() || start.After(p.since) {
		p.since = start
	}
	if end := startOf(r.last + 1); p.until.IsZero() || end.Before(p.until) {
		p.until = end
	}
	return p
}

// finish brings the report up to date.
func (a *Audit) finish(took time.Duration) {
	a.report.Days = slices.SortedFunc(maps.Values(a.days), func(a, b *Day) int { return cmp.Compare(a.number, b.number) })
	for _, day := range a.report.Days {
		day.Checksum = Checksums{Postgres: fmt.Sprintf("%016x", day.sumPostgres), ClickHouse: fmt.Sprintf("%016x", day.sumClickHouse)}
	}
	a.report.finish(took)
}

// both makes the progress of a step of that of its two sides.
func (a *Audit) both(step string) func(side int) func(done float64) {
	var mu sync.Mutex
	var sides [2]float64
	return func(side int) func(done float64) {
		return func(done float64) {
			mu.Lock()
			defer mu.Unlock()
			sides[side] = done
			a.progress(step, (sides[0]+sides[1])/2)
		}
	}
}

func (a *Audit) progress(step string, done float64) {
	if a.config.Progress != nil {
		a.config.Progress(step, done)
	}
}

// SetupError says that the two can't be compared as they are, and what to change.
type SetupError struct {
	Reason string
	Hint   string
}

// Error returns the reason, without the hint.
func (e *SetupError) Error() string { return e.Reason }

func setupError(hint, format string, args ...any) error {
	return &SetupError{Reason: fmt.Sprintf(format, args...), Hint: hint}
}
