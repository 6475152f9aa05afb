package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"time"
)

// result is the line of the ledger that a run leaves.
type result struct {
	Date       string           `json:"date"`
	Commit     string           `json:"commit"`
	Seed       uint64           `json:"seed"`
	Versions   versions         `json:"versions"`
	Seconds    float64          `json:"seconds"`
	Events     int64            `json:"events"` // committed
	Faults     int              `json:"faults"`
	ByKind     map[string]int   `json:"faults_by_kind"`
	Recovery   quantiles        `json:"recovery_seconds"` // from the end of a fault to an event that was committed since, in ClickHouse
	Peak       peaks            `json:"peak"`             // of a daemon: bytes, goroutines, files
	Looks      map[string]int64 `json:"looks"`            // of the oracle, while the run lasted
	Violations int              `json:"violations"`
	Found      []string         `json:"found,omitempty"` // the first violations
}

type versions struct {
	Postgres   string `json:"postgres"`
	ClickHouse string `json:"clickhouse"`
	Go         string `json:"go"`
	Cores      int    `json:"cores"`
}

type quantiles struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func (s *stage) result(ctx context.Context, began time.Time) *result {
	r := &result{Date: began.UTC().Format(time.RFC3339), Seconds: time.Since(began).Round(time.Second / 10).Seconds()}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r.Versions = versions{Go: runtime.Version(), Cores: runtime.NumCPU()}
	// What can't be asked stays empty: the run has its result by then.
	_ = s.scan(ctx, []any{&r.Versions.Postgres, &r.Events}, `SELECT current_setting('server_version'), (SELECT count(*) FROM event_outbox)`)
	_ = s.click.QueryRow(ctx, `SELECT version()`).Scan(&r.Versions.ClickHouse)
	looked := &s.oracle.looked
	r.Looks = map[string]int64{"count": looked.once.Load(), "marks": looked.marks.Load(), "flushed": looked.flushed.Load()}
	found := s.violations()
	s.mu.Lock()
	defer s.mu.Unlock()
	r.ByKind, r.Peak, r.Violations = maps.Clone(s.happened), s.peak, len(found)
	r.Found = found[:min(len(found), 10)]
	for _, n := range r.ByKind {
		r.Faults += n
	}
	r.Recovery = quantilesOf(s.recovery)
	return r
}

func quantilesOf(took []time.Duration) quantiles {
	if len(took) == 0 {
		return quantiles{}
	}
	took = slices.Sorted(slices.Values(took))
	at := func(share float64) float64 {
		return took[min(int(share*float64(len(took))), len(took)-1)].Round(time.Millisecond).Seconds()
	}
	return quantiles{P50: at(0.5), P99: at(0.99), Max: at(1)}
}

func (r *result) String() string {
	return fmt.Sprintf("%d faults of %d kinds in %.0f s, %d events committed, recovery p50 %.1f s, p99 %.1f s, %d violations",
		r.Faults, len(r.ByKind), r.Seconds, r.Events, r.Recovery.P50, r.Recovery.P99, r.Violations)
}

// append adds the line to the ledger.
func (r *result) append(path string) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	defer func() { _ = file.Close() }() // what was written is checked
	if _, err := file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	return nil
}
