package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/churl"
	"github.com/sluicebox/sluicebox/internal/loopback"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/sink"
)

// Querier runs statements of Postgres: a connection or a pool.
type Querier = replication.Querier

// look is what is known so far. The checks of one side fill in their part, and read no other's; those of both sides come last.
type look struct {
	config Config

	pg          Querier
	pool        *pgxpool.Pool // nil: pg is somebody else's
	server      server
	slot        slot
	publication publication
	outbox      outboxTable

	ch        driver.Conn
	sink      *sink.ClickHouse
	warehouse warehouse
	target    target
}

// connectTimeout bounds opening a connection: a doctor that waits for minutes helps nobody.
const connectTimeout = 4 * time.Second

// connectPostgres opens the session that all checks of Postgres use, unless there is one.
func (l *look) connectPostgres(ctx context.Context) error {
	if l.pg != nil {
		return nil
	}
	config, err := pgxpool.ParseConfig(l.config.Postgres)
	if err != nil {
		return fmt.Errorf("parse the Postgres URL: %w", err)
	}
	config.MaxConns = 1
	config.ConnConfig.ConnectTimeout = connectTimeout
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec // no prepared statements: a pooler may be in between
	config.ConnConfig.RuntimeParams["application_name"] = "sluicebox doctor " + l.config.Replication.Slot
	if l.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	l.pg = l.pool
	conn, err := l.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	if encrypted, is := conn.Conn().PgConn().Conn().(*tls.Conn); is {
		l.server.verified = len(encrypted.ConnectionState().VerifiedChains) > 0
	}
	l.server.pid, l.server.address = conn.Conn().PgConn().PID(), conn.Conn().PgConn().Conn().RemoteAddr().String()
	return nil
}

func (l *look) connectClickHouse() error {
	options, err := churl.Parse(l.config.ClickHouse)
	if err != nil {
		return fmt.Errorf("parse the ClickHouse URL: %w", err)
	}
	options.DialTimeout = connectTimeout
	options.ReadTimeout = checkTimeout
	options.MaxOpenConns = 1
	options.ClientInfo.Products = append(options.ClientInfo.Products, struct{ Name, Version string }{"sluicebox", "doctor"})
	l.warehouse.addresses, l.warehouse.encrypted = options.Addr, options.TLS != nil
	l.warehouse.verified = options.TLS != nil && !options.TLS.InsecureSkipVerify
	if l.ch, err = clickhouse.Open(options); err != nil {
		return fmt.Errorf("open ClickHouse: %w", err)
	}
	l.sink, err = sink.New(func() string { return l.config.ClickHouse }, l.config.TargetTable, l.config.Replication.Slot, l.config.InsertDeadline)
	return err
}

func (l *look) close() {
	if l.pool != nil {
		l.pool.Close()
	}
	if l.ch != nil {
		_ = l.ch.Close() // it has only read
	}
	if l.sink != nil {
		_ = l.sink.Close() // as above
	}
}

// outboxName is the outbox as SQL writes it.
func (l *look) outboxName() string {
	return pgx.Identifier{l.config.Replication.Schema, l.config.Replication.Table}.Sanitize()
}

// role is the role of DATABASE_URL as SQL writes it.
func (l *look) role() string { return pgx.Identifier{l.server.role}.Sanitize() }

// local says whether only programs of the same machine see what goes to an address.
func local(address string) bool {
	return address == "" || address[0] == '/' || address[0] == '@' || loopback.Host(address) // the first three: a Unix socket
}

// offset is by how much a server's clock is ahead of ours, from one answer of its.
func offset(asked, answered, server time.Time) time.Duration {
	return server.Sub(asked.Add(answered.Sub(asked) / 2))
}

// bounded makes a size of Postgres or ClickHouse one that can be compared with others.
func bounded(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func identifier(name string) string { return pgx.Identifier{name}.Sanitize() }

// literal writes a text as SQL does.
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// sqlState is the code of an error of Postgres; empty: it is none.
func sqlState(err error) string {
	if refused, is := errors.AsType[*pgconn.PgError](err); is {
		return refused.Code
	}
	return ""
}

// notPrivileged is the code for a right that is missing.
const notPrivileged = "42501"
