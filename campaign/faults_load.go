package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// writerFaults are transactions that are hard to carry.
func writerFaults() []fault {
	once := func(s shape) injection {
		return func(ctx context.Context, stage *stage, random *rand.Rand) (func(context.Context) error, error) {
			return nil, stage.load.once(ctx, random.Uint64(), s)
		}
	}
	return []fault{
		{name: "large transaction", group: "writers", hold: brief(), inject: once(shape{name: "large", write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return w.insert(ctx, tx, w.l.s.o.large)
		}})},
		{name: "large rollback", group: "writers", hold: brief(), inject: once(shape{name: "large rollback", abort: true, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return nil, w.ghosts(ctx, tx, w.l.s.o.large)
		}})},
		{name: "many savepoints", group: "writers", hold: brief(), inject: once(shape{name: "many savepoints", write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			const savepoints = 300
			return w.savepoints(ctx, tx, savepoints)
		}})},
		{name: "open for long with low ids", group: "writers", hold: brief(), inject: once(shape{name: "open for long", write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			const pause = 4 * time.Second
			keys, err := w.insert(ctx, tx, 20)
			if err != nil {
				return keys, err
			}
			sleep(ctx, pause)
			more, err := w.insert(ctx, tx, 20)
			return append(keys, more...), err
		}})},
	}
}

// hugeFaults are transactions of a size that takes minutes. Nothing else is broken meanwhile, since Postgres would roll them back.
func hugeFaults() []fault {
	const million, savepoints, limit = 1_000_000, 100_000, 20 * time.Minute
	// in writes many rows, some at a time: they are in memory before they are sent.
	in := func(rows int, some func(n int) error) error {
		const atOnce = 20_000
		for ; rows > 0; rows -= atOnce {
			if err := some(min(rows, atOnce)); err != nil {
				return err
			}
		}
		return nil
	}
	once := func(s shape) injection {
		s.limit = limit
		return func(ctx context.Context, stage *stage, random *rand.Rand) (func(context.Context) error, error) {
			return nil, stage.load.once(ctx, random.Uint64(), s)
		}
	}
	return []fault{
		{name: "transaction of 5 million rows", alone: true, needs: needsHuge, inject: once(shape{name: "huge", write: func(ctx context.Context, w *writer, tx pgx.Tx) (keys []uint64, err error) {
			err = in(5*million, func(n int) error {
				more, err := w.insert(ctx, tx, n)
				keys = append(keys, more...)
				return err
			})
			return keys, err
		}})},
		{name: "rollback of a million rows", alone: true, needs: needsHuge, inject: once(shape{name: "huge rollback", abort: true, write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return nil, in(million, func(n int) error { return w.ghosts(ctx, tx, n) })
		}})},
		{name: "100 thousand savepoints", alone: true, needs: needsHuge, inject: once(shape{name: "huge savepoints", write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
			return w.savepoints(ctx, tx, savepoints)
		}})},
	}
}

// apiFaults break the service that writes.
func apiFaults() []fault {
	end := func(signal syscall.Signal) injection {
		return func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
			s.api.end(ctx, signal)
			return nil, nil
		}
	}
	return []fault{
		{name: "api killed", group: "api", hold: brief(), inject: end(syscall.SIGKILL)},
		{name: "api told to end", group: "api", hold: brief(), inject: end(syscall.SIGTERM)},
		{name: "api killed within its transaction", group: "api", hold: brief(), inject: killAPI},
		{name: "50 requests with one key", group: "api", hold: brief(), inject: oneKey},
	}
}

// killAPI kills the API between its insert of a user and that of the event.
func killAPI(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	return nil, pgx.BeginFunc(ctx, s.admin, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `LOCK TABLE event_outbox IN SHARE MODE`); err != nil {
			return err
		}
		waits := poll(ctx, 3*time.Second, func() bool {
			var n int
			err := s.admin.QueryRow(ctx, `
SELECT count(*) FROM pg_stat_activity WHERE application_name = 'sluicebox api' AND wait_event_type = 'Lock' AND query LIKE '%event_outbox%'`).Scan(&n)
			return err == nil && n > 0
		})
		if !waits {
			return errors.New("no request is within its transaction")
		}
		s.api.end(ctx, syscall.SIGKILL)
		return nil
	})
}

// oneKey sends the same request many times at once.
func oneKey(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	const requests = 50
	s.load.gate.RLock()
	defer s.load.gate.RUnlock()
	key := s.load.newUser()
	var mu sync.Mutex
	var all sync.WaitGroup
	answers := map[string]int{}
	for range requests {
		all.Go(func() {
			status, body := s.load.postUser(ctx, key)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case status == http.StatusCreated:
				answers[body]++
			case status != 0 && status < http.StatusInternalServerError:
				s.violate(fmt.Sprintf("api: one of many requests with the same key was answered with %d: %.300s", status, body))
			}
		})
	}
	all.Wait()
	s.load.ended(key, len(answers) > 0)
	if len(answers) > 1 {
		s.violate(fmt.Sprintf("api: requests with the same key got %d different answers", len(answers)))
	}
	if len(answers) == 0 {
		return nil, errors.New("the API did not answer")
	}
	return nil, nil
}
