package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Event is something that happened, as its writer tells it.
type Event struct {
	// Type says what happened, in the past tense: "user has been created". Required.
	Type string
	// Time is when it happened, from 1900-01-01 to 2262-04-10, kept to the microsecond. Zero: now() of the database, which is the
	// start of the transaction.
	Time time.Time
	// Environment is the deployment of the writer: "production". Required.
	Environment string
	// Context holds the details. It is marshalled to JSON, at most [MaxContext] bytes; [encoding/json.RawMessage] passes
	// through, and nil is {}. It is stored as jsonb, which has no NUL character in a string. What is not UTF-8 in a string of Go becomes
	// U+FFFD, as always in [encoding/json].
	Context any
	// MetadataVersion is the version of the layout of Context, from 1 to 2147483647. Zero: 1.
	MetadataVersion int
	// TraceContext is the W3C traceparent of the request that caused the event, or empty.
	TraceContext string
}

// Tx is a transaction that is open: a [github.com/jackc/pgx/v5.Tx] or a *pgxpool.Tx. Rollback is never called. It is asked
// for because pools and connections, which would commit the event at once and alone, do not have it.
type Tx interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
	Rollback(ctx context.Context) error
}

// insert numbers the events in the order of the arguments: rows are sorted before the identity column takes its values.
const insert = `
INSERT INTO event_outbox (event_type, event_date_time, environment, event_context, metadata_version, trace_context)
SELECT type, coalesce(time, now()), environment, context::jsonb, version, trace
FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[], $5::integer[], $6::text[])
	WITH ORDINALITY AS event (type, time, environment, context, version, trace, ord)
ORDER BY ord`

// Publish writes events in the transaction tx, in the order of the arguments and in one round trip. They are visible, and
// delivered, once the caller commits.
//
// An invalid event gives an [*InvalidError], and then none of the events is sent and the transaction is still usable. After any
// other error Postgres has aborted the transaction.
func Publish(ctx context.Context, tx Tx, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	rows, err := encode(events)
	if err != nil {
		return err
	}
	tag, err := tx.Exec(ctx, insert, rows.args()...)
	if err != nil {
		return fmt.Errorf("publish %d events: %w", len(events), err)
	}
	return complete(tag, events)
}

// Queue is [Publish] for a batch, which makes the change and its events one round trip. The batch is for [pgx.Tx.SendBatch], and its outcome,
// which Close of the results tells, must be known before the transaction is committed. Sent without a transaction, it would be committed
// whether or not all events were stored.
//
// An invalid event gives an [*InvalidError], and then nothing is queued.
func Queue(batch *pgx.Batch, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	rows, err := encode(events)
	if err != nil {
		return err
	}
	batch.Queue(insert, rows.args()...).Exec(func(tag pgconn.CommandTag) error { return complete(tag, events) })
	return nil
}

// complete says whether all events were stored: a trigger or a row policy may swallow some.
func complete(tag pgconn.CommandTag, events []Event) error {
	if tag.RowsAffected() != int64(len(events)) {
		return fmt.Errorf("publish %d events: the database took %d", len(events), tag.RowsAffected())
	}
	return nil
}

// columns are events as Postgres takes them: an array a column, with nil for NULL.
type columns struct {
	types        []string
	times        []*time.Time
	environments []string
	contexts     []string
	versions     []int32
	traces       []*string
}

func (c columns) args() []any {
	return []any{c.types, c.times, c.environments, c.contexts, c.versions, c.traces}
}

func encode(events []Event) (columns, error) {
	var c columns
	var invalid []error
	for i, event := range events {
		content, errs := event.check(i)
		if invalid = append(invalid, errs...); len(invalid) > 0 {
			continue
		}
		c.types = append(c.types, event.Type)
		c.times = append(c.times, unlessZero(event.Time))
		c.environments = append(c.environments, event.Environment)
		c.contexts = append(c.contexts, content)
		c.versions = append(c.versions, int32(max(event.MetadataVersion, 1))) // in range, says check
		c.traces = append(c.traces, unlessZero(event.TraceContext))
	}
	return c, errors.Join(invalid...)
}

// unlessZero returns a pointer to v, or nil, which becomes NULL, if v is the zero value.
func unlessZero[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
