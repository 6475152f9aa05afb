package audit

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// requestSize is how many requests one statement stores.
	requestSize = 10_000
	// ledgerTimeout bounds a statement on the ledger.
	ledgerTimeout = time.Minute
	// askEvery is how often the ledger is asked what is left of the requests.
	askEvery = 500 * time.Millisecond
	// leaseAge is the age of the leader's heartbeat beyond which nobody leads.
	leaseAge = 30 * time.Second
)

// Why requests were not waited for to their end.
const (
	StoppedNoDaemon = "no daemon leads the stream"
	StoppedTimeout  = "the daemon has not delivered them yet"
)

// missing is an event that [Audit.Repair] can ask for.
type missing struct {
	id  int64
	day int32
}

// Repair asks the daemon to deliver what [Audit.Run] found missing, waits for that as long as a daemon leads and at most for wait,
// and looks at these events again: the report then says what is true now. Requests that were not waited for stay stored.
func (a *Audit) Repair(ctx context.Context, wait time.Duration) error {
	asked, began, repair := a.missing, time.Now(), &Repair{}
	a.report.Repair = repair
	repair.Left = a.report.Differences[Missing].Count - uint64(len(asked))
	for some := range slices.Chunk(asked, requestSize) {
		n, err := a.pg.request(ctx, idsOf(some))
		if err != nil {
			return err
		}
		repair.Requested += n
	}
	if repair.Requested == 0 {
		return nil
	}
	var err error
	if repair.Stopped, err = a.await(ctx, repair.Requested, wait); err != nil {
		return err
	}
	a.forget(asked)
	again, err := a.look(ctx, idsOf(asked), false)
	if err != nil {
		return err
	}
	if err := a.lookAgain(ctx, again); err != nil {
		return err
	}
	repair.Restored = uint64(len(asked) - len(a.missing))
	a.finish(time.Since(began))
	return nil
}

// await waits until all requests that were made up to now are gone.
func (a *Audit) await(ctx context.Context, requested uint64, wait time.Duration) (stopped string, err error) {
	asked, err := a.pg.now(ctx)
	if err != nil {
		return "", err
	}
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		left, leads, err := a.pg.requests(ctx, asked)
		switch {
		case err != nil:
			return "", err
		case left == 0:
			return "", nil
		case !leads:
			return StoppedNoDaemon, nil
		}
		a.progress(StepRepair, 1-min(float64(left)/float64(requested), 1))
		select {
		case <-tick.C:
		case <-timeout.C:
			return StoppedTimeout, nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// forget takes missing events out of the report, to be looked at again.
func (a *Audit) forget(asked []missing) {
	found := a.report.Differences[Missing]
	found.Count -= uint64(len(asked))
	found.Events = found.Events[:0] // all of those that are listed are among them
	for _, m := range asked {
		a.day(m.day).Differences[Missing]--
	}
	a.missing = nil
}

func idsOf(events []missing) []int64 {
	ids := make([]int64, len(events))
	for i, m := range events {
		ids[i] = m.id
	}
	return ids
}

// request stores the wish to have rows delivered again, and returns how many of them Postgres still has.
func (p *postgres) request(ctx context.Context, ids []int64) (n uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	err = p.pool.QueryRow(ctx, `
WITH asked AS (
    SELECT o.id FROM `+p.table+` o WHERE o.id = ANY ($2::bigint[]) AND o.processed
), stored AS (
    INSERT INTO sluicebox.redelivery (slot, id) SELECT $1, id FROM asked ON CONFLICT DO NOTHING
)
SELECT count(*) FROM asked`, p.config.Slot, ids).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("ask for missing events: %w", err)
	}
	return n, nil
}

// now is the time on the clock of Postgres.
func (p *postgres) now(ctx context.Context) (now time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	if err := p.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return now, fmt.Errorf("ask Postgres for its time: %w", err)
	}
	return now, nil
}

// requests counts those that were made before a time and are not gone, and says whether a daemon leads, which will see to them.
func (p *postgres) requests(ctx context.Context, before time.Time) (left uint64, leads bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, ledgerTimeout)
	defer cancel()
	err = p.pool.QueryRow(ctx, `
SELECT (SELECT count(*) FROM sluicebox.redelivery r WHERE r.slot = s.slot AND r.requested_at <= $2),
       s.holder IS NOT NULL AND s.heartbeat_at > clock_timestamp() - $3::interval
FROM sluicebox.stream s WHERE s.slot = $1`, p.config.Slot, before, leaseAge).Scan(&left, &leads)
	if err != nil {
		return 0, false, fmt.Errorf("look what is left of the requests: %w", err)
	}
	return left, leads, nil
}
