package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// watchOracle holds what must hold at any time, until ctx is done.
func (s *stage) watchOracle(ctx context.Context) {
	const interval = 300 * time.Millisecond
	checks := []func(context.Context) error{s.oracle.once, s.oracle.tail, s.oracle.marks, s.oracle.tail, s.oracle.flushed, s.oracle.tail}
	for n := 0; sleep(ctx, interval); n++ {
		func() {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			_ = checks[n%len(checks)](ctx) // a store that is away at the moment; what was found is reported
		}()
	}
}

// Bounds of a daemon. Two batches of 2000 events and what a Go program needs anyway are far below them.
const (
	mostResident    = 160 << 20 // bytes
	mostGoroutines  = 60
	mostFiles       = 60
	mostConnections = 8 // six of the pool, the lock, the stream
)

// mostResident is the bound of memory. The race detector multiplies what a program needs.
func (s *stage) mostResident() int64 {
	const shadow = 8
	if s.o.race {
		return shadow * mostResident
	}
	return mostResident
}

// peaks are the most that any daemon has used.
type peaks struct {
	Resident, Goroutines, Files int64
}

// watchBounds holds that daemons stay small, until ctx is done.
func (s *stage) watchBounds(ctx context.Context) {
	for sleep(ctx, 2*time.Second) {
		for _, seat := range s.daemons {
			status, text := s.get(ctx, seat, "/metrics")
			if status != 200 {
				continue
			}
			resident, goroutines, files := metric(text, "process_resident_memory_bytes"), metric(text, "go_goroutines"), metric(text, "process_open_fds")
			if resident > s.mostResident() || goroutines > mostGoroutines || files > mostFiles {
				s.violate(fmt.Sprintf("bounds: %s has %d MiB, %d goroutines, %d files", seat.name, resident>>20, goroutines, files))
			}
			s.mu.Lock()
			s.peak.Resident, s.peak.Goroutines, s.peak.Files = max(s.peak.Resident, resident), max(s.peak.Goroutines, goroutines), max(s.peak.Files, files)
			s.mu.Unlock()
		}
	}
}

// metric reads a number from what Prometheus would.
func metric(text, name string) int64 {
	match := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
	if match == nil {
		return 0
	}
	value, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		return 0
	}
	return int64(value)
}

// checkHealth holds that /readyz tells the truth while everything is well: one daemon streams, the others stand by, the API is ready.
func (s *stage) checkHealth(ctx context.Context) {
	var said []string
	well := poll(ctx, s.o.recovery, func() bool {
		streaming, ready, running := 0, 0, 0
		said = nil
		for _, seat := range s.daemons {
			if seat.process() == nil {
				continue
			}
			running++
			status, text := s.get(ctx, seat, "/readyz")
			said = append(said, fmt.Sprintf("%s: %d %s", seat.name, status, strings.TrimSpace(text)))
			if status == 200 && strings.HasPrefix(text, "streaming") {
				streaming++
			}
			if status == 200 {
				ready++
			}
		}
		status, text := s.get(ctx, s.api, "/readyz")
		said = append(said, fmt.Sprintf("api: %d %s", status, strings.TrimSpace(text)))
		return streaming == 1 && ready == running && status == 200
	})
	if !well && ctx.Err() == nil {
		s.violate("health: everything is healed, and /readyz says: " + strings.Join(said, "; "))
	}
	var connections int64
	well = poll(ctx, s.o.recovery, func() bool {
		err := s.admin.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE usename = $1`, daemonRole).Scan(&connections)
		return err == nil && connections <= int64(mostConnections*len(s.daemons))
	})
	if !well && ctx.Err() == nil {
		s.violate(fmt.Sprintf("bounds: the daemons have %d connections to Postgres", connections))
	}
}

// checkEnd holds what can be told at the end alone.
func (s *stage) checkEnd(ctx context.Context) {
	if err := s.checkUsers(ctx); err != nil {
		s.violate(fmt.Sprintf("campaign: %v", err))
	}
	if err := s.checkColumns(ctx); err != nil {
		s.violate(fmt.Sprintf("campaign: %v", err))
	}
}

// watchProgress says every two seconds how far the run is: in one line on a terminal, in lines otherwise.
func (s *stage) watchProgress(ctx context.Context) {
	began, end := time.Now(), "\n"
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		end = "\r"
	}
	for sleep(ctx, 2*time.Second) {
		fmt.Fprintf(os.Stderr, "%s: %d of %d faults, %d events written, %d violations%s",
			time.Since(began).Round(time.Second), s.injected(), s.o.faults, s.journal.len()-1, len(s.violations()), end)
	}
}
