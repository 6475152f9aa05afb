package pipeline

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// memorySink is ClickHouse.
type memorySink struct{ *daemon }

const (
	deadlineAfter = 30 * time.Second
	remembered    = 36 * time.Second // how long a token is: longer than an attempt may take, and no more
)

var errReset = &batch.Failure{Class: batch.Unknown, Err: errGone}

func (s *memorySink) ask(ctx context.Context, name string, effect func() error) error {
	return s.do(ctx, name, errReset, func(trouble) error {
		if time.Now().Before(s.w.down) {
			return errReset
		}
		return effect()
	})
}

func (s *memorySink) Ready(ctx context.Context) (warnings []string, err error) {
	return nil, s.ask(ctx, "ready", func() error { return nil })
}

func (s *memorySink) Clock(ctx context.Context) (now, deadline time.Time, err error) {
	err = s.ask(ctx, "clock", func() error {
		now, deadline = time.Now(), time.Now().Add(deadlineAfter).Truncate(time.Second)
		return nil
	})
	return now, deadline, err
}

func (s *memorySink) Window(ctx context.Context) (n int, err error) {
	return 1000, s.ask(ctx, "window", func() error { return nil })
}

func (s *memorySink) SeesAll(ctx context.Context) (all bool, err error) {
	return true, s.ask(ctx, "sees all", func() error { return nil })
}

func (s *memorySink) Find(ctx context.Context, b *batch.Batch) (found map[int64]struct{}, err error) {
	found = map[int64]struct{}{}
	err = s.ask(ctx, "find", func() error {
		for _, row := range b.Rows {
			if s.w.weak != blindLookUp && s.w.event(row.ID).stored > 0 {
				found[row.ID] = struct{}{}
			}
		}
		return nil
	})
	return found, err
}

func (s *memorySink) Write(ctx context.Context, b *batch.Batch) error {
	rows, token, deadline := rowIDs(b.Rows), b.Token, b.Deadline
	return s.do(ctx, "write", errReset, func(what trouble) error {
		long := s.fault.long
		switch what {
		case landsNever:
			return errReset
		case landsLate:
			s.w.later.Go(func() {
				<-time.After(long)
				s.w.mu.Lock()
				defer s.w.mu.Unlock()
				_ = s.w.insert(rows, token, deadline, false) // nobody hears
			})
			return errReset
		default: // what befalls every call is dealt with
		}
		if time.Now().Before(s.w.down) {
			return errReset
		}
		return s.w.insert(rows, token, deadline, what == losesRows)
	})
}

// insert is what ClickHouse does with a block. The world is locked.
func (w *world) insert(rows []int64, token string, deadline time.Time, losesRows bool) error {
	if bound, known := w.bound[token]; !known {
		w.wrong("rows %v are sent under a token that is in no plan", rows)
	} else if !slices.Equal(bound, rows) {
		w.wrong("rows %v are sent under the token of %v", rows, bound)
	}
	if time.Now().After(deadline) && w.weak != noDeadlines {
		w.say("insert of %v: expired", rows)
		return &batch.Failure{Class: batch.Expired, Err: errors.New("expired")}
	}
	for _, id := range rows {
		if w.poison[id] {
			w.say("insert of %v: refused", rows)
			return &batch.Failure{Class: batch.Data, Err: errors.New("refused")}
		}
	}
	if noted, known := w.tokens[token]; known && time.Since(noted) <= remembered && w.weak != forgetful {
		w.say("insert of %v: known", rows)
		return nil
	}
	w.tokens[token] = time.Now()
	if losesRows {
		return errReset
	}
	w.say("insert of %v: stored", rows)
	for _, id := range rows {
		e := w.event(id)
		if e.stored++; e.stored > 1 {
			w.wrong("row %d is doubled", id)
		}
	}
	return nil
}
