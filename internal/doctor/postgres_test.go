package doctor

import (
	"context"
	"io"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"
)

func setting(name, value, unit string) func(*look) {
	return func(l *look) { l.server.settings[name] = [2]string{value, unit} }
}

func system(name, value string) []string {
	return []string{`ALTER SYSTEM SET ` + name + ` = ` + value, `SELECT pg_reload_conf()`}
}

func reset(name string) []string {
	return []string{`ALTER SYSTEM RESET ` + name, `SELECT pg_reload_conf()`}
}

func postgresIllnesses() []illness {
	return []illness{
		{check: "postgres.version", seen: "PostgreSQL 14; 15 is the oldest", want: Fail, plant: func(l *look) { l.server.version = 140012 }},
		{check: "postgres.minor", seen: "PostgreSQL 17.4 can lose rows", plant: func(l *look) { l.server.version = 170004 }},
		{check: "postgres.minor", seen: "PostgreSQL 15.12 can lose rows", plant: func(l *look) { l.server.version = 150012 }},
		{check: "postgres.primary", seen: "is a standby", want: Fail, plant: func(l *look) { l.server.recovery = true }},
		{check: "postgres.wal_level", seen: "wal_level is replica", want: Fail, plant: setting("wal_level", "replica", "")},
		{check: "postgres.wal_sender_timeout", seen: "is 0", pg: system("wal_sender_timeout", "0"), heals: true, cure: reset("wal_sender_timeout")},
		{check: "postgres.wal_sender_timeout", seen: "is 4s", pg: system("wal_sender_timeout", "'4s'"), heals: true, cure: reset("wal_sender_timeout")},
		{check: "postgres.slot_wal_limit", seen: "nothing limits", config: func(c *Config) { c.MaxSlotWAL = 0 }, heals: true, cure: reset("max_slot_wal_keep_size")},
		{check: "postgres.idle_slot_timeout", since: 18, seen: "is 1h0m0s", pg: system("idle_replication_slot_timeout", "'1h'"), heals: true, cure: reset("idle_replication_slot_timeout")},
		{
			check: "postgres.synchronous_standby", seen: "no synchronous standby is attached", want: Fail,
			pg: system("synchronous_standby_names", "'nobody'"), heals: true, cure: reset("synchronous_standby_names"),
		},
		{check: "postgres.fsync", seen: "full_page_writes is off", plant: func(l *look) {
			setting("fsync", "on", "")(l)
			setting("full_page_writes", "off", "")(l)
		}},
		{check: "postgres.autovacuum", seen: "autovacuum is off", pg: system("autovacuum", "off"), heals: true, cure: reset("autovacuum")},
		{check: "postgres.connections", seen: "3 sessions", pg: []string{`ALTER ROLE ` + sqlRole + ` CONNECTION LIMIT 3`}, heals: true},
		{check: "postgres.statement_timeout", seen: "is 2s", pg: []string{`ALTER ROLE ` + sqlRole + ` SET statement_timeout = '2s'`}, heals: true},
		{check: "postgres.encryption", seen: "10.1.2.3:5432 is not encrypted", plant: func(l *look) { l.server.address = "10.1.2.3:5432" }},
		{check: "postgres.encryption", seen: "not sure to be to that server", plant: func(l *look) {
			l.server.address, l.server.encrypted = "10.1.2.3:5432", true
		}},
		{check: "postgres.encryption", seen: "the replication connection to 10.1.2.3 may not be", plant: func(l *look) {
			l.config.Replication.URL = "postgres://u@10.1.2.3/db?sslmode=prefer"
		}},

		{
			check: "role.replication", seen: "open a replication connection", want: Fail,
			config: func(c *Config) { c.Replication.URL = c.Postgres }, heals: true, cure: []string{`ALTER ROLE ` + sqlRole + ` NOREPLICATION`},
		},
		{check: "role.superuser", seen: sqlRole + " is a superuser", pg: []string{`ALTER ROLE ` + sqlRole + ` SUPERUSER`}, cure: []string{`ALTER ROLE ` + sqlRole + ` NOSUPERUSER`}},
		{check: "role.terminate", seen: "until wal_sender_timeout (1m0s)", pg: []string{`REVOKE ` + streamRole + ` FROM ` + sqlRole}, heals: true},

		{check: "ledger.schema", seen: "needs", want: Fail, pg: []string{`ALTER TABLE sluicebox.schema_version RENAME TO away`}, cure: []string{`ALTER TABLE sluicebox.away RENAME TO schema_version`}},
		{
			check: "ledger.schema", seen: "newer than this program", want: Fail,
			pg:   []string{`INSERT INTO sluicebox.schema_version (version_id, is_applied) VALUES (999, true)`},
			cure: []string{`DELETE FROM sluicebox.schema_version WHERE version_id = 999`},
		},
		{check: "ledger.schema", seen: "permission denied", want: Fail, pg: []string{`REVOKE ALL ON sluicebox.schema_version FROM ` + sqlRole}, heals: true},
		{check: "ledger.grants", seen: "lacks DELETE on batch, UPDATE on batch", want: Fail, pg: []string{`REVOKE UPDATE, DELETE ON sluicebox.batch FROM ` + sqlRole}, heals: true},
		{
			check: "ledger.quarantine", seen: "1 events are held", pg: []string{`INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal) VALUES ('sluicebox', 1, 'r', '0/0', 0)`},
			cure: []string{`DELETE FROM sluicebox.quarantine`},
		},
		{
			check: "ledger.incident", seen: "an incident is open: planted", pg: []string{`INSERT INTO sluicebox.incident (slot, kind, reason, from_lsn) VALUES ('sluicebox', 'clickhouse', 'planted', '0/0')`},
			cure: []string{`DELETE FROM sluicebox.incident`},
		},
		{
			check: "ledger.rivals", seen: "other streams that carry the same rows: rival", want: Fail,
			pg: []string{
				`INSERT INTO sluicebox.stream (slot, phase, outbox, publication) SELECT 'rival', 'stream', 'public.event_outbox', oid || ' x' FROM pg_publication`,
				`INSERT INTO sluicebox.batch (slot, seq, epoch, token, ids, rows, bytes, end_lsn, end_ordinal, ack_lsn, partition, sealed_by)
				 VALUES ('rival', 1, 1, 't', '{[1,2)}', 1, 1, '0/0', 0, '0/0', 202601, 'rows')`,
			},
			cure: []string{`DELETE FROM sluicebox.batch WHERE slot = 'rival'`, `DELETE FROM sluicebox.stream WHERE slot = 'rival'`},
		},
	}
}

// open opens a connection that the test ends.
func open(t *testing.T, address string, params map[string]string) *pgconn.PgConn {
	t.Helper()
	config, err := pgconn.ParseConfig(address)
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(config.RuntimeParams, params)
	conn, err := pgconn.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// TestNoneFree uses up what the server has a limited number of.
func TestNoneFree(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	t.Run("replication slots", func(t *testing.T) {
		config := p.config
		config.Replication.Slot = "one_more"
		p.exec(t, `SELECT pg_create_physical_replication_slot('taken_' || n) FROM generate_series(1, 7) n`)
		until(t, config, "postgres.replication_slots", Fail)
		until(t, p.config, "postgres.replication_slots", OK) // it has one
		p.exec(t, `SELECT pg_drop_replication_slot('taken_1')`)
		until(t, config, "postgres.replication_slots", OK)
	})
	t.Run("WAL senders", func(t *testing.T) {
		config := p.config
		config.Replication.Slot = "one_more"
		var last *pgconn.PgConn
		for range 5 {
			last = open(t, p.config.Replication.URL, map[string]string{"replication": "database"})
		}
		until(t, config, "postgres.wal_senders", Fail)
		until(t, p.config, "postgres.wal_senders", OK) // it has one
		if err := last.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		until(t, config, "postgres.wal_senders", OK)
	})
	t.Run("connections", func(t *testing.T) {
		l := &look{pg: p.pg, server: server{settings: map[string][2]string{"max_connections": {"9", ""}}}}
		if f := judge(t.Context(), "postgres.connections", l); f.Result != Warn || !strings.Contains(f.Seen, "of 9 connections are in use") {
			t.Errorf("%+v", f)
		}
	})
}

// TestOldTransactions can't wait for ten minutes, and sees that young ones are found and left alone; age is planted.
func TestOldTransactions(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	tx, err := p.pg.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), `INSERT INTO users (email, first_name, last_name) VALUES ('a@example.com', 'a', 'b')`); err != nil {
		t.Fatal(err)
	}
	p.exec(t, `BEGIN; INSERT INTO users (email, first_name, last_name) VALUES ('b@example.com', 'a', 'b'); PREPARE TRANSACTION 'it''s old'`)
	defer p.exec(t, `ROLLBACK PREPARED 'it''s old'`)
	for _, name := range []string{"postgres.old_transaction", "postgres.prepared_transaction"} {
		until(t, p.config, name, OK)
	}
	config := p.config
	config.oldTransaction = time.Nanosecond
	until(t, config, "postgres.old_transaction", Warn)
	f := until(t, config, "postgres.prepared_transaction", Warn)
	p.exec(t, statements(f.Mend[len("in database postgres: "):])...)
	until(t, config, "postgres.prepared_transaction", OK)
	p.exec(t, `BEGIN; INSERT INTO users (email, first_name, last_name) VALUES ('b@example.com', 'a', 'b'); PREPARE TRANSACTION 'it''s old'`) // for the end
	p.exec(t, `REVOKE pg_read_all_stats FROM `+sqlRole)
	until(t, p.config, "postgres.old_transaction", Skip)
}

// pool is a proxy that announces another process than the one that answers, as poolers do.
func pool(t *testing.T, server string) (address string) {
	t.Helper()
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.Go(func() error {
		for {
			client, err := listener.Accept()
			if err != nil {
				return nil //nolint:nilerr // the test has ended
			}
			var dialer net.Dialer
			upstream, err := dialer.DialContext(t.Context(), "tcp", server)
			if err != nil {
				return err
			}
			group.Go(func() error { return announce(upstream, client) })
			group.Go(func() error {
				defer func() { _ = upstream.Close() }()
				_, _ = io.Copy(upstream, client) // until one of them ends
				return nil
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// announce passes messages on to a client, and changes the one that tells the process.
func announce(server, client net.Conn) error {
	defer func() { _ = client.Close() }()
	from, to := pgproto3.NewFrontend(server, nil), pgproto3.NewBackend(nil, client)
	for {
		message, err := from.Receive()
		if err != nil {
			return nil // one of them has ended
		}
		if key, is := message.(*pgproto3.BackendKeyData); is {
			key.ProcessID++
		}
		to.Send(message)
		if err := to.Flush(); err != nil {
			return nil // as above
		}
	}
}
