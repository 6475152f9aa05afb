package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/outbox"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// open returns a pool on a fresh database that has the outbox.
func open(tb testing.TB) *pgxpool.Pool {
	tb.Helper()
	return testdb.Migrated(tb).Postgres(tb)
}

func publish(tb testing.TB, pool *pgxpool.Pool, events ...outbox.Event) {
	tb.Helper()
	if err := pgx.BeginFunc(tb.Context(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(tb.Context(), `SET LOCAL ROLE sluicebox_api`); err != nil { // it may insert, and not read
			return err
		}
		return outbox.Publish(tb.Context(), tx, events...)
	}); err != nil {
		tb.Fatal(err)
	}
}

type stored struct {
	Type, Environment, Context string
	Version                    int
	Trace                      *string
	Processed                  bool
	At                         time.Time
}

func rows(tb testing.TB, pool *pgxpool.Pool) []stored {
	tb.Helper()
	found, err := pool.Query(tb.Context(), `
		SELECT event_type, environment, event_context::text, metadata_version, trace_context, processed, event_date_time
		FROM event_outbox ORDER BY id`)
	if err != nil {
		tb.Fatal(err)
	}
	all, err := pgx.CollectRows(found, pgx.RowToStructByPos[stored])
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

func TestPublish(t *testing.T) {
	t.Parallel()
	trace := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	at := time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.FixedZone("", 3600))

	t.Run("every field is stored as given", func(t *testing.T) {
		t.Parallel()
		pool := open(t)
		publish(t, pool, outbox.Event{
			Type: "user has been created", Time: at, Environment: "test", MetadataVersion: 2147483647, TraceContext: trace,
			Context: map[string]string{"name": "Zoë \\ \"'\U0001F600\u2028<&>"},
		})
		want := []stored{{
			Type: "user has been created", Environment: "test", Context: "{\"name\": \"Zoë \\\\ \\\"'\U0001F600\u2028<&>\"}",
			Version: 2147483647, Trace: &trace, At: at.Truncate(time.Microsecond),
		}}
		if diff := cmp.Diff(want, rows(t, pool)); diff != "" {
			t.Errorf("rows (-want +got):\n%s", diff)
		}
	})

	t.Run("zero values mean the defaults", func(t *testing.T) {
		t.Parallel()
		pool := open(t)
		before := time.Now()
		publish(t, pool, outbox.Event{Type: "t", Environment: "test"})
		got := rows(t, pool)[0]
		if got.At.Before(before.Add(-time.Second)) || got.At.After(time.Now().Add(time.Second)) {
			t.Errorf("the time is %s, not now", got.At)
		}
		got.At = time.Time{}
		if diff := cmp.Diff(stored{Type: "t", Environment: "test", Context: "{}", Version: 1}, got); diff != "" {
			t.Errorf("row (-want +got):\n%s", diff)
		}
	})

	t.Run("raw JSON passes through, and any JSON is a context", func(t *testing.T) {
		t.Parallel()
		pool := open(t)
		contexts := []string{`{"n": 12345678901234567890123.45}`, `[1, null]`, `"\u00e9\ud83d\ude00\\u0000"`, `null`}
		for _, context := range contexts {
			publish(t, pool, outbox.Event{Type: "t", Environment: "test", Context: json.RawMessage(context)})
		}
		contexts[2] = `"é😀\\u0000"`
		for i, row := range rows(t, pool) {
			if row.Context != contexts[i] {
				t.Errorf("context %s, want %s", row.Context, contexts[i])
			}
		}
	})

	t.Run("the first and the last possible time are stored", func(t *testing.T) {
		t.Parallel()
		pool := open(t)
		first, last := time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2262, 4, 10, 23, 59, 59, 999999000, time.UTC)
		publish(t, pool, outbox.Event{Type: "t", Environment: "e", Time: first}, outbox.Event{Type: "t", Environment: "e", Time: last})
		if got := rows(t, pool); !got[0].At.Equal(first) || !got[1].At.Equal(last) {
			t.Errorf("times %s and %s", got[0].At, got[1].At)
		}
	})

	t.Run("a context of the greatest length is stored", func(t *testing.T) {
		t.Parallel()
		pool := open(t)
		publish(t, pool, outbox.Event{Type: "t", Environment: "test", Context: strings.Repeat("x", outbox.MaxContext-2)})
		if got := len(rows(t, pool)[0].Context); got != outbox.MaxContext {
			t.Errorf("%d bytes are stored", got)
		}
	})
}

// TestQueue holds what Queue does otherwise than Publish.
func TestQueue(t *testing.T) {
	t.Parallel()
	event := outbox.Event{Type: "t", Environment: "test", Context: 1}
	send := func(t *testing.T, pool *pgxpool.Pool, events ...outbox.Event) error {
		t.Helper()
		return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			batch := &pgx.Batch{}
			batch.Queue(`CREATE TABLE change ()`)
			if err := outbox.Queue(batch, events...); err != nil {
				return err
			}
			return tx.SendBatch(t.Context(), batch).Close()
		})
	}
	changed := func(t *testing.T, pool *pgxpool.Pool) (exists bool) {
		t.Helper()
		if err := pool.QueryRow(t.Context(), `SELECT to_regclass('change') IS NOT NULL`).Scan(&exists); err != nil {
			t.Fatal(err)
		}
		return exists
	}

	t.Run("the change and its events are stored", func(t *testing.T) {
		t.Parallel()
		pool := open(t)
		if err := send(t, pool, event, event); err != nil || !changed(t, pool) || len(rows(t, pool)) != 2 {
			t.Errorf("error %v, rows %v", err, rows(t, pool))
		}
	})
	t.Run("an invalid event queues nothing", func(t *testing.T) {
		t.Parallel()
		batch := &pgx.Batch{}
		if err := outbox.Queue(batch, event, outbox.Event{}); !errors.As(err, new(*outbox.InvalidError)) || batch.Len() != 0 {
			t.Errorf("error %v, %d are queued", err, batch.Len())
		}
	})
	t.Run("no events are no statement", func(t *testing.T) {
		t.Parallel()
		batch := &pgx.Batch{}
		if err := outbox.Queue(batch); err != nil || batch.Len() != 0 {
			t.Errorf("error %v, %d are queued", err, batch.Len())
		}
	})
	t.Run("an event that a trigger swallows is an error, and nothing is committed", func(t *testing.T) {
		t.Parallel()
		pool := open(t)
		_, err := pool.Exec(t.Context(), `
			CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
			CREATE TRIGGER swallow BEFORE INSERT ON event_outbox FOR EACH ROW EXECUTE FUNCTION swallow()`)
		if err != nil {
			t.Fatal(err)
		}
		if err := send(t, pool, event); err == nil || err.Error() != "publish 1 events: the database took 0" || changed(t, pool) {
			t.Errorf("error %v, the change is committed: %t", err, changed(t, pool))
		}
	})
}

func TestTransactions(t *testing.T) {
	t.Parallel()
	pool := open(t)
	event := outbox.Event{Type: "t", Environment: "test"}

	t.Run("a rolled-back transaction leaves nothing", func(t *testing.T) {
		broken := errors.New("the change failed")
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if err := outbox.Publish(t.Context(), tx, event); err != nil {
				return err
			}
			return broken
		})
		if !errors.Is(err, broken) || len(rows(t, pool)) != 0 {
			t.Errorf("error %v, rows %v", err, rows(t, pool))
		}
	})

	t.Run("a transaction goes on after an invalid event, which leaves nothing", func(t *testing.T) {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if err := outbox.Publish(t.Context(), tx, event, outbox.Event{}); !errors.As(err, new(*outbox.InvalidError)) {
				return fmt.Errorf("want an invalid event, got %w", err)
			}
			_, err := tx.Exec(t.Context(), `SELECT 1`)
			return err
		})
		if err != nil || len(rows(t, pool)) != 0 {
			t.Errorf("error %v, rows %v", err, rows(t, pool))
		}
	})

	t.Run("a refusal of the database keeps its SQLSTATE", func(t *testing.T) {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `DROP TABLE event_outbox`); err != nil {
				return err
			}
			return outbox.Publish(t.Context(), tx, event)
		})
		var state interface{ SQLState() string }
		if !errors.As(err, &state) || state.SQLState() != "42P01" || !strings.HasPrefix(err.Error(), "publish 1 events: ") {
			t.Errorf("error %v", err)
		}
	})
}

func TestIDsFollowTheOrderOfTheArguments(t *testing.T) {
	t.Parallel()
	pool := open(t)
	const n = 5000
	events := make([]outbox.Event, n)
	for i := range events {
		// Types and times run against the order of the arguments, so that no other order can pass for it.
		events[i] = outbox.Event{
			Type: fmt.Sprintf("t%04d", n-i), Environment: "test", Context: i, Time: time.Unix(int64(n-i)*1000, 0),
		}
	}
	publish(t, pool, events...)
	all := rows(t, pool)
	if len(all) != n {
		t.Fatalf("%d rows, want %d", len(all), n)
	}
	for i, row := range all {
		if row.Context != fmt.Sprint(i) {
			t.Fatalf("row %d is event %s", i, row.Context)
		}
	}
}

// trips counts how often a connection turns from writing to reading.
type trips struct {
	net.Conn
	wrote, count atomic.Int64
}

func (c *trips) Write(b []byte) (int, error) {
	c.wrote.Store(1)
	return c.Conn.Write(b)
}

func (c *trips) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.count.Add(c.wrote.Swap(0))
	}
	return n, err
}

func TestManyEventsAreOneRoundTrip(t *testing.T) {
	t.Parallel()
	t.Run("Publish", func(t *testing.T) {
		t.Parallel()
		holdOneTrip(t, func(tx pgx.Tx, events []outbox.Event) error { return outbox.Publish(t.Context(), tx, events...) })
	})
	t.Run("Queue, with the change", func(t *testing.T) {
		t.Parallel()
		holdOneTrip(t, func(tx pgx.Tx, events []outbox.Event) error {
			batch := &pgx.Batch{}
			batch.Queue(`SELECT 1`)
			if err := outbox.Queue(batch, events...); err != nil {
				return err
			}
			return tx.SendBatch(t.Context(), batch).Close()
		})
	})
}

func holdOneTrip(t *testing.T, send func(tx pgx.Tx, events []outbox.Event) error) {
	t.Helper()
	config := open(t).Config().ConnConfig
	var wire *trips
	dial := config.DialFunc
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		wire = &trips{Conn: conn}
		return wire, err
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	event := outbox.Event{Type: "t", Environment: "test", Context: "some more than nothing"}
	for _, n := range []int{1, 1, 100} { // the first prepares the statement, once a connection
		before := wire.count.Load()
		events := make([]outbox.Event, n)
		for i := range events {
			events[i] = event
		}
		if err := send(tx, events); err != nil {
			t.Fatal(err)
		}
		t.Logf("%d events: %d round trips", n, wire.count.Load()-before)
		if n > 1 && wire.count.Load()-before != 1 {
			t.Errorf("%d events took %d round trips", n, wire.count.Load()-before)
		}
	}
}

// TestNumbers holds that [outbox.Publish] refuses the numbers that Postgres refuses, which would end the caller's transaction, and no others.
func TestNumbers(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for _, number := range []string{
		"0", "-0", "1e5", "-1.50E+3", "1E700", "1e-700", "1e131071", "1e131072", "-1e131072", "9.9e131071", "0.01e131073", "0.01e131074", "1000e131068",
		"1000e131069", "1e-16383", "1e-16384", "1.0e-16382", "1.0e-16383", "0e-16383", "0e-16384", "0.00e-16381", "0.00e-16382", "0e200000",
		"0.0e1073741822", "0e9999999999", "1e-1073741823", "1e99999999999999999999", "1e00000000000000000000000000000001",
		strings.Repeat("9", 131072), strings.Repeat("9", 131073), "0." + strings.Repeat("9", 16383), "0." + strings.Repeat("9", 16384),
	} {
		content := `{"a1e999999": [` + number + `, "1e999999"]}`
		_, wrong := pool.Exec(t.Context(), `SELECT $1::text::jsonb`, content)
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			return outbox.Publish(t.Context(), tx, outbox.Event{Type: "t", Environment: "e", Context: json.RawMessage(content)})
		})
		refused := errors.As(err, new(*outbox.InvalidError))
		if refused != (wrong != nil) || !refused && err != nil {
			t.Errorf("%.40s: published: %v; Postgres: %.100v", number, err, wrong)
		}
	}
}
