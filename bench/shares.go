package main

import (
	"context"
	"fmt"
	"time"
)

// shares measures what several streams gain that carry one outbox together, each with a daemon and a slot of its own (CDC_SHARE).
func (s *stage) shares(ctx context.Context) error {
	const each = 100
	figure := fmt.Sprintf("shares of one outbox, transactions of %d, %s", each, unix)
	for range s.o.runs {
		for _, n := range []int{1, 2, 4} {
			contender := fmt.Sprintf("%d streams", n)
			if n == 1 {
				contender = "1 stream"
			}
			if err := s.sharesOnce(ctx, figure, contender, n, each); err != nil {
				return err
			}
			s.table.against(figure, contender, perSecond, "1 stream", "")
		}
	}
	return nil
}

func (s *stage) sharesOnce(ctx context.Context, figure, contender string, n, each int) error {
	if err := s.fresh(ctx); err != nil {
		return err
	}
	if err := s.forget(ctx, slot); err != nil { // it carries all rows, so that no other stream may carry some
		return err
	}
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("bench_share_%d", i)
	}
	if err := s.together(ctx, names, "", func([]*process, time.Duration) error { return nil }); err != nil { // makes the slots
		return err
	}
	end, err := s.write(ctx, s.o.events, each)
	if err != nil {
		return err
	}
	err = s.together(ctx, names, end, func(daemons []*process, took time.Duration) error {
		memory := 0.0
		for _, p := range daemons {
			peak, err := p.peak()
			if err != nil {
				return err
			}
			memory += peak
		}
		s.table.add(figure, contender, perSecond, float64(s.o.events)/took.Seconds())
		s.table.add(figure, contender, "MiB, peaks of all", memory)
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.whole(ctx); err != nil {
		return err
	}
	return s.forget(ctx, names...)
}

// together runs one daemon a share until each has acknowledged everything up to end; empty: what is committed now.
func (s *stage) together(ctx context.Context, names []string, end string, done func(daemons []*process, took time.Duration) error) error {
	if end == "" {
		if err := s.admin.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
			return err
		}
	}
	began := time.Now()
	var daemons []*process
	defer func() {
		for _, p := range daemons {
			p.kill()
		}
	}()
	for i, name := range names {
		settings := []string{"CDC_SLOT=" + name, "CDC_PUBLICATION=" + name}
		if len(names) > 1 {
			settings = append(settings, fmt.Sprintf("CDC_SHARE=%d/%d", i, len(names)))
		}
		p, err := s.daemon(ctx, unix, settings...)
		if err != nil {
			return err
		}
		daemons = append(daemons, p)
	}
	for i, name := range names {
		if err := s.acknowledgedBy(ctx, daemons[i], name, end); err != nil {
			return err
		}
	}
	took := time.Since(began)
	if err := done(daemons, took); err != nil {
		return err
	}
	for _, p := range daemons {
		if err := p.stop(); err != nil {
			return err
		}
	}
	return nil
}

// forget removes streams whose daemons have ended.
func (s *stage) forget(ctx context.Context, names ...string) error {
	for _, name := range names {
		err := poll(ctx, 20*time.Millisecond, time.Minute, func() (bool, error) {
			var active bool
			err := s.admin.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, name).Scan(&active)
			return !active, err
		})
		if err != nil {
			return err
		}
		if err := s.sql(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, name); err != nil {
			return err
		}
		for _, table := range []string{"batch", "incident", "quarantine", "redelivery", "stream"} {
			if err := s.sql(ctx, `DELETE FROM sluicebox.`+table+` WHERE slot = $1`, name); err != nil {
				return err
			}
		}
		if name != slot {
			if err := s.sql(ctx, `DROP PUBLICATION `+name); err != nil {
				return err
			}
		}
	}
	return nil
}
