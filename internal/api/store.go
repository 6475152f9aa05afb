package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/outbox"
)

// userCreated is the type of the event that tells of a new user. Readers of the events look for it.
const userCreated = "user has been created"

// acquireTimeout bounds the wait for a connection. It is well below requestTimeout, so that a service with too much to do says so
// early instead of letting clients pile up.
const acquireTimeout = 2 * time.Second

const userColumns = `id, email, first_name, last_name, created_at, updated_at`

// created is the answer to a POST.
type created struct {
	status   int
	location string
	body     []byte
	replayed bool // it is the answer to an earlier request
}

// createUser creates a user and its event, and remembers the answer for the idempotency key, all in one transaction.
func (a *API) createUser(ctx context.Context, user NewUser, trace string, once idempotency) (first created, err error) {
	err = a.acquire(ctx, func(conn *pgxpool.Conn) error {
		if once.key == "" {
			first, err = a.insertUser(ctx, conn, user, trace)
			return err
		}
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			var found bool
			if first, found, err = once.claim(ctx, tx); found || err != nil {
				return err
			}
			if first, err = a.insertUser(ctx, tx, user, trace); err != nil {
				return err
			}
			return once.remember(ctx, tx, first)
		})
	})
	if err != nil {
		return created{}, fmt.Errorf("create user: %w", err)
	}
	return first, nil
}

// sender sends statements together: they are one transaction, or part of the one that it is.
type sender interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

// insertUser makes both in one round trip. Without a transaction around it, Postgres commits at the end of it, which Close waits for.
func (a *API) insertUser(ctx context.Context, to sender, user NewUser, trace string) (created, error) {
	if !outbox.ValidTraceContext(trace) {
		trace = ""
	}
	var stored User
	batch := &pgx.Batch{}
	batch.Queue(`INSERT INTO users (email, first_name, last_name) VALUES ($1, $2, $3) RETURNING `+userColumns,
		user.Email, user.FirstName, user.LastName).Query(func(rows pgx.Rows) (err error) {
		stored, err = pgx.CollectExactlyOneRow(rows, scanUser)
		return err
	})
	if err := outbox.Queue(batch, outbox.Event{
		Type: userCreated, Environment: a.environment, Context: user, TraceContext: trace,
	}); err != nil {
		return created{}, err
	}
	err := to.SendBatch(ctx, batch).Close()
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.ConstraintName == "users_email_key" {
		return created{}, errEmailTaken
	}
	if err != nil {
		return created{}, fmt.Errorf("insert the user and its event: %w", err)
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(stored); err != nil {
		return created{}, fmt.Errorf("encode user: %w", err)
	}
	return created{status: http.StatusCreated, location: fmt.Sprintf("/users/%d", stored.ID), body: body.Bytes()}, nil
}

// user returns one user, or [errNotFound].
func (a *API) user(ctx context.Context, id int64) (User, error) {
	users, err := a.queryUsers(ctx, `SELECT `+userColumns+` FROM users WHERE id = $1`, id)
	if err != nil {
		return User{}, err
	}
	if len(users) == 0 {
		return User{}, errNotFound
	}
	return users[0], nil
}

// users returns the users that follow an id, in the order of their ids.
func (a *API) users(ctx context.Context, after int64, limit int) ([]User, error) {
	return a.queryUsers(ctx, `SELECT `+userColumns+` FROM users WHERE id > $1 ORDER BY id LIMIT $2`, after, limit)
}

func (a *API) queryUsers(ctx context.Context, sql string, args ...any) (users []User, err error) {
	err = a.acquire(ctx, func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		users, err = pgx.CollectRows(rows, scanUser)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("query users: %w", err)
	}
	return users, nil
}

func scanUser(row pgx.CollectableRow) (User, error) {
	user, err := pgx.RowToStructByPos[User](row)
	user.CreatedAt, user.UpdatedAt = user.CreatedAt.UTC(), user.UpdatedAt.UTC()
	return user, err
}

// acquire runs do with a connection of the pool.
func (a *API) acquire(ctx context.Context, do func(*pgxpool.Conn) error) error {
	wait, cancel := context.WithTimeout(ctx, acquireTimeout)
	defer cancel()
	conn, err := a.pool.Acquire(wait)
	if err != nil {
		return fmt.Errorf("wait for a connection: %w", err)
	}
	defer conn.Release()
	return do(conn)
}
