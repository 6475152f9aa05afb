package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/migrations"
)

// slot is the replication slot of the daemon.
const slot = "sluicebox"

// stage is both databases and the programs under measurement.
type stage struct {
	o     options
	dir   string
	pg    *embedded.Postgres
	ch    *embedded.ClickHouse
	admin *pgxpool.Pool
	click driver.Conn
	table *table
}

// Settings of the servers beside their defaults, fsync included: room for what waits, no checkpoint in the middle of a run.
const postgresSettings = `shared_buffers=1GB max_wal_size=32GB checkpoint_timeout=1h max_connections=200 max_slot_wal_keep_size=-1`

// open builds the programs and starts everything. Close it, also after an error.
func (s *stage) open(ctx context.Context) (err error) {
	if s.dir, err = os.MkdirTemp("", "sluicebox-bench-"); err != nil {
		return fmt.Errorf("make a folder for the programs: %w", err)
	}
	if _, err := command(ctx, s.o.root, "go", "build", "-o", s.dir+"/", "./cmd/api", "./cmd/cdc"); err != nil {
		return err
	}
	settings := map[string]string{}
	for pair := range strings.FieldsSeq(postgresSettings) {
		name, value, _ := strings.Cut(pair, "=")
		settings[name] = value
	}
	if s.pg, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{Settings: settings}); err != nil {
		return err
	}
	if s.ch, err = embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{}); err != nil {
		return err
	}
	if _, err := migrations.Apply(ctx, s.pg.URL("postgres"), s.ch.URL("default"), migrations.Single); err != nil {
		return err
	}
	if s.admin, err = pgxpool.New(ctx, s.pg.SocketURL("postgres")); err != nil {
		return err
	}
	options, err := clickhouse.ParseDSN(s.ch.URL("default"))
	if err != nil {
		return err
	}
	if s.click, err = clickhouse.Open(options); err != nil {
		return err
	}
	for _, statement := range []string{
		`CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert')`, // as cdc migrate does
		// Rows as services write them: about 300 bytes of text each.
		`CREATE PROCEDURE write_events(events bigint, each bigint) LANGUAGE plpgsql AS $$
DECLARE written bigint := 0;
BEGIN
    WHILE written < events LOOP
        INSERT INTO event_outbox (event_type, environment, event_context)
        SELECT 'user has been created', 'production', jsonb_build_object('user_id', n, 'email', 'user' || n || '@example.com',
               'name', md5(n::text) || ' ' || md5((n + 1)::text), 'plan', 'team', 'source', 'signup form', 'active', true,
               'address', jsonb_build_object('street', md5((n + 2)::text), 'city', 'London', 'zip', n % 99999))
        FROM generate_series(written + 1, least(written + each, events)) n;
        written := written + each;
        COMMIT;
    END LOOP;
END $$`,
	} {
		if err := s.sql(ctx, statement); err != nil {
			return err
		}
	}
	// What a server has unless told otherwise; the embedded one removes at once what a merge has replaced.
	if err := s.click.Exec(ctx, `ALTER TABLE event_log MODIFY SETTING old_parts_lifetime = 480`); err != nil {
		return err
	}
	return s.describe(ctx)
}

func (s *stage) describe(ctx context.Context) error {
	var postgres, click string
	if err := s.admin.QueryRow(ctx, `SELECT current_setting('server_version')`).Scan(&postgres); err != nil {
		return err
	}
	if err := s.click.QueryRow(ctx, `SELECT version()`).Scan(&click); err != nil {
		return err
	}
	s.table.Machine = fmt.Sprintf("%d cores, %s/%s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH)
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		s.table.Machine += ", load at the start " + strings.Join(strings.Fields(string(load))[:3], " ")
	}
	s.table.Versions = fmt.Sprintf("PostgreSQL %s, ClickHouse %s, %s, %s", postgres, click, runtime.Version(), postgresSettings)
	commit, err := command(ctx, s.o.root, "git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=12")
	if err != nil {
		commit = "unknown"
	}
	s.table.Commit = strings.TrimSpace(commit)
	return nil
}

func (s *stage) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if s.admin != nil {
		s.admin.Close()
	}
	if s.click != nil {
		_ = s.click.Close()
	}
	if s.ch != nil {
		_ = s.ch.Stop(ctx)
	}
	if s.pg != nil {
		_ = s.pg.Stop(ctx)
	}
	_ = os.RemoveAll(s.dir)
}

func (s *stage) sql(ctx context.Context, statement string, args ...any) error {
	if _, err := s.admin.Exec(ctx, statement, args...); err != nil {
		return fmt.Errorf("%.60s: %w", statement, err)
	}
	return nil
}

// link is how the programs reach Postgres.
type link string

const (
	tcp  link = "TCP"
	unix link = "socket"
)

func (s *stage) url(via link) string {
	if via == unix {
		return s.pg.SocketURL("postgres")
	}
	return s.pg.URL("postgres")
}

// daemon starts cdc run with its default settings, but for those given.
func (s *stage) daemon(ctx context.Context, via link, settings ...string) (*process, error) {
	return launch(ctx, "cdc", filepath.Join(s.dir, "cdc"), []string{"run"}, append([]string{
		"DATABASE_URL=" + s.url(via), "CLICKHOUSE_URL=" + s.ch.URL("default"), "CDC_ADMIN_ADDR=127.0.0.1:0", "LOG_LEVEL=warn",
	}, settings...))
}

// fresh lets the daemon deliver what is left, so that its slot has nothing to send, and empties the tables. The ledger forgets what was
// delivered: the next daemon would look for it in ClickHouse.
func (s *stage) fresh(ctx context.Context) error {
	p, err := s.daemon(ctx, unix)
	if err != nil {
		return err
	}
	if err := s.caughtUp(ctx, p); err != nil {
		p.kill()
		return err
	}
	if err := p.stop(); err != nil {
		return err
	}
	for _, statement := range []string{
		`TRUNCATE event_outbox`, `TRUNCATE users, idempotency_key`, `DELETE FROM sluicebox.batch`, `DELETE FROM sluicebox.incident`,
	} {
		if err := s.sql(ctx, statement); err != nil {
			return err
		}
	}
	return s.click.Exec(ctx, `TRUNCATE TABLE event_log`)
}

// running is a daemon that streams from empty tables.
func (s *stage) running(ctx context.Context, via link, settings ...string) (*process, error) {
	if err := s.fresh(ctx); err != nil {
		return nil, err
	}
	p, err := s.daemon(ctx, via, settings...)
	if err != nil {
		return nil, err
	}
	if err := s.caughtUp(ctx, p); err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// caughtUp waits until the daemon has marked and acknowledged everything that is committed now.
func (s *stage) caughtUp(ctx context.Context, p *process) error {
	var end string
	if err := s.admin.QueryRow(ctx, `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
		return err
	}
	return s.acknowledged(ctx, p, end)
}

func (s *stage) acknowledged(ctx context.Context, p *process, end string) error {
	return s.acknowledgedBy(ctx, p, slot, end)
}

func (s *stage) acknowledgedBy(ctx context.Context, p *process, slot, end string) error {
	return poll(ctx, 20*time.Millisecond, 30*time.Minute, func() (bool, error) {
		select {
		case <-p.exited:
			return false, fmt.Errorf("%s ended with code %d: %s", p.name, p.cmd.ProcessState.ExitCode(), p.tail)
		default:
		}
		var done bool
		err := s.admin.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots r JOIN sluicebox.stream s ON s.slot = r.slot_name
WHERE slot_name = $1 AND confirmed_flush_lsn >= $2::pg_lsn AND phase = 'stream')`, slot, end).Scan(&done)
		return done, err
	})
}

// write commits events, each so many in one transaction, and returns the position after them.
func (s *stage) write(ctx context.Context, events, each int) (end string, err error) {
	conn, err := s.admin.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Release()
	// A checkpoint before and none after: marks write no full images of pages then, as if the events had been written a moment ago.
	for _, statement := range []string{
		`CHECKPOINT`, `SET synchronous_commit = off`, fmt.Sprintf(`CALL write_events(%d, %d)`, events, each), `RESET synchronous_commit`,
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return "", err
		}
	}
	err = conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&end)
	return end, err
}

// whole holds that each event is in ClickHouse once and marked: a fast run that lost something is no result.
func (s *stage) whole(ctx context.Context) error {
	var events, waiting uint64
	if err := s.admin.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE NOT processed) FROM event_outbox`).Scan(&events, &waiting); err != nil {
		return err
	}
	var rows, ids uint64
	if err := s.click.QueryRow(ctx, `SELECT count(), uniqExact(id) FROM event_log`).Scan(&rows, &ids); err != nil {
		return err
	}
	if waiting != 0 || rows != events || ids != events {
		return errors.New("of " + strconv.FormatUint(events, 10) + " events " + strconv.FormatUint(waiting, 10) + " are not marked; ClickHouse has " +
			strconv.FormatUint(rows, 10) + " rows, " + strconv.FormatUint(ids, 10) + " ids")
	}
	return nil
}
