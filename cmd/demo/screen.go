package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// result is what the demo found. Its JSON is for scripts.
type result struct {
	Users         int64   `json:"users_created"`
	UserRows      int64   `json:"users_in_postgres"`
	Events        int64   `json:"events_in_postgres"`
	Processed     int64   `json:"events_processed"`
	Rows          int64   `json:"rows_in_clickhouse"`
	UniqueIDs     int64   `json:"unique_ids_in_clickhouse"`
	Batches       int64   `json:"batches"`
	CreateSeconds float64 `json:"create_seconds"`
	P50           float64 `json:"commit_to_queryable_p50_seconds"`
	P99           float64 `json:"commit_to_queryable_p99_seconds"`
	Agrees        bool    `json:"counts_agree"`
}

// judge holds every count against the others.
func (r *result) judge(users int) {
	r.Agrees = true
	for _, n := range []int64{r.Users, r.UserRows, r.Events, r.Processed, r.Rows, r.UniqueIDs} {
		r.Agrees = r.Agrees && n == int64(users)
	}
}

// screen is where the demo speaks to a person: standard output, or standard error when that is for JSON.
type screen struct {
	out      io.Writer
	json     bool
	terminal bool

	mu     sync.Mutex
	told   time.Time // when progress was last shown
	midway bool      // the cursor stands at the end of a progress line
}

func newScreen(asJSON bool) *screen {
	file := os.Stdout
	if asJSON {
		file = os.Stderr
	}
	return &screen{out: file, json: asJSON, terminal: term.IsTerminal(int(file.Fd()))}
}

func (s *screen) print(format string, args ...any) {
	_, _ = fmt.Fprintf(s.out, format, args...) // there is nowhere to say that nobody reads
}

// step says what happens next.
func (s *screen) step(format string, args ...any) {
	s.done()
	arrow := "==> "
	if s.terminal && os.Getenv("NO_COLOR") == "" {
		arrow = "\x1b[36m==>\x1b[0m "
	}
	s.print(arrow+format+"\n", args...)
}

// progress shows how far a step is: one line that changes on a terminal, a line every two seconds elsewhere.
func (s *screen) progress(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	interval := 2 * time.Second
	if s.terminal {
		interval = 100 * time.Millisecond
	}
	if time.Since(s.told) < interval {
		return
	}
	s.told = time.Now()
	if s.terminal {
		s.midway = true
		s.print("\r\x1b[K    "+format, args...)
		return
	}
	s.print("    "+format+"\n", args...)
}

// done ends a progress line.
func (s *screen) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.midway {
		s.print("\n")
	}
	s.midway = false
}

func (s *screen) summary(r *result) error {
	if s.json {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return fmt.Errorf("print the summary: %w", err)
		}
		return nil
	}
	s.print("\n")
	s.print("  users created over HTTP       %10d   in %.1f s\n", r.Users, r.CreateSeconds)
	s.print("  events in Postgres            %10d   %d of them marked processed\n", r.Events, r.Processed)
	s.print("  rows in ClickHouse            %10d   count()\n", r.Rows)
	s.print("  unique ids in ClickHouse      %10d   uniqExact(id)\n", r.UniqueIDs)
	s.print("  batches                       %10d\n", r.Batches)
	s.print("  commit to queryable             p50 %.0f ms, p99 %.0f ms, as seen by a client that asks every %d ms\n",
		r.P50*1000, r.P99*1000, pollInterval.Milliseconds())
	verdict := "every count agrees: no event is missing, none is there twice"
	if !r.Agrees {
		verdict = "THE COUNTS DO NOT AGREE"
	}
	s.print("\n  %s\n", verdict)
	return nil
}
