package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

// readSlot reads the slot as another program would, until the returned function is called.
func (l *line) readSlot(t *testing.T) (stop func()) {
	t.Helper()
	config, err := pgconn.ParseConfig(l.db.PostgresURL)
	if err != nil {
		t.Fatal(err)
	}
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	err = pglogrepl.StartReplication(t.Context(), conn, l.slot, 0, pglogrepl.StartReplicationOptions{
		PluginArgs: []string{"proto_version '1'", "publication_names 'sluicebox'"},
	})
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = conn.Conn().Close() })
	t.Cleanup(stop)
	return stop
}

// newOwnLine is a line whose Postgres can be stopped and started without harm to other tests.
func newOwnLine(t *testing.T, settings map[string]string) (*line, *embedded.Postgres) {
	t.Helper()
	server := testdb.OwnPostgres(t, settings)
	db := testdb.New(t)
	own := db.OnPostgres(t, server)
	return migratedLineOn(t, own), server
}

// newOwnSinkLine is the same for ClickHouse.
func newOwnSinkLine(t *testing.T) (*line, *embedded.ClickHouse) {
	t.Helper()
	server := testdb.OwnClickHouse(t)
	db := testdb.New(t)
	return migratedLineOn(t, db.OnClickHouse(t, server)), server
}

func migratedLineOn(t *testing.T, db *testdb.DB) *line {
	t.Helper()
	db.Migrate(t)
	return lineOn(t, db)
}

func TestPostgresFaults(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"fast", "immediate"} {
		t.Run("a restart of Postgres, "+mode+", loses and doubles nothing", func(t *testing.T) {
			t.Parallel()
			l, server := newOwnLine(t, nil)
			d := l.start(t)
			l.write(t, 200, 10)
			l.allMarked(t)
			if err := server.Restart(t.Context(), mode); err != nil {
				t.Fatal(err)
			}
			l.pg.Reset()
			l.write(t, 200, 10)
			l.allMarked(t)
			if code := d.stop(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
	t.Run("events that are streamed before they are visible are marked once they are", func(t *testing.T) {
		t.Parallel()
		l, _ := newOwnLine(t, nil)
		// The daemon's own commits must not wait for the standby: it would find everything visible by the time it settles.
		d := l.start(t, "DATABASE_URL="+l.db.Daemon+"&synchronous_commit=local", "REPLICATION_DATABASE_URL="+l.db.Replication)
		l.write(t, 10, 10)
		l.allMarked(t)
		l.exec(t, `ALTER SYSTEM SET synchronous_standby_names = 'missing'`)
		l.exec(t, `SELECT pg_reload_conf()`)
		// The checkpointer decides when commits wait from: a commit before that does not.
		var committed chan error
		want := int64(10)
		for waits := false; !waits; {
			committed = make(chan error, 1)
			want += 100
			go func() {
				_, err := l.pg.Exec(t.Context(), insertEvents, 100)
				committed <- err
			}()
			eventually(t, func() string {
				waits = l.count(t, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`) > 0
				if !waits && len(committed) == 0 {
					return "the commit neither waits nor ends"
				}
				return ""
			})
			if !waits {
				l.allMarked(t)
			}
		}
		d.wait(t, "can't be settled yet")
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE NOT processed`); n != 0 {
			t.Errorf("%d events are visible; the test wants them invisible", n)
		}
		l.exec(t, `ALTER SYSTEM RESET synchronous_standby_names`)
		l.exec(t, `SELECT pg_reload_conf()`)
		if err := <-committed; err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n != want {
				return fmt.Sprintf("%d events are processed, want %d", n, want)
			}
			return ""
		})
		l.allMarked(t)
	})
	t.Run("a crash of Postgres right after a batch doubles nothing, although commits are asynchronous by default", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnLine(t, map[string]string{"synchronous_commit": "off", "wal_writer_delay": "10s"})
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		for range 4 {
			l.exec(t, `BEGIN; SET LOCAL synchronous_commit = on; `+strings.Replace(insertEvents, "$1", "50", 1)+`; COMMIT`)
			var want uint64
			eventually(t, func() string {
				if err := l.ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&want); err != nil || want%50 != 0 || want == 0 {
					return fmt.Sprintf("ClickHouse has %d rows, %v", want, err)
				}
				return ""
			})
			if err := server.Restart(t.Context(), "immediate"); err != nil {
				t.Fatal(err)
			}
			l.pg.Reset()
		}
		l.allMarked(t)
	})
	t.Run("without wal_level = logical it says what to do and ends with code 3", func(t *testing.T) {
		t.Parallel()
		l, _ := newOwnLine(t, map[string]string{"wal_level": "replica"})
		d := startCDC(t, append(l.credentials(nil), "CDC_SLOT="+l.slot, "CDC_ADMIN_ADDR=127.0.0.1:0"), "run")
		if code := d.end(t); code != 3 || !strings.Contains(d.text(), "ALTER SYSTEM SET wal_level = logical") {
			t.Errorf("code %d:\n%s", code, d.text())
		}
	})
	t.Run("a wrong password says what to do and ends with code 3", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnLine(t, nil)
		wrong, err := url.Parse(server.URL("postgres"))
		if err != nil {
			t.Fatal(err)
		}
		wrong.User = url.UserPassword("postgres", "wrong-pass-word")
		d := startCDC(t, []string{"DATABASE_URL=" + wrong.String(), "CLICKHOUSE_URL=" + l.db.Warehouse, "CDC_ADMIN_ADDR=127.0.0.1:0"}, "run")
		if code := d.end(t); code != 3 || !strings.Contains(d.text(), "check user and password in DATABASE_URL") {
			t.Errorf("code %d:\n%s", code, d.text())
		}
		if strings.Contains(d.text(), "wrong-pass-word") {
			t.Error("the password is in the log")
		}
	})
	t.Run("Postgres being down at start is waited out", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnLine(t, nil)
		server.Kill()
		d := l.start(t)
		d.wait(t, "is Postgres up, and DATABASE_URL right?")
		if code, _ := d.get(t, "/readyz"); code != 503 {
			t.Errorf("/readyz is %d while Postgres is down, want 503", code)
		}
		if code, _ := d.get(t, "/livez"); code != 200 {
			t.Errorf("/livez is %d while Postgres is down, want 200", code)
		}
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.pg.Reset()
		l.write(t, 100, 10)
		l.allMarked(t)
	})
	t.Run("tables that are not there yet are waited for", func(t *testing.T) {
		t.Parallel()
		db := testdb.New(t)
		l := lineOn(t, db)
		d := l.start(t)
		d.wait(t, "run `cdc migrate`")
		m := startCDC(t, []string{"DATABASE_URL=" + db.Owner, "CLICKHOUSE_URL=" + db.ClickHouseURL}, "migrate")
		if code := m.end(t); code != 0 {
			t.Fatalf("cdc migrate: code %d:\n%s", code, m.text())
		}
		l.write(t, 100, 10)
		l.allMarked(t)
	})
}

func TestClickHouseFaults(t *testing.T) {
	t.Parallel()
	t.Run("a failed write is neither marked nor acknowledged, and succeeds later", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnSinkLine(t)
		d := l.start(t)
		l.write(t, 100, 10)
		l.allMarked(t)
		server.Kill()
		l.write(t, 10, 10)
		// Behind the first of them: until that, the WAL of others on this server may come, and be acknowledged while nothing waits.
		first := l.count(t, `SELECT pg_current_wal_lsn() - '0/0'::pg_lsn`)
		l.write(t, 90, 10)
		d.wait(t, "is ClickHouse up, and CLICKHOUSE_URL right?")
		var written time.Time
		if err := l.pg.QueryRow(t.Context(), `SELECT max(event_date_time) FROM event_outbox`).Scan(&written); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string { // keepalives come meanwhile, and idle positions would be stored twice
			if l.count(t, `SELECT count(*) FROM sluicebox.stream WHERE slot = $1 AND heartbeat_at > $2::timestamptz + interval '7 seconds'`, l.slot, written) == 0 {
				return "the daemon's lease is not renewed while ClickHouse is down"
			}
			return ""
		})
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE NOT processed`); n != 100 {
			t.Errorf("%d events are unprocessed while ClickHouse is down, want 100", n)
		}
		if n := l.count(t, `SELECT confirmed_flush_lsn - '0/0'::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, l.slot); n >= first {
			t.Error("the slot was acknowledged past events that ClickHouse does not have")
		}
		if code, body := d.get(t, "/readyz"); code != 503 || !strings.Contains(body, "paused") {
			t.Errorf("/readyz: %d %s", code, body)
		}
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.allMarked(t)
	})
	t.Run("ClickHouse being down at start is waited out", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnSinkLine(t)
		server.Kill()
		d := l.start(t)
		d.wait(t, "is ClickHouse up, and CLICKHOUSE_URL right?")
		l.write(t, 100, 10)
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.allMarked(t)
	})
	t.Run("a table that disappears pauses the stream with a reason, and is waited for", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		l.write(t, 10, 10)
		l.allMarked(t)
		l.execClickHouse(t, `RENAME TABLE event_log TO elsewhere`)
		l.write(t, 10, 10)
		d.wait(t, "run `cdc migrate`, which creates the table")
		l.execClickHouse(t, `RENAME TABLE elsewhere TO event_log`)
		l.allMarked(t)
	})
	t.Run("a lost reply does not double its batch", func(t *testing.T) {
		t.Parallel()
		for _, protocol := range []string{"native", "http"} {
			t.Run(protocol, func(t *testing.T) {
				t.Parallel()
				l := newLine(t)
				address := l.db.Warehouse
				if protocol == "http" {
					address = l.db.WarehouseHTTP
				}
				p := newProxy(t, address)
				d := l.start(t, "CLICKHOUSE_URL="+p.url, "CDC_BATCH_MAX_DELAY=3s") // all events of a transaction come in one batch
				l.write(t, 10, 10)
				l.allMarked(t)
				for range 3 {
					p.loseReplies.Store(true)
					l.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context)
						SELECT 'incompressible', 'test', jsonb_build_object('x', md5(random()::text) || md5(random()::text)) FROM generate_series(1, 500)`)
					want := uint64(l.count(t, `SELECT count(*) FROM event_outbox`))
					eventually(t, func() string { // stored, but nobody has said so
						var n uint64
						if err := l.ch.QueryRow(t.Context(), `SELECT count() FROM event_log`).Scan(&n); err != nil || n < want {
							return fmt.Sprintf("ClickHouse has %d of %d rows, %v", n, want, err)
						}
						return ""
					})
					if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE NOT processed`); n != 500 {
						t.Errorf("%d events are unprocessed, want 500: the reply was to be lost", n)
					}
					p.loseReplies.Store(false)
					p.cut()
					l.allMarked(t)
				}
				if !strings.Contains(d.text(), "it is sent again") {
					t.Error("no batch was sent again; the test proves nothing")
				}
				if n, _ := d.shows(t, "sluicebox_events_found_total"); n == 0 {
					t.Error("no event is said to have been found, although replies were lost")
				}
			})
		}
	})
}

// proxy stands between the daemon and ClickHouse, and can lose what ClickHouse answers.
type proxy struct {
	url         string
	target      string
	loseReplies atomic.Bool

	mu    sync.Mutex
	conns []net.Conn
}

func newProxy(t *testing.T, address string) *proxy {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: u.Host}
	u.Host = listener.Addr().String()
	p.url = u.String()
	go p.accept(t.Context(), listener)
	t.Cleanup(func() {
		_ = listener.Close()
		p.cut()
	})
	return p
}

func (p *proxy) accept(ctx context.Context, listener net.Listener) {
	dialer := net.Dialer{Timeout: 10 * time.Second}
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := dialer.DialContext(ctx, "tcp", p.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, client, server)
		p.mu.Unlock()
		var sent atomic.Int64 // bytes from the client; an insert of many rows has many
		go func() {
			_, _ = io.Copy(counting{server, &sent}, client)
			_ = server.Close()
		}()
		go func() {
			buffer := make([]byte, 64<<10)
			for {
				n, err := server.Read(buffer)
				if err != nil {
					_ = client.Close()
					return
				}
				if p.loseReplies.Load() && sent.Load() > 8<<10 {
					continue
				}
				sent.Store(0) // first: the client may answer at once
				if _, err := client.Write(buffer[:n]); err != nil {
					_ = server.Close()
					return
				}
			}
		}()
	}
}

type counting struct {
	io.Writer

	n *atomic.Int64
}

func (c counting) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.Writer.Write(b)
}

// cut resets every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		_ = conn.Close()
	}
	p.conns = nil
}

func TestSettings(t *testing.T) {
	t.Parallel()
	d := startCDC(t, []string{"DATABASE_URL=nonsense://u:planted-secret@h/d", "CLICKHOUSE_URL=", "CDC_SLTO=x", "CDC_BATCH_MAX_ROWS=many", "CDC_BATCH_MAX_DELAY=-1s"}, "run")
	if code := d.end(t); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	for _, want := range []string{"DATABASE_URL", "CLICKHOUSE_URL", "CDC_SLTO", "CDC_SLOT", "CDC_BATCH_MAX_ROWS", "CDC_BATCH_MAX_DELAY"} {
		if !strings.Contains(d.text(), want) {
			t.Errorf("the message does not name %s:\n%s", want, d.text())
		}
	}
	if strings.Contains(d.text(), "planted-secret") {
		t.Error("a secret is in the message")
	}
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	env := []string{"DATABASE_URL=" + db.Owner, "CLICKHOUSE_URL=" + db.ClickHouseURL}
	t.Run("several at once are safe", func(t *testing.T) {
		var all []*daemon
		for range 4 {
			all = append(all, startCDC(t, env, "migrate"))
		}
		for _, m := range all {
			if code := m.end(t); code != 0 {
				t.Errorf("code %d:\n%s", code, m.text())
			}
		}
	})
	t.Run("a layout that the servers have no cluster for, or that the table has not, is refused with what to do", func(t *testing.T) {
		other := testdb.New(t)
		for _, test := range []struct {
			env  []string
			says string
		}{
			{[]string{"DATABASE_URL=" + other.Owner, "CLICKHOUSE_URL=" + other.ClickHouseURL}, "the macros {cluster}"},
			{env, "leave CDC_TARGET_LAYOUT alone"},
		} {
			m := startCDC(t, append(slices.Clone(test.env), "CDC_TARGET_LAYOUT=replicated"), "migrate")
			if code := m.end(t); code != 3 || !strings.Contains(m.text(), test.says) {
				t.Errorf("code %d, want 3 and %q:\n%s", code, test.says, m.text())
			}
		}
	})
	t.Run("a newer schema is left alone", func(t *testing.T) {
		pg := db.Postgres(t)
		if _, err := pg.Exec(t.Context(), `INSERT INTO sluicebox.schema_version (version_id, is_applied) VALUES (9999, true)`); err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"migrate", "run"} {
			m := startCDC(t, slices.Concat(env, []string{"REPLICATION_DATABASE_URL=" + db.Replication, "CDC_ADMIN_ADDR=127.0.0.1:0"}), command)
			if code := m.end(t); code != 3 || !strings.Contains(m.text(), "newer than this program") {
				t.Errorf("cdc %s: code %d:\n%s", command, code, m.text())
			}
		}
	})
}
