package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// growth measures the drain at several sizes: neither its rate nor its memory may depend on how much waits.
func (s *stage) growth(ctx context.Context) error {
	for _, events := range []int{s.o.events / 10, s.o.events, 5 * s.o.events} {
		figure := fmt.Sprintf("growth, %s events, socket", number(float64(events)))
		if err := s.fresh(ctx); err != nil {
			return err
		}
		end, err := s.write(ctx, events, 100)
		if err != nil {
			return err
		}
		if err := s.drainDaemon(ctx, figure, events, unix, end, fmt.Sprintf("growth-%d", events)); err != nil {
			return err
		}
	}
	return nil
}

// polling is what this replaces: it reads unprocessed rows, inserts and marks them, a thousand at a time, every second; and the same at its
// best, without a pause. It may double and lose events; only its speed is of interest.
func (s *stage) polling(ctx context.Context) error {
	const every, always = "polling every second, TCP", "polling without a pause, TCP"
	events := s.o.events / 10
	if err := s.fresh(ctx); err != nil {
		return err
	}
	end, err := s.write(ctx, events, 100)
	if err != nil {
		return err
	}
	if err := s.drainDaemon(ctx, every, events, tcp, end, "polling"); err != nil {
		return err
	}
	s.table.add(always, "cdc", perSecond, s.table.find(every, "cdc", perSecond).Median)
	if err := s.fresh(ctx); err != nil {
		return err
	}
	if _, err := s.write(ctx, events, 100); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, s.pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("poll: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	const polls = 10
	polled, took, err := s.poll(ctx, conn, polls, time.Second)
	if err != nil {
		return err
	}
	s.table.add(every, "poller", perSecond, float64(polled)/took.Seconds())
	s.table.against(every, "cdc", perSecond, "poller", "≥ 5")

	rest, took, err := s.poll(ctx, conn, events, 0)
	if err != nil {
		return err
	}
	if polled+rest != events {
		return errors.New("poll: not every event was polled")
	}
	s.table.add(always, "poller", perSecond, float64(rest)/took.Seconds())
	s.table.against(always, "cdc", perSecond, "poller", "")
	return nil
}

// poll polls so many times, and waits for the pause after each, or until nothing is left.
func (s *stage) poll(ctx context.Context, conn *pgx.Conn, times int, pause time.Duration) (polled int, took time.Duration, err error) {
	const rows = 1000
	began := time.Now()
	for range times {
		due := time.Now().Add(pause)
		n, err := s.pollOnce(ctx, conn, rows)
		if err != nil {
			return 0, 0, fmt.Errorf("poll: %w", err)
		}
		if n == 0 {
			break
		}
		polled += n
		if pause > 0 && !sleepUntil(ctx, due) {
			return 0, 0, ctx.Err()
		}
	}
	return polled, time.Since(began), nil
}

func (s *stage) pollOnce(ctx context.Context, conn *pgx.Conn, limit int) (int, error) {
	rows, err := conn.Query(ctx, `SELECT id, event_type, event_date_time, environment, event_context::text, metadata_version
FROM event_outbox WHERE NOT processed ORDER BY id LIMIT $1`, limit)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	insert, err := s.click.PrepareBatch(ctx, `INSERT INTO event_log (id, event_type, event_date_time, environment, event_context, metadata_version)`)
	if err != nil {
		return 0, err
	}
	var ids []int64
	for rows.Next() {
		var id int64
		var kind, environment, content string
		var at time.Time
		var version int32
		if err := rows.Scan(&id, &kind, &at, &environment, &content, &version); err != nil {
			return 0, err
		}
		if err := insert.Append(uint64(id), kind, at, environment, content, uint32(version)); err != nil {
			return 0, err
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil || len(ids) == 0 {
		return 0, errors.Join(err, insert.Abort())
	}
	if err := insert.Send(); err != nil {
		return 0, err
	}
	_, err = conn.Exec(ctx, `UPDATE event_outbox SET processed = true, processed_at = now() WHERE id = ANY ($1)`, ids)
	return len(ids), err
}
