package main

import (
	"context"
	"fmt"
	"time"
)

// memory measures the daemon's peak where much comes at once.
func (s *stage) memory(ctx context.Context) error {
	if err := s.largeTransaction(ctx); err != nil {
		return err
	}
	return s.pausedSink(ctx)
}

func (s *stage) largeTransaction(ctx context.Context) error {
	figure := fmt.Sprintf("memory, one transaction of %s rows, socket", number(float64(s.o.huge)))
	if err := s.fresh(ctx); err != nil {
		return err
	}
	end, err := s.write(ctx, s.o.huge, s.o.huge)
	if err != nil {
		return err
	}
	return s.drainDaemon(ctx, figure, s.o.huge, unix, end, "large-transaction")
}

// pausedSink holds ClickHouse for as long as the run lasts, while events are written.
func (s *stage) pausedSink(ctx context.Context) error {
	const rate, each = 10_000, 100
	figure := fmt.Sprintf("memory, ClickHouse paused for %d s at %s events/s, socket", s.o.seconds, number(rate))
	p, err := s.running(ctx, unix)
	if err != nil {
		return err
	}
	defer p.kill()
	s.ch.Pause()
	timed, cancel := context.WithTimeout(ctx, time.Duration(s.o.seconds)*time.Second)
	defer cancel()
	_, _, err = s.offer(timed, rate, each, nil)
	s.ch.Resume()
	if err != nil {
		return err
	}
	if err := s.caughtUp(ctx, p); err != nil {
		return err
	}
	peak, err := p.peak()
	if err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	s.table.add(figure, "cdc", peakMiB, peak).aim("≤ 100")
	return s.whole(ctx)
}
