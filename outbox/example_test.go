package outbox_test

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/outbox"
)

// An event is published in the transaction of the change that it tells of.
func ExamplePublish() {
	createUser := func(ctx context.Context, pool *pgxpool.Pool, email string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO users (email, first_name, last_name) VALUES ($1, 'Ada', 'Lovelace')`, email)
			if err != nil {
				return err
			}
			return outbox.Publish(ctx, tx, outbox.Event{
				Type:        "user has been created",
				Environment: "production",
				Context:     map[string]string{"email": email},
			})
		})
	}
	_ = createUser
}

// A batch takes the change and its event to the database in one round trip.
func ExampleQueue() {
	createUser := func(ctx context.Context, pool *pgxpool.Pool, email string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(`INSERT INTO users (email, first_name, last_name) VALUES ($1, 'Ada', 'Lovelace')`, email)
			if err := outbox.Queue(batch, outbox.Event{
				Type:        "user has been created",
				Environment: "production",
				Context:     map[string]string{"email": email},
			}); err != nil {
				return err
			}
			return tx.SendBatch(ctx, batch).Close()
		})
	}
	_ = createUser
}
