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
