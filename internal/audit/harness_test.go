package audit_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/audit"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

const slot = "audited"

// pair is both databases, with a stream that a daemon once led.
type pair struct {
	db     *testdb.DB
	pg     *pgxpool.Pool // an administrator's
	ch     driver.Conn   // an administrator's
	daemon *pgxpool.Pool // what an audit has: the rights of the daemon
}

func newPair(tb testing.TB) *pair {
	tb.Helper()
	db := testdb.Migrated(tb)
	daemon, err := pgxpool.New(tb.Context(), db.Daemon)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(daemon.Close)
	p := &pair{db: db, pg: db.Postgres(tb), ch: db.ClickHouse(tb), daemon: daemon}
	p.exec(tb, `INSERT INTO sluicebox.stream (slot, outbox) VALUES ($1, 'public.event_outbox')`, slot)
	return p
}

// delivered is a pair with n events, 4000 a day from 2026-03-01 on, that are on both sides. They are old, so what differs is
// believed at once.
func delivered(tb testing.TB, n int) *pair {
	tb.Helper()
	p := newPair(tb)
	p.exec(tb, insertEvents, 1, n, true)
	p.exec(tb, `VACUUM (ANALYZE) event_outbox`)
	p.execClickHouse(tb, copyEvents(1, n))
	return p
}

// insertEvents commits events whose ids are those of a range, the next ones; the last parameter is whether they are processed.
const insertEvents = `
INSERT INTO event_outbox (event_type, event_date_time, environment, event_context, trace_context, processed, processed_at)
SELECT 'user has been created', '2026-03-01 00:00:00+00'::timestamptz + n * interval '21.6 seconds', 'production',
       jsonb_build_object('n', n, 'text', repeat('x', 150), 'email', 'person' || n || '@example.com'),
       '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', $3, now() - interval '1 day'
FROM generate_series($1::bigint, $2::bigint) n`

// copyEvents is the statement by which ClickHouse makes the same events itself, which is fast.
func copyEvents(low, high int) string {
	return fmt.Sprintf(`
INSERT INTO event_log (source, id, event_type, event_date_time, environment, event_context, metadata_version, trace_id, lsn, ordinal, ingested_at)
SELECT '%s', number AS n, 'user has been created',
       fromUnixTimestamp64Micro(toInt64(toUnixTimestamp('2026-03-01 00:00:00', 'UTC')) * 1000000 + toInt64(n) * 21600000, 'UTC'), 'production',
       concat('{"n": ', toString(n), ', "text": "', repeat('x', 150), '", "email": "person', toString(n), '@example.com"}'), 1,
       '4bf92f3577b34da6a3ce929d0e0e4736', n, 1, now64(3) - INTERVAL 1 DAY
FROM numbers(%d, %d) SETTINGS max_partitions_per_insert_block = 1000`, slot, low, high-low+1)
}

func (p *pair) exec(tb testing.TB, sql string, args ...any) {
	tb.Helper()
	if _, err := p.pg.Exec(tb.Context(), sql, args...); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

func (p *pair) execClickHouse(tb testing.TB, sql string) {
	tb.Helper()
	if err := p.ch.Exec(tb.Context(), sql); err != nil {
		tb.Fatalf("%s: %v", sql, err)
	}
}

// again is the statement that inserts rows of ClickHouse once more, with some columns replaced.
func again(where, replaced string) string {
	return `INSERT INTO event_log SELECT * REPLACE (` + replaced + `) FROM event_log WHERE ` + where + ` SETTINGS insert_deduplicate = 0`
}

func (p *pair) config() audit.Config {
	return audit.Config{
		ClickHouseURL: p.db.Warehouse, Slot: slot, Schema: "public", Table: "event_outbox", TargetTable: "event_log", Patience: time.Millisecond,
	}
}

func open(tb testing.TB, pool *pgxpool.Pool, config audit.Config) *audit.Audit {
	tb.Helper()
	a, err := audit.Open(tb.Context(), pool, config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = a.Close() })
	return a
}

func (p *pair) run(tb testing.TB, change ...func(*audit.Config)) *audit.Report {
	tb.Helper()
	config := p.config()
	for _, c := range change {
		c(&config)
	}
	report, err := open(tb, p.daemon, config).Run(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	return report
}

// found is what a report lists: id@date of each kind.
func found(report *audit.Report) map[audit.Kind][]string {
	all := map[audit.Kind][]string{}
	for kind, finding := range report.Differences {
		for _, e := range finding.Events {
			all[kind] = append(all[kind], fmt.Sprintf("%d@%s", e.ID, e.Date))
		}
	}
	return all
}

func wantFound(t *testing.T, report *audit.Report, want map[audit.Kind][]string) {
	t.Helper()
	if diff := cmp.Diff(want, found(report)); diff != "" {
		t.Errorf("differences (-want +got):\n%s", diff)
	}
	counts := map[audit.Kind]uint64{}
	for _, day := range report.Days {
		for kind, n := range day.Differences {
			counts[kind] += n
		}
	}
	for _, kind := range audit.Kinds() {
		if n := report.Differences[kind].Count; n != uint64(len(want[kind])) || counts[kind] != n {
			t.Errorf("%d events are counted as %s, %d in all days; want %d", n, kind, counts[kind], len(want[kind]))
		}
	}
	if same := len(want) == 0; report.Same() != same || (report.Result == "same") != same {
		t.Errorf("the result is %q", report.Result)
	}
}

func none() map[audit.Kind][]string { return map[audit.Kind][]string{} }

// link passes connections on to a server, and does harm to them.
type link struct {
	limit int64         // bytes from the server on one connection after which all connections are cut, once; 0: none
	hold  chan struct{} // once armed, bytes for the server wait until it is closed
	held  chan struct{} // closed when they wait

	mu    sync.Mutex
	armed bool
	cut   bool
	open  []net.Conn
	once  sync.Once
}

// through returns the URL with the link in between.
func (l *link) through(tb testing.TB, address string) string {
	tb.Helper()
	u, err := url.Parse(address)
	if err != nil {
		tb.Fatal(err)
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	go l.serve(context.WithoutCancel(tb.Context()), listener, u.Host)
	tb.Cleanup(func() {
		_ = listener.Close()
		l.closeAll()
	})
	u.Host = listener.Addr().String()
	return u.String()
}

func (l *link) serve(ctx context.Context, listener net.Listener, server string) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		var dialer net.Dialer
		upstream, err := dialer.DialContext(ctx, "tcp", server)
		if err != nil {
			_ = client.Close()
			continue
		}
		l.mu.Lock()
		l.open = append(l.open, client, upstream)
		l.mu.Unlock()
		go l.pass(upstream, client, l.wait)
		go l.pass(client, upstream, l.count())
	}
}

// pass copies until before refuses, or either end is closed; then it closes both.
func (l *link) pass(to, from net.Conn, before func(n int) bool) {
	defer func() { _, _ = to.Close(), from.Close() }()
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		if err != nil || !before(n) {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func (l *link) arm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed = true
}

func (l *link) wait(int) bool {
	l.mu.Lock()
	armed := l.armed
	l.mu.Unlock()
	if armed {
		l.once.Do(func() { close(l.held) })
		<-l.hold
	}
	return true
}

// count returns a function that cuts all connections when one has had the bytes that it may have.
func (l *link) count() func(n int) bool {
	passed := int64(0)
	return func(n int) bool {
		passed += int64(n)
		if l.limit == 0 || passed < l.limit {
			return true
		}
		l.mu.Lock()
		again := l.cut
		l.cut = true
		l.mu.Unlock()
		if !again {
			l.closeAll()
		}
		return again
	}
}

func (l *link) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.open {
		_ = conn.Close()
	}
}

func (l *link) wasCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}
