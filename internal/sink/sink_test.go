package sink_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/internal/sink"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
	"github.com/sluicebox/sluicebox/outbox"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// protocols runs a test over both protocols of ClickHouse.
func protocols(t *testing.T, test func(t *testing.T, db *testdb.DB, ch driver.Conn, address string)) {
	t.Helper()
	for _, protocol := range []string{"native", "http"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			db := testdb.Migrated(t)
			address := db.Warehouse
			if protocol == "http" {
				address = db.WarehouseHTTP
			}
			test(t, db, db.ClickHouse(t), address)
		})
	}
}

func open(t *testing.T, address, table string) *sink.ClickHouse {
	t.Helper()
	c, err := sink.New(func() string { return address }, table, "test", sink.DefaultDeadline)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// newBatch is a planned batch of rows with the ids from, from+1, …
func newBatch(t *testing.T, c *sink.ClickHouse, from, rows int) *batch.Batch {
	t.Helper()
	b := batch.NewBuilder(batch.Limits{Rows: rows, Bytes: 1 << 30})
	for i := range rows {
		b.Add(&outbox.Row{
			ID: int64(from + i), Type: "thing has happened", Time: time.Date(2026, 3, 14, 15, 9, 26, 535897000, time.UTC), Environment: "test",
			Context: []byte(`{"a": 1}`), MetadataVersion: 1, Position: outbox.Position{CommitLSN: uint64(1000 + from), Ordinal: uint32(i + 1)},
		})
	}
	sealed := b.Seal(batch.ByRows)
	sealed.Token = uuid.NewString()
	var err error
	if _, sealed.Deadline, err = c.Clock(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sealed
}

func rows(t *testing.T, ch driver.Conn) uint64 {
	t.Helper()
	var n uint64
	if err := ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func classOf(t *testing.T, err error) batch.Class {
	t.Helper()
	failure, ok := errors.AsType[*batch.Failure](err)
	if !ok {
		t.Fatalf("error is %v, want a *batch.Failure", err)
	}
	return failure.Class
}

func TestWrite(t *testing.T) {
	t.Parallel()
	t.Run("a batch that is sent again under its token is stored once", func(t *testing.T) {
		t.Parallel()
		protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
			t.Helper()
			c := open(t, address, "event_log")
			b := newBatch(t, c, 1, 1000)
			for range 3 {
				if err := c.Write(t.Context(), b); err != nil {
					t.Fatal(err)
				}
			}
			if n := rows(t, ch); n != 1000 {
				t.Errorf("%d rows, want 1000", n)
			}
		})
	})
	t.Run("a batch stays one synchronous block that is stored once, whatever the profile says", func(t *testing.T) {
		t.Parallel()
		// Settings in the address would prove nothing: those that go with an insert replace them all.
		server, err := embedded.StartClickHouse(t.Context(), embedded.ClickHouseOptions{Settings: map[string]string{
			"async_insert": "1", "wait_for_async_insert": "0",
			"async_insert_use_adaptive_busy_timeout": "0", "async_insert_busy_timeout_max_ms": "600000",
			"use_strict_insert_block_limits": "1", "max_insert_block_size": "100", "max_insert_block_size_bytes": "1000",
			"min_insert_block_size_rows": "100", "min_insert_block_size_bytes": "1000",
			"insert_deduplicate": "0", "deduplicate_insert": "disable",
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Stop(context.WithoutCancel(t.Context())); err != nil {
				t.Error(err)
			}
		})
		if _, err := migrations.Apply(t.Context(), testdb.New(t).PostgresURL, server.URL("default"), migrations.Single); err != nil {
			t.Fatal(err)
		}
		ch := (&testdb.DB{ClickHouseURL: server.URL("default")}).ClickHouse(t)
		for table, address := range map[string]string{"native": server.URL("default"), "http": server.HTTPURL("default")} {
			t.Run(table, func(t *testing.T) {
				for _, sql := range []string{
					`CREATE TABLE ` + table + ` AS event_log`,
					`ALTER TABLE ` + table + ` ADD COLUMN async Bool MATERIALIZED getSetting('async_insert'),
						ADD COLUMN deduplicate Bool MATERIALIZED getSetting('insert_deduplicate')`,
					`SYSTEM STOP MERGES ` + table, // a part is a block
				} {
					if err := ch.Exec(t.Context(), sql); err != nil {
						t.Fatal(err)
					}
				}
				c := open(t, address, table)
				b := newBatch(t, c, 1, 5000)
				for range 2 {
					if err := c.Write(t.Context(), b); err != nil {
						t.Fatal(err)
					}
				}
				var rows, parts uint64
				if err := ch.QueryRow(t.Context(), `SELECT count(), uniqExact(_part) FROM `+table).Scan(&rows, &parts); err != nil {
					t.Fatal(err)
				}
				if rows != 5000 || parts != 1 {
					t.Errorf("%d rows in %d parts, want 5000 in 1", rows, parts)
				}
				// Not seen in what is stored: the embedded engine has no queue for asynchronous inserts, and insert_deduplicate is for
				// replicated tables.
				var async, deduplicate bool
				if err := ch.QueryRow(t.Context(), `SELECT max(async), min(deduplicate) FROM `+table).Scan(&async, &deduplicate); err != nil {
					t.Fatal(err)
				}
				if async || !deduplicate {
					t.Errorf("async_insert is %v, insert_deduplicate %v", async, deduplicate)
				}
			})
		}
	})
	t.Run("the server refuses a batch whose deadline has passed", func(t *testing.T) {
		t.Parallel()
		protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
			t.Helper()
			c := open(t, address, "event_log")
			b := newBatch(t, c, 1, 10)
			if b.Deadline.IsZero() {
				t.Fatal("the table of the migrations has a deadline constraint; the sink did not see it")
			}
			b.Deadline = time.Now().Add(-time.Second)
			if class := classOf(t, c.Write(t.Context(), b)); class != batch.Expired {
				t.Errorf("class %s, want %s", class, batch.Expired)
			}
			if n := rows(t, ch); n != 0 {
				t.Errorf("%d rows, want 0", n)
			}
		})
	})
	t.Run("the same token with other rows is dropped with a success, which is why tokens are bound to rows", func(t *testing.T) {
		t.Parallel()
		db := testdb.Migrated(t)
		ch := db.ClickHouse(t)
		c := open(t, db.Warehouse, "event_log")
		first, second := newBatch(t, c, 1, 10), newBatch(t, c, 100, 20)
		second.Token = first.Token
		for _, b := range []*batch.Batch{first, second} {
			if err := c.Write(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		if n := rows(t, ch); n != 10 {
			t.Errorf("%d rows; FACTS C3 says 10", n)
		}
	})
	t.Run("a table without a window is warned of", func(t *testing.T) {
		t.Parallel()
		db := testdb.Migrated(t)
		ch := db.ClickHouse(t)
		c := open(t, db.Warehouse, "event_log")
		if warnings, err := c.Ready(t.Context()); err != nil || len(warnings) != 0 {
			t.Fatalf("the table of the migrations: %q, %v", warnings, err)
		}
		if err := ch.Exec(t.Context(), `ALTER TABLE event_log MODIFY SETTING non_replicated_deduplication_window = 0`); err != nil {
			t.Fatal(err)
		}
		warnings, err := c.Ready(t.Context())
		if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "at least once") {
			t.Errorf("warnings %q, %v", warnings, err)
		}
	})
	t.Run("a table with the required columns alone is written to", func(t *testing.T) {
		t.Parallel()
		db := testdb.Migrated(t)
		ch := db.ClickHouse(t)
		if err := ch.Exec(t.Context(), `CREATE TABLE mine (id UInt64, event_type String, event_date_time DateTime64(6), environment String,
			event_context String, metadata_version UInt32, extra String DEFAULT 'x') ENGINE = MergeTree ORDER BY id`); err != nil {
			t.Fatal(err)
		}
		c := open(t, db.Warehouse, "mine")
		if err := c.Write(t.Context(), newBatch(t, c, 1, 10)); err != nil {
			t.Fatal(err)
		}
		var n uint64
		if err := ch.QueryRow(t.Context(), `SELECT count() FROM mine WHERE extra = 'x'`).Scan(&n); err != nil || n != 10 {
			t.Errorf("%d rows, %v; want 10", n, err)
		}
	})
}

func TestFind(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
		t.Helper()
		c := open(t, address, "event_log")
		first, second := newBatch(t, c, 1, 100), newBatch(t, c, 101, 100)
		if err := c.Write(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[*batch.Batch]int{first: 100, second: 0} {
			found, err := c.Find(t.Context(), name)
			if err != nil || len(found) != want {
				t.Errorf("found %d, %v; want %d", len(found), err, want)
			}
		}
		part := *second
		part.Rows, part.Token = part.Rows[:30], uuid.NewString()
		if err := c.Write(t.Context(), &part); err != nil {
			t.Fatal(err)
		}
		found, err := c.Find(t.Context(), second)
		if err != nil || len(found) != 30 {
			t.Errorf("found %d, %v; want 30", len(found), err)
		}
		if err := ch.Exec(t.Context(), `ALTER TABLE event_log UPDATE source = 'another' WHERE id > 100 SETTINGS mutations_sync = 1`); err != nil {
			t.Fatal(err)
		}
		if found, err := c.Find(t.Context(), second); err != nil || len(found) != 0 {
			t.Errorf("found %d of another source, %v", len(found), err)
		}
	})
}

func TestClasses(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
		t.Helper()
		change := func(change func(*url.URL)) string {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			change(u)
			return u.String()
		}
		good := open(t, address, "event_log")
		b := newBatch(t, good, 1, 10)

		for _, c := range []struct {
			name, address, table, hint string
			class                      batch.Class
		}{
			{"nobody listens", change(func(u *url.URL) { u.Host = "127.0.0.1:1" }), "event_log", "is ClickHouse up", batch.Unknown},
			{"wrong password", change(func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "wrong") }), "event_log", "check user and password", batch.Configuration},
			{"no such database", change(func(u *url.URL) { u.Path = "/nowhere" }), "event_log", "create the database", batch.Configuration},
			{"no such table", address, "nothing", "cdc migrate", batch.Configuration},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				err := open(t, c.address, c.table).Write(t.Context(), b)
				if class := classOf(t, err); class != c.class {
					t.Errorf("class %s, want %s: %v", class, c.class, err)
				}
				failure, _ := errors.AsType[*batch.Failure](err)
				if !strings.Contains(failure.Hint, c.hint) {
					t.Errorf("hint %q, want %q in it: %v", failure.Hint, c.hint, err)
				}
				if sink.Denied(err) != (c.name == "wrong password") {
					t.Errorf("Denied is %v", sink.Denied(err))
				}
			})
		}
		t.Run("a cancelled write has an unknown outcome", func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if class := classOf(t, good.Write(ctx, b)); class != batch.Unknown {
				t.Errorf("class %s, want %s", class, batch.Unknown)
			}
		})
		t.Run("a constraint of the operator's own is about the data", func(t *testing.T) {
			t.Parallel()
			if err := ch.Exec(t.Context(), `CREATE TABLE strict AS event_log`); err != nil {
				t.Fatal(err)
			}
			if err := ch.Exec(t.Context(), `ALTER TABLE strict ADD CONSTRAINT named CHECK event_type != 'thing has happened'`); err != nil {
				t.Fatal(err)
			}
			if class := classOf(t, open(t, address, "strict").Write(t.Context(), b)); class != batch.Data {
				t.Errorf("class %s, want %s", class, batch.Data)
			}
		})
		t.Run("a table that is set read-only says nothing of the content", func(t *testing.T) {
			t.Parallel()
			if err := ch.Exec(t.Context(), `CREATE TABLE frozen AS event_log`); err != nil {
				t.Fatal(err)
			}
			var unknown *clickhouse.Exception
			if err := ch.Exec(t.Context(), `ALTER TABLE frozen MODIFY SETTING table_readonly = 1`); errors.As(err, &unknown) && unknown.Code == 115 {
				t.Skip("this ClickHouse has no such setting")
			} else if err != nil {
				t.Fatal(err)
			}
			err := open(t, address, "frozen").Write(t.Context(), b)
			if failure, _ := errors.AsType[*batch.Failure](err); failure == nil || failure.Class != batch.Unknown || !strings.Contains(failure.Hint, "read-only") {
				t.Errorf("%+v, want class %s and a hint", failure, batch.Unknown)
			}
		})
		t.Run("a refusal of content does not repeat it, since errors are logged", func(t *testing.T) {
			t.Parallel()
			for name, change := range map[string]string{
				"constraint": `ADD CONSTRAINT named CHECK event_context = ''`,
				"computed":   `ADD COLUMN number UInt64 MATERIALIZED toUInt64(event_context)`,
			} {
				for _, statement := range []string{`CREATE TABLE ` + name + ` AS event_log`, `ALTER TABLE ` + name + ` ` + change} {
					if err := ch.Exec(t.Context(), statement); err != nil {
						t.Fatal(err)
					}
				}
				err := open(t, address, name).Write(t.Context(), newBatch(t, good, 1, 10))
				if class := classOf(t, err); class != batch.Data || strings.Contains(err.Error(), `"a"`) {
					t.Errorf("class %s, want %s, without the content: %v", class, batch.Data, err)
				}
			}
		})
	})
}
