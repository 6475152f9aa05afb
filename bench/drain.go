package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// drain measures how fast waiting events are delivered, beside pg_recvlogical throwing the content of the same WAL away: what Postgres
// can send at most. The contenders take turns.
func (s *stage) drain(ctx context.Context) error {
	aims := map[link]string{tcp: "≥ 0.7", unix: "≥ 0.5"}
	for run := range s.o.runs {
		for size := range strings.SplitSeq(s.o.sizes, ",") {
			each, err := strconv.Atoi(size)
			if err != nil || each < 1 {
				return fmt.Errorf("-sizes: %q is no number of events", size)
			}
			for name := range strings.SplitSeq(s.o.links, ",") {
				via := link(name)
				if aims[via] == "" {
					return fmt.Errorf("-links: %q is neither %s nor %s", name, tcp, unix)
				}
				figure := fmt.Sprintf("drain, transactions of %d, %s", each, via)
				if err := s.drainOnce(ctx, figure, s.o.events, each, via, fmt.Sprintf("%s-%d-%d", via, each, run)); err != nil {
					return err
				}
				s.table.against(figure, "cdc", perSecond, "pg_recvlogical", aims[via])
			}
		}
	}
	return nil
}

const (
	perSecond    = "events/s"
	cpuOfMillion = "CPU s / 1M events"
	peakMiB      = "MiB, peak"
)

// drainOnce writes events that the daemon's slot keeps, lets pg_recvlogical read them from a copy of it, and then the daemon.
func (s *stage) drainOnce(ctx context.Context, figure string, events, each int, via link, profile string) error {
	if err := s.fresh(ctx); err != nil {
		return err
	}
	const copied = "bench_recvlogical"
	if err := s.sql(ctx, `SELECT pg_copy_logical_replication_slot($1, $2)`, slot, copied); err != nil {
		return err
	}
	end, err := s.write(ctx, events, each)
	if err != nil {
		return err
	}
	took, err := s.recvlogical(ctx, via, copied, end)
	if err != nil {
		return err
	}
	s.table.add(figure, "pg_recvlogical", perSecond, float64(events)/took.Seconds())
	if err := s.sql(ctx, `SELECT pg_drop_replication_slot($1)`, copied); err != nil {
		return err
	}
	return s.drainDaemon(ctx, figure, events, via, end, profile)
}

// drainDaemon lets the daemon deliver everything up to end.
func (s *stage) drainDaemon(ctx context.Context, figure string, events int, via link, end, profile string) error {
	before, err := s.used(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	p, err := s.daemon(ctx, via)
	if err != nil {
		return err
	}
	stopProfile, err := s.perf(ctx, p, profile)
	if err != nil {
		p.kill()
		return err
	}
	if err := s.acknowledged(ctx, p, end); err != nil {
		p.kill()
		return err
	}
	took := time.Since(began)
	after, err := s.used(ctx)
	if err != nil {
		p.kill()
		return err
	}
	stopProfile()
	peak, err := p.peak()
	if err != nil {
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	s.table.add(figure, "cdc", perSecond, float64(events)/took.Seconds())
	s.table.add(figure, "cdc", cpuOfMillion, p.cpu.Seconds()*1e6/float64(events)).aim("≤ 6")
	s.table.add(figure, "cdc", peakMiB, peak).aim("≤ 100")
	s.table.shares(figure, cpuOfMillion, 1e6/float64(events), after.since(before))
	return s.whole(ctx)
}

// recvlogical reads a slot up to a position and throws everything away.
func (s *stage) recvlogical(ctx context.Context, via link, name, end string) (time.Duration, error) {
	path, err := find("pg_recvlogical", "apt-get install postgresql-client")
	if err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = command(ctx, s.dir, path, "--dbname", s.url(via), "--slot", name, "--start", "--file", "/dev/null", "--no-loop", "--endpos", end,
		"--option", "proto_version=1", "--option", "publication_names=sluicebox")
	return time.Since(began), err
}

// perf records a profile of the daemon, if one was asked for.
func (s *stage) perf(ctx context.Context, p *process, name string) (stop func(), err error) {
	if s.o.profile == "" {
		return func() {}, nil
	}
	recorder, err := launch(ctx, "perf", "perf", []string{
		"record", "--quiet", "-g", "--pid", fmt.Sprint(p.cmd.Process.Pid), "--output", filepath.Join(s.o.profile, name+".perf"),
	}, nil)
	if err != nil {
		return nil, err
	}
	return func() { _ = recorder.stop() }, nil
}
