// Package migrations holds the schemas of both databases and applies them.
//
// Migrations are numbered and only go forward. Applying them is safe when several programs do so at once: the whole of it
// happens under one Postgres advisory lock, the ClickHouse part too, since ClickHouse has no lock of its own.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"github.com/sluicebox/sluicebox/internal/churl"
)

//go:embed postgres/*.sql clickhouse/*.sql clickhouse-replicated/*.sql
var files embed.FS

// The tables of applied migrations. They have names of our own because the service that owns the database may use goose too.
const (
	postgresVersions   = "sluicebox.schema_version"
	clickHouseVersions = "sluicebox_schema_version"
)

// advisoryLock is the key of the Postgres advisory lock that migrating takes: "sluicebx" in ASCII.
const advisoryLock int64 = 0x736c756963656278

// ErrNewer says that a database was migrated by a later release than this one, which can't know what it would break there.
var ErrNewer = errors.New("the database schema is newer than this program")

// ErrLayout says that the table of events was made in another layout.
var ErrLayout = errors.New("the table has another layout")

// Applied is one migration that was applied.
type Applied struct {
	Database string // postgres or clickhouse
	Name     string // file name
}

// Layout says how the table of events lies in ClickHouse.
type Layout string

// The layouts.
const (
	Single     Layout = "single"     // a MergeTree on the server that is asked
	Replicated Layout = "replicated" // a ReplicatedMergeTree on every server of a cluster, and a Distributed table over them
)

// Apply brings both databases to the schema of this program and returns what it did, in order. It waits for another
// migrating program, bounded by ctx. A database with a newer schema gives [ErrNewer] and is left alone.
func Apply(ctx context.Context, postgresURL, clickHouseURL string, layout Layout) ([]Applied, error) {
	return locked(ctx, postgresURL, func(db *sql.DB) ([]Applied, error) {
		options, err := churl.Parse(clickHouseURL)
		if err != nil {
			return nil, fmt.Errorf("parse the ClickHouse URL: %w", err)
		}
		ch := clickhouse.OpenDB(options)
		defer func() { _ = ch.Close() }()
		if err := ch.PingContext(ctx); err != nil {
			return nil, fmt.Errorf("connect to ClickHouse: %w", err)
		}

		done, err := up(ctx, db, goose.DialectPostgres, "postgres", postgresVersions)
		if err != nil {
			return done, err
		}
		folder := "clickhouse"
		if layout == Replicated {
			folder = "clickhouse-replicated"
		}
		more, err := up(ctx, ch, goose.DialectClickHouse, folder, clickHouseVersions)
		if err == nil {
			err = laidOut(ctx, ch, layout)
		}
		return append(done, more...), err
	})
}

// Postgres is [Apply] for the Postgres side alone: all that a service needs which only writes events.
func Postgres(ctx context.Context, url string) ([]Applied, error) {
	return locked(ctx, url, func(db *sql.DB) ([]Applied, error) {
		return up(ctx, db, goose.DialectPostgres, "postgres", postgresVersions)
	})
}

// PostgresVersion is the schema version that a database has (0: none) and the one this program wants.
func PostgresVersion(ctx context.Context, conn interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
},
) (has, wants int64, err error) {
	names, err := fs.Glob(files, "postgres/*.sql")
	if err != nil {
		return 0, 0, fmt.Errorf("list migrations: %w", err)
	}
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return 0, 0, fmt.Errorf("migration %s: %w", name, err)
		}
		wants = max(wants, version)
	}
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, postgresVersions).Scan(&exists); err != nil || !exists {
		return 0, wants, err
	}
	err = conn.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+postgresVersions+` WHERE is_applied`).Scan(&has)
	return has, wants, err
}

// locked runs do while this session alone holds the right to migrate.
func locked(ctx context.Context, url string, do func(*sql.DB) ([]Applied, error)) ([]Applied, error) {
	config, err := pgxpool.ParseConfig(url) // the URL of a program may have parameters of its pool, which Postgres does not know
	if err != nil {
		return nil, fmt.Errorf("parse the Postgres URL: %w", err)
	}
	db := stdlib.OpenDB(*config.ConnConfig, stdlib.OptionAfterConnect(beside))
	defer func() { _ = db.Close() }()

	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close() }() // with the pool this ends the session, and with it the lock
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, advisoryLock); err != nil {
		return nil, fmt.Errorf("wait for another migration to end: %w", err)
	}
	if _, err := conn.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS sluicebox`); err != nil {
		return nil, fmt.Errorf("create schema sluicebox: %w", err)
	}
	return do(db)
}

// beside keeps tables that are to be visible to all out of the schema of the ledger, which a role named sluicebox, as the daemon's may be,
// has first on its search path.
func beside(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config('search_path', 'public', false) WHERE current_schema() = 'sluicebox'`)
	return err
}

// laidOut looks whether an earlier migration has made the table in another layout: the versions of both have the same numbers.
func laidOut(ctx context.Context, db *sql.DB, layout Layout) error {
	var engine string
	err := db.QueryRowContext(ctx, `SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = 'event_log'`).Scan(&engine)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil // dropped, which is its operator's to know
	case err != nil:
		return fmt.Errorf("read the engine of event_log: %w", err)
	case layout == Replicated && !strings.HasPrefix(engine, "Replicated") && !strings.HasPrefix(engine, "Shared"):
		return fmt.Errorf("%w: event_log is a %s on this server alone", ErrLayout, engine)
	}
	return nil
}

func up(ctx context.Context, db *sql.DB, dialect goose.Dialect, folder, versions string) ([]Applied, error) {
	name := string(dialect) // the database, as people call it
	sources, err := fs.Sub(files, folder)
	if err != nil {
		return nil, fmt.Errorf("open migrations: %w", err)
	}
	store, err := database.NewStore(database.Dialect(dialect), versions)
	if err != nil {
		return nil, fmt.Errorf("open the table of %s migrations: %w", name, err)
	}
	provider, err := goose.NewProvider("", db, sources, goose.WithStore(store), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return nil, fmt.Errorf("read %s migrations: %w", name, err)
	}
	has, wants, err := provider.GetVersions(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the version of the %s schema: %w", name, err)
	}
	if has > wants {
		return nil, fmt.Errorf("%w: %s has version %d, this program knows %d", ErrNewer, name, has, wants)
	}
	results, err := provider.Up(ctx)
	done := make([]Applied, 0, len(results))
	for _, result := range results {
		done = append(done, Applied{Database: name, Name: result.Source.Path})
	}
	if err != nil {
		return done, fmt.Errorf("migrate %s: %w", name, err)
	}
	return done, nil
}
