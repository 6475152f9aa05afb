package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// pollInterval is how often ClickHouse is asked for new events: the error of each measured latency.
	pollInterval = 10 * time.Millisecond
	// settleTimeout is how long the last events may take to arrive once all users are created.
	settleTimeout = 2 * time.Minute
)

// watcher sees events arrive in ClickHouse as any client would: by SELECT.
type watcher struct {
	*screen

	load       *load
	postgres   *pgxpool.Pool
	clickhouse driver.Conn
	seen       uint64 // commit LSN up to which events were seen
	latencies  []time.Duration
}

func (d *demo) newWatcher(ctx context.Context, l *load) (*watcher, error) {
	pool, err := pgxpool.New(ctx, d.postgres.URL("postgres"))
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	options, err := clickhouse.ParseDSN(d.clickhouse.URL("default"))
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("connect to ClickHouse: %w", err)
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("connect to ClickHouse: %w", err)
	}
	return &watcher{screen: d.screen, load: l, postgres: pool, clickhouse: conn}, nil
}

func (w *watcher) close() {
	w.postgres.Close()
	_ = w.clickhouse.Close() // nothing is written through it
}

// run polls until ctx is done, and shows how far things are.
func (w *watcher) run(ctx context.Context, users int) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if err := w.poll(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		w.progress("users created: %d of %d, events seen in ClickHouse: %d", w.load.created.Load(), users, len(w.latencies))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// poll notes the latency of each event that is seen for the first time. Batches land in commit order, so those are the ones
// above the highest LSN seen. A poll that fails notes nothing.
func (w *watcher) poll(ctx context.Context) error {
	rows, err := w.clickhouse.Query(ctx, `SELECT lsn, event_context FROM event_log WHERE lsn > ?`, w.seen)
	if err != nil {
		return fmt.Errorf("look for events in ClickHouse: %w", err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells
	now, seen := time.Now(), w.seen
	var emails []string
	for rows.Next() {
		var lsn uint64
		var content string
		if err := rows.Scan(&lsn, &content); err != nil {
			return fmt.Errorf("look for events in ClickHouse: %w", err)
		}
		var user struct{ Email string }
		if err := json.Unmarshal([]byte(content), &user); err != nil {
			return fmt.Errorf("read an event: %w", err)
		}
		emails, seen = append(emails, user.Email), max(seen, lsn)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("look for events in ClickHouse: %w", err)
	}
	w.seen = seen
	w.load.mu.Lock()
	defer w.load.mu.Unlock()
	for _, email := range emails {
		committed, known := w.load.committed[email]
		delete(w.load.committed, email)
		if !known { // it arrived before the API's answer did
			committed = now
		}
		w.latencies = append(w.latencies, max(0, now.Sub(committed)))
	}
	return nil
}

// settled waits until every event is marked.
func (w *watcher) settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		var left int64
		if err := w.postgres.QueryRow(ctx, `SELECT count(*) FROM event_outbox WHERE NOT processed`).Scan(&left); err != nil {
			return fmt.Errorf("count unprocessed events: %w", err)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d events are still unprocessed after %s", left, settleTimeout)
		}
	}
}

// result counts both sides.
func (w *watcher) result(ctx context.Context) (*result, error) {
	r := &result{}
	err := w.postgres.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE processed) FROM event_outbox`).Scan(&r.Events, &r.Processed)
	if err != nil {
		return nil, fmt.Errorf("count events in Postgres: %w", err)
	}
	if err := w.postgres.QueryRow(ctx, `SELECT count(*) FROM users`).Scan(&r.UserRows); err != nil {
		return nil, fmt.Errorf("count users in Postgres: %w", err)
	}
	if err := w.postgres.QueryRow(ctx, `SELECT count(*) FROM sluicebox.batch`).Scan(&r.Batches); err != nil {
		return nil, fmt.Errorf("count batches: %w", err)
	}
	var rows, ids uint64
	if err := w.clickhouse.QueryRow(ctx, `SELECT count(), uniqExact(id) FROM event_log`).Scan(&rows, &ids); err != nil {
		return nil, fmt.Errorf("count rows in ClickHouse: %w", err)
	}
	r.Rows, r.UniqueIDs = int64(rows), int64(ids)
	slices.Sort(w.latencies)
	if n := len(w.latencies); n > 0 {
		r.P50 = w.latencies[(n-1)*50/100].Seconds()
		r.P99 = w.latencies[(n-1)*99/100].Seconds()
	}
	return r, nil
}
