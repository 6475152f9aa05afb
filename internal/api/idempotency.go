package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	// expireEvery is how often keys that are older than a day are removed.
	expireEvery = time.Minute
	// expireBatch is how many of them at once: few enough for a transaction of milliseconds.
	expireBatch = 1000
)

// idempotency is the promise that a request with this key is done once.
type idempotency struct {
	key  string // empty: no promise
	hash []byte // tells the request from others with the same key
}

// requestHash tells requests to create a user from each other.
func requestHash(body []byte) []byte {
	hash := sha256.New()
	hash.Write([]byte("POST /users\n"))
	hash.Write(body)
	return hash.Sum(nil)
}

// claim takes the key for this transaction. If another transaction took it before, claim waits for its end, and returns its answer
// if it committed; if it rolled back, the key is ours.
//
// It has to be the first statement of the transaction: were the user inserted first, a second request with the same key would wait
// for the e-mail, and then find it taken.
func (i idempotency) claim(ctx context.Context, tx pgx.Tx) (first created, found bool, err error) {
	for {
		tag, err := tx.Exec(ctx, `
			INSERT INTO idempotency_key (key, request_hash, status, location, response) VALUES ($1, $2, 0, '', '')
			ON CONFLICT (key) DO NOTHING`, i.key, i.hash)
		if err != nil {
			return created{}, false, fmt.Errorf("claim idempotency key: %w", err)
		}
		if tag.RowsAffected() == 1 {
			return created{}, false, nil
		}
		first, same := created{replayed: true}, false
		err = tx.QueryRow(ctx, `
			SELECT request_hash = $2, status, location, response FROM idempotency_key WHERE key = $1`, i.key, i.hash).
			Scan(&same, &first.status, &first.location, &first.body)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			continue // expired between the two statements
		case err != nil:
			return created{}, false, fmt.Errorf("read idempotency key: %w", err)
		case !same:
			return created{}, false, errKeyReused
		default:
			return first, true, nil
		}
	}
}

// remember stores the answer under the key that claim took.
func (i idempotency) remember(ctx context.Context, tx pgx.Tx, first created) error {
	if _, err := tx.Exec(ctx, `UPDATE idempotency_key SET status = $2, location = $3, response = $4 WHERE key = $1`,
		i.key, first.status, first.location, first.body); err != nil {
		return fmt.Errorf("remember answer: %w", err)
	}
	return nil
}

// Expire removes up to 1000 idempotency keys that are older than 24 hours, and returns how many.
func (a *API) Expire(ctx context.Context) (removed int64, err error) {
	err = a.acquire(ctx, func(conn *pgxpool.Conn) error {
		tag, err := conn.Exec(ctx, `
			DELETE FROM idempotency_key WHERE key IN (
				SELECT key FROM idempotency_key WHERE created_at < now() - interval '24 hours'
				ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)`, expireBatch)
		removed = tag.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("expire idempotency keys: %w", err)
	}
	return removed, nil
}

// expireAlways calls Expire every minute until ctx is cancelled. That a call fails is told, and is no reason to stop: keys can wait.
func (a *API) expireAlways(ctx context.Context) {
	ticker := time.NewTicker(expireEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		removed, err := int64(expireBatch), error(nil)
		for removed == expireBatch && err == nil {
			removed, err = a.Expire(ctx)
		}
		if err != nil && ctx.Err() == nil {
			a.log.Warn().Err(err).Msg("idempotency keys are not removed; trying again")
		}
	}
}
