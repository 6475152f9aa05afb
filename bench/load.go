package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// offer commits events at a rate, in transactions of each, until ctx is done. committed is told of each transaction: its last id, and
// when the commit was confirmed. It returns how many were committed, and whether the rate was held.
func (s *stage) offer(ctx context.Context, rate, each int, committed func(last int64, at time.Time)) (events int, held bool, err error) {
	conn, err := pgx.Connect(ctx, s.pg.SocketURL("postgres"))
	if err != nil {
		return 0, false, fmt.Errorf("offer: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	began := time.Now()
	behind := time.Duration(0)
	for ctx.Err() == nil {
		due := began.Add(time.Duration(float64(events) / float64(rate) * float64(time.Second)))
		if !sleepUntil(ctx, due) {
			break
		}
		behind = time.Since(due)
		var last int64
		err := conn.QueryRow(context.WithoutCancel(ctx), `WITH written AS (
    INSERT INTO event_outbox (event_type, environment, event_context)
    SELECT 'user has been created', 'production', jsonb_build_object('user_id', n, 'name', md5(n::text) || ' ' || md5((n + 1)::text),
           'street', md5((n + 2)::text), 'plan', 'team', 'source', 'signup form', 'active', true, 'city', 'London', 'zip', n % 99999)
    FROM generate_series($1::bigint, $1::bigint + $2::bigint - 1) n RETURNING id
) SELECT max(id) FROM written`, events, each).Scan(&last)
		if err != nil {
			return events, false, fmt.Errorf("offer: %w", err)
		}
		events += each
		if committed != nil {
			committed(last, time.Now())
		}
	}
	const late = time.Second
	return events, behind < late, nil
}

func sleepUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// steady offers 20,000 events a second.
func (s *stage) steady(ctx context.Context) error {
	const rate, each = 20_000, 200
	figure := fmt.Sprintf("steady, %s events/s for %d s, socket", number(rate), s.o.seconds)
	p, err := s.running(ctx, unix)
	if err != nil {
		return err
	}
	defer p.kill()
	var batches int
	const count = `SELECT count(*) FROM sluicebox.batch WHERE slot = $1 AND settled_at >= $2`
	began := time.Now()
	timed, cancel := context.WithTimeout(ctx, time.Duration(s.o.seconds)*time.Second)
	defer cancel()
	events, held, err := s.offer(timed, rate, each, nil)
	if err != nil {
		return err
	}
	offered := time.Since(began)
	if err := s.admin.QueryRow(ctx, count, slot, began).Scan(&batches); err != nil {
		return err
	}
	if err := s.caughtUp(ctx, p); err != nil {
		return err
	}
	lag := time.Since(began) - offered
	peak, err := p.peak()
	if err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	if !held {
		s.table.add(figure+", not held", "writer", perSecond, float64(events)/offered.Seconds())
	}
	s.table.add(figure, "cdc", perSecond, float64(events)/offered.Seconds()).aim("20,000")
	s.table.add(figure, "cdc", "s, until all is acknowledged after the end", lag.Seconds()).aim("< 2")
	s.table.add(figure, "cdc", "inserts/s", float64(batches)/offered.Seconds()).aim("≤ 2")
	s.table.add(figure, "cdc", "CPU s", p.cpu.Seconds())
	s.table.add(figure, "cdc", peakMiB, peak).aim("≤ 100")
	return s.whole(ctx)
}

// latency measures from the confirmation of a commit to the first query of ClickHouse that shows it.
func (s *stage) latency(ctx context.Context) error {
	for _, c := range []struct{ delay, aim string }{{"1s", "< 1.3"}, {"50ms", "< 0.15"}} {
		figure := "latency, 1,000 events/s, CDC_BATCH_MAX_DELAY=" + c.delay
		if err := s.latencyAt(ctx, figure, c.delay, c.aim); err != nil {
			return err
		}
	}
	return nil
}

func (s *stage) latencyAt(ctx context.Context, figure, delay, aim string) error {
	const rate, each = 1000, 5
	p, err := s.running(ctx, unix, "CDC_BATCH_MAX_DELAY="+delay)
	if err != nil {
		return err
	}
	defer p.kill()
	var lastCommitted atomic.Int64
	var mu sync.Mutex
	commits := map[int64]time.Time{} // by last id
	timed, cancel := context.WithTimeout(ctx, time.Duration(s.o.seconds)*time.Second/2)
	defer cancel()
	offered := make(chan error, 1)
	go func() {
		_, _, err := s.offer(timed, rate, each, func(last int64, at time.Time) {
			mu.Lock()
			defer mu.Unlock()
			commits[last] = at
			lastCommitted.Store(last)
		})
		offered <- err
	}()
	var took []float64
	seen := int64(0)
	err = poll(ctx, 5*time.Millisecond, 10*time.Minute, func() (bool, error) {
		var high uint64
		// One writer, so that ids are in the order of the commits.
		if err := s.click.QueryRow(ctx, `SELECT max(id) FROM event_log WHERE event_date_time > now() - 60`).Scan(&high); err != nil {
			return false, err
		}
		now := time.Now()
		mu.Lock()
		defer mu.Unlock()
		for last, at := range commits {
			if last <= int64(high) {
				took = append(took, now.Sub(at).Seconds())
				delete(commits, last)
			}
		}
		seen = max(seen, int64(high))
		return timed.Err() != nil && seen >= lastCommitted.Load(), nil
	})
	if err != nil {
		return err
	}
	if err := <-offered; err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	s.table.add(figure, "cdc, p50", "s", quantile(took, 0.5))
	s.table.add(figure, "cdc, p99", "s", quantile(took, 0.99)).aim(aim)
	return s.whole(ctx)
}
