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
	db *testdb.DB
	pg *pgxpool.Pool
	ch driver.Conn
}

func newPair(tb testing.TB) *pair {
	tb.Helper()
	db := testdb.Migrated(tb)
	p := &pair{db: db, pg: db.Postgres(tb), ch: db.ClickHouse(tb)}
	p.exec(tb, `INSERT INTO sluicebox.stream (slot, outbox) VALUES ($1, 'public.event_outbox')`, slot)
	return p
}

// delivered is a pair with n events, 4000 a day from 2026-03-01 on, that are on both sides.
func delivered(tb testing.TB, n int) *pair {
	tb.Helper()
	p := newPair(tb)
	p.write(tb, n)
	p.deliver(tb, n)
	return p
}

// write commits n events that are processed.
func (p *pair) write(tb testing.TB, n int) {
	tb.Helper()
	p.exec(tb, `
INSERT INTO event_outbox (event_type, event_date_time, environment, event_context, trace_context, processed, processed_at)
SELECT 'user has been created', '2026-03-01 00:00:00+00'::timestamptz + n * interval '21.6 seconds', 'production',
       jsonb_build_object('n', n, 'text', repeat('x', 150), 'email', 'person' || n || '@example.com'),
       '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', true, now() - interval '1 day'
FROM generate_series(1, $1::bigint) n`, n)
	p.exec(tb, `VACUUM (ANALYZE) event_outbox`)
}

// deliver puts what write writes into ClickHouse, by ClickHouse itself: it is fast.
func (p *pair) deliver(tb testing.TB, n int) {
	tb.Helper()
	p.execClickHouse(tb, fmt.Sprintf(`
INSERT INTO event_log (source, id, event_type, event_date_time, environment, event_context, metadata_version, trace_id, lsn, ordinal, ingested_at)
SELECT '%s', number + 1 AS n, 'user has been created',
       fromUnixTimestamp64Micro(toInt64(toUnixTimestamp('2026-03-01 00:00:00', 'UTC')) * 1000000 + toInt64(n) * 21600000, 'UTC'), 'production',
       concat('{"n": ', toString(n), ', "text": "', repeat('x', 150), '", "email": "person', toString(n), '@example.com"}'), 1,
       '4bf92f3577b34da6a3ce929d0e0e4736', n, 1, now64(3) - INTERVAL 1 DAY
FROM numbers(%d) SETTINGS max_partitions_per_insert_block = 1000`, slot, n))
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
		ClickHouseURL: p.db.ClickHouseURL, Slot: slot, Schema: "public", Table: "event_outbox", TargetTable: "event_log", Patience: time.Millisecond,
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
	report, err := open(tb, p.pg, config).Run(tb.Context())
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

// cutter passes connections on to a server until it has passed so many bytes back on one of them; then all is cut, for good.
type cutter struct {
	limit    int64
	mu       sync.Mutex
	cut      bool
	open     []net.Conn
	listener net.Listener
}

// through returns the URL with the cutter in between.
func through(tb testing.TB, address string, limit int64) (string, *cutter) {
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
	c := &cutter{limit: limit, listener: listener}
	server := u.Host
	go c.serve(context.WithoutCancel(tb.Context()), server)
	tb.Cleanup(c.stop)
	u.Host = listener.Addr().String()
	return u.String(), c
}

func (c *cutter) serve(ctx context.Context, server string) {
	for {
		client, err := c.listener.Accept()
		if err != nil {
			return
		}
		var dialer net.Dialer
		upstream, err := dialer.DialContext(ctx, "tcp", server)
		if err != nil {
			_ = client.Close()
			continue
		}
		c.mu.Lock()
		c.open = append(c.open, client, upstream)
		c.mu.Unlock()
		go c.pass(upstream, client, -1)
		go c.pass(client, upstream, c.limit)
	}
}

func (c *cutter) pass(to, from net.Conn, limit int64) {
	buffer := make([]byte, 4096)
	for passed := int64(0); limit < 0 || passed < limit; {
		n, err := from.Read(buffer)
		if err != nil {
			_, _ = to.Close(), from.Close()
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
		passed += int64(n)
	}
	c.mu.Lock()
	c.cut = true
	c.mu.Unlock()
	c.stop()
}

func (c *cutter) stop() {
	_ = c.listener.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open {
		_ = conn.Close()
	}
}

func (c *cutter) wasCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut
}
