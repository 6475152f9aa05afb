// Package outbox is the contract between a service and the daemon that delivers its events.
//
// A service tells what happened by writing an event in the transaction of the change itself. Either both are committed or
// neither is, so there is no event of a change that was rolled back, and no change without its event. Once committed, the
// daemon carries the event to ClickHouse, exactly once; the service needs to know nothing of that.
//
//	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
//		if _, err := tx.Exec(ctx, "INSERT INTO users …"); err != nil {
//			return err
//		}
//		return outbox.Publish(ctx, tx, outbox.Event{
//			Type: "user has been created", Environment: "production", Context: user,
//		})
//	})
//
// # Other drivers and languages
//
// The contract is the table, and [Publish] is a convenience. Whatever can write to Postgres can write events, in the
// transaction of its change:
//
//	INSERT INTO event_outbox (event_type, environment, event_context)
//	VALUES ('user has been created', 'production', '{"email": "ada@example.com"}');
//
// These columns have defaults: event_date_time (now(), the start of the transaction), metadata_version (1) and trace_context
// (none; else a W3C traceparent). Leave id, processed and processed_at alone. COPY works too. Rows are never updated or deleted
// by a service.
//
// Events are delivered in commit order, and those of one transaction in the order in which they were written. An id says
// nothing about that order, because transactions commit in another order than they take ids.
package outbox
