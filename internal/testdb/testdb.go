// Package testdb gives each test a fresh database on both sides of the line, on real servers. It is for _test.go files only.
//
// Which servers: those of TEST_DATABASE_URL and TEST_CLICKHOUSE_URL (administrators' URLs, in which databases are created); else
// containers, when a Docker engine answers; else embedded ones. TEST_STORES=external, docker or embedded forces one. Missing
// servers fail a test and never skip it.
package testdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/migrations"
)

// startTimeout bounds starting servers and creating a database.
const startTimeout = 3 * time.Minute

// stores are the servers of this test binary.
type stores struct {
	postgres       string // administrator's URL
	clickhouse     string
	clickhouseHTTP string
	stop           func(context.Context) error
	embedded       bool // and so has the users of clickHouseUsers
	lingers        bool // goroutines of the client that started them go on after stop
}

//nolint:gochecknoglobals // one pair of servers a test binary, started by the first test that needs it
var (
	shared = sync.OnceValues(func() (*stores, error) {
		s, err := start(context.Background())
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		return s, setPasswords(ctx, s.postgres)
	})
	sharedMu sync.Mutex
	started  *stores
)

// Main runs the tests of a package, stops the servers, and fails if a goroutine goes on:
//
//	func TestMain(m *testing.M) { testdb.Main(m) }
func Main(m *testing.M) {
	code := m.Run()
	if err := end(); err != nil {
		fmt.Fprintln(os.Stderr, "testdb:", err)
		code = max(code, 1)
	}
	os.Exit(code) //nolint:forbidigo // the main of a test binary
}

func end() error {
	sharedMu.Lock()
	defer sharedMu.Unlock()
	if started != nil {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		if err := started.stop(ctx); err != nil {
			return err
		}
		if started.lingers {
			return nil
		}
	}
	http.DefaultClient.CloseIdleConnections() // those of the tests
	return goleak.Find()
}

func servers(tb testing.TB) *stores {
	tb.Helper()
	s, err := shared()
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	sharedMu.Lock()
	defer sharedMu.Unlock()
	started = s
	return s
}

// start finds or starts the servers.
func start(ctx context.Context) (*stores, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	external := os.Getenv("TEST_DATABASE_URL") != "" || os.Getenv("TEST_CLICKHOUSE_URL") != ""
	switch choice := os.Getenv("TEST_STORES"); choice {
	case "external":
		return startExternal()
	case "docker":
		return startContainers(ctx)
	case "embedded":
		return startEmbedded(ctx)
	case "":
		if external {
			return startExternal()
		}
		if engineAnswers(ctx) {
			return startContainers(ctx)
		}
		return startEmbedded(ctx)
	default:
		return nil, fmt.Errorf("TEST_STORES is %q; want external, docker or embedded", choice)
	}
}

func startExternal() (*stores, error) {
	s := &stores{
		postgres: os.Getenv("TEST_DATABASE_URL"), clickhouse: os.Getenv("TEST_CLICKHOUSE_URL"), clickhouseHTTP: os.Getenv("TEST_CLICKHOUSE_HTTP_URL"),
		stop: func(context.Context) error { return nil },
	}
	if s.postgres == "" || s.clickhouse == "" {
		return nil, errors.New("set both TEST_DATABASE_URL (postgres://…) and TEST_CLICKHOUSE_URL (clickhouse://…)")
	}
	if s.clickhouseHTTP == "" { // the usual port on the same host
		u, err := url.Parse(s.clickhouse)
		if err != nil {
			return nil, errors.New("TEST_CLICKHOUSE_URL is no URL")
		}
		u.Scheme, u.Host = "http", u.Hostname()+":8123"
		s.clickhouseHTTP = u.String()
	}
	return s, nil
}

func startEmbedded(ctx context.Context) (*stores, error) {
	postgres, err := embedded.StartPostgres(ctx, embedded.PostgresOptions{NoSync: true, Settings: lightSettings()})
	if err != nil {
		return nil, err
	}
	server, err := embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{Users: clickHouseUsers()})
	if err != nil {
		return nil, errors.Join(err, postgres.Stop(ctx))
	}
	return &stores{
		postgres: postgres.URL("postgres"), clickhouse: server.URL("default"), clickhouseHTTP: server.HTTPURL("default"), embedded: true,
		stop: func(ctx context.Context) error { return errors.Join(server.Stop(ctx), postgres.Stop(ctx)) },
	}, nil
}

// lightSettings make a Postgres that shares two cores with many others.
func lightSettings() map[string]string {
	return map[string]string{
		"shared_buffers": "64MB", "max_connections": "300", "max_wal_senders": "64", "max_replication_slots": "64", "max_wal_size": "2GB",
	}
}

// DB is a fresh database on both sides.
type DB struct {
	PostgresURL       string
	ClickHouseURL     string // native protocol
	ClickHouseHTTPURL string

	*Roles // of least privilege; the URLs above are an administrator's
}

// New makes an empty database on both sides; they are dropped when the test ends.
func New(tb testing.TB) *DB {
	tb.Helper()
	s := servers(tb)
	name := "test_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout) //nolint:usetesting // cleaning up comes after the test's context
	defer cancel()

	if err := execPostgres(ctx, s.postgres, `CREATE DATABASE `+name); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	if err := s.execClickHouse(ctx, `CREATE DATABASE `+name); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout) //nolint:usetesting // as above
		defer cancel()
		for _, statement := range []string{
			`SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE database = '` + name + `' AND active`,
			`SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '` + name + `'`,
			`DROP DATABASE ` + name + ` WITH (FORCE)`,
		} {
			if err := execPostgres(ctx, s.postgres, statement); err != nil {
				tb.Errorf("testdb: %v", err)
			}
		}
		if err := s.execClickHouse(ctx, `DROP DATABASE `+name); err != nil {
			tb.Errorf("testdb: %v", err)
		}
	})
	db := &DB{PostgresURL: in(tb, s.postgres, name), ClickHouseURL: in(tb, s.clickhouse, name), ClickHouseHTTPURL: in(tb, s.clickhouseHTTP, name)}
	db.Roles = &Roles{Warehouse: db.ClickHouseURL, WarehouseHTTP: db.ClickHouseHTTPURL}
	if err := db.ofPostgres(ctx, db.PostgresURL); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	if s.embedded {
		if err := db.ofClickHouse(db); err != nil {
			tb.Fatalf("testdb: %v", err)
		}
	}
	return db
}

// Migrated is [New] with both schemas applied, by their owner.
func Migrated(tb testing.TB) *DB {
	tb.Helper()
	db := New(tb)
	db.Migrate(tb)
	return db
}

// Migrate applies both schemas as their owner, makes the publication and grants the other roles their rights, as `cdc migrate` does.
func (db *DB) Migrate(tb testing.TB) {
	tb.Helper()
	ctx := tb.Context()
	if _, err := migrations.Apply(ctx, db.Owner, db.ClickHouseURL, migrations.Single); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	conn, err := pgx.Connect(ctx, db.Owner)
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, `CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert', publish_via_partition_root = true)`); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	if _, err := migrations.Grant(ctx, conn, "public", "event_outbox"); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
}

// Postgres opens a pool that is closed when the test ends.
func (db *DB) Postgres(tb testing.TB) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(tb.Context(), db.PostgresURL)
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	tb.Cleanup(pool.Close)
	return pool
}

// ClickHouse opens a connection over the native protocol that is closed when the test ends.
func (db *DB) ClickHouse(tb testing.TB) driver.Conn {
	tb.Helper()
	conn, err := openClickHouse(db.ClickHouseURL)
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Slot is a name for a replication slot that no other test has: slots belong to the whole server.
func (*DB) Slot(tb testing.TB) string {
	tb.Helper()
	return "slot_" + strings.ReplaceAll(uuid.NewString(), "-", "")
}

// OwnPostgres starts a Postgres that a test may stop and kill.
func OwnPostgres(tb testing.TB, settings map[string]string) *embedded.Postgres {
	tb.Helper()
	all := lightSettings()
	maps.Copy(all, settings)
	// It is killed by tests, so it must be safe against that; only the operating system's death would need fsync.
	server, err := embedded.StartPostgres(tb.Context(), embedded.PostgresOptions{NoSync: true, Settings: all})
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	tb.Cleanup(func() { stop(tb, server.Stop) })
	return server
}

// OwnClickHouse starts a ClickHouse that a test may stop and kill. The daemon's user may do what is granted, or what it may elsewhere.
func OwnClickHouse(tb testing.TB, grants ...string) *embedded.ClickHouse {
	tb.Helper()
	users := clickHouseUsers()
	if len(grants) > 0 {
		users[migrations.DaemonRole] = grants
	}
	server, err := embedded.StartClickHouse(tb.Context(), embedded.ClickHouseOptions{Users: users})
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	tb.Cleanup(func() { stop(tb, server.Stop) })
	return server
}

func stop(tb testing.TB, stop func(context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) //nolint:usetesting // cleaning up comes after the test's context
	defer cancel()
	if err := stop(ctx); err != nil {
		tb.Errorf("testdb: %v", err)
	}
}

// in is the URL of another database on the same server.
func in(tb testing.TB, address, database string) string {
	tb.Helper()
	u, err := url.Parse(address)
	if err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	u.Path = "/" + database
	return u.String()
}

func (s *stores) execClickHouse(ctx context.Context, statement string) error {
	conn, err := openClickHouse(s.clickhouse)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.Exec(ctx, statement); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

func openClickHouse(address string) (driver.Conn, error) {
	options, err := clickhouse.ParseDSN(address)
	if err != nil {
		return nil, fmt.Errorf("parse the ClickHouse URL: %w", err)
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		return nil, fmt.Errorf("connect to ClickHouse: %w", err)
	}
	return conn, nil
}
