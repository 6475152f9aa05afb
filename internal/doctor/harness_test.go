package doctor

import (
	"context"
	"math"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
)

// patience bounds every wait of these tests, and is no claim about speed.
const patience = 60 * time.Second

func TestMain(m *testing.M) { testdb.Main(m) }

// patient is an installation as it should be: roles with the rights that README.md lists, and a slot that somebody reads.
type patient struct {
	pg     *pgxpool.Pool // an administrator's
	ch     driver.Conn
	config Config
	stream *replication.Stream // reads the slot; nil: nobody does
}

const (
	sqlRole    = "sluicebox_sql"
	streamRole = "sluicebox_replication"
)

// newPatient has a Postgres of its own, whose settings and roles a test may change.
func newPatient(t *testing.T) *patient {
	t.Helper()
	server, db := testdb.OwnPostgres(t, map[string]string{"max_replication_slots": "8", "max_wal_senders": "6", "max_prepared_transactions": "2"}), testdb.New(t)
	db = &testdb.DB{PostgresURL: server.URL("postgres"), ClickHouseURL: db.ClickHouseURL}
	if _, err := migrations.Apply(t.Context(), db.PostgresURL, db.ClickHouseURL, migrations.Single); err != nil {
		t.Fatal(err)
	}
	p := &patient{pg: db.Postgres(t), ch: db.ClickHouse(t)}
	const password = "least-privilege"
	p.exec(t,
		`CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert', publish_via_partition_root = true)`,
		`CREATE ROLE `+sqlRole+` LOGIN PASSWORD '`+password+`'`,
		`CREATE ROLE `+streamRole+` LOGIN REPLICATION PASSWORD '`+password+`'`,
		`GRANT SELECT, UPDATE (processed, processed_at) ON event_outbox TO `+sqlRole,
		`GRANT USAGE ON SCHEMA sluicebox TO `+sqlRole,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sluicebox TO `+sqlRole,
		`GRANT `+streamRole+` TO `+sqlRole,
		`GRANT pg_read_all_stats TO `+sqlRole,
		`INSERT INTO sluicebox.stream (slot, phase) VALUES ('sluicebox', 'stream')`,
	)
	as := func(role string) string {
		u, err := url.Parse(db.PostgresURL)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(role, password)
		return u.String()
	}
	stream := replication.Config{URL: as(streamRole), Slot: "sluicebox", Publication: "sluicebox", Schema: "public", Table: "event_outbox"}
	p.config = Config{
		Postgres: as(sqlRole), Replication: stream, ClickHouse: db.ClickHouseURL, TargetTable: "event_log",
		BatchRows: 50_000, BatchBytes: 16 << 20, InsertDeadline: 5 * time.Minute, MaxSlotWAL: 10 << 30, AdminAddr: "127.0.0.1:8081",
		Host: Host{Memory: 1 << 30, GoMemory: math.MaxInt64, OpenFiles: 1024, Clock: ClockSynchronized},
	}
	created, err := replication.CreateSlot(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	created.Close(t.Context())
	p.read(t, created.Start)
	return p
}

// read reads the slot, as a daemon does, until the test ends.
func (p *patient) read(t *testing.T, from uint64) {
	t.Helper()
	stream, err := replication.Start(t.Context(), p.config.Replication, from, from)
	if err != nil {
		t.Fatal(err)
	}
	p.stream = stream
	t.Cleanup(func() {
		if p.stream == nil {
			return
		}
		select {
		case <-stream.Done():
			t.Errorf("the stream has ended before the test: %v", stream.Err())
		default:
			stream.Close()
		}
	})
}

// leave ends the reading of the slot.
func (p *patient) leave() {
	p.stream.Close()
	p.stream = nil
}

// exec runs statements of an administrator.
func (p *patient) exec(t *testing.T, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := p.pg.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func (p *patient) execClickHouse(t *testing.T, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if err := p.ch.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// look runs all checks and returns what one has found.
func finding(t *testing.T, config Config, name string) Finding {
	t.Helper()
	report := Run(t.Context(), config)
	i := slices.IndexFunc(report.Findings, func(f Finding) bool { return f.Check == name })
	if i < 0 {
		t.Fatalf("there is no check %s", name)
	}
	return report.Findings[i]
}

// until looks again and again until a check gives a result: some settings take effect a moment after they were changed.
func until(t *testing.T, config Config, name string, want Result) Finding {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		f := finding(t, config, name)
		if f.Result == want {
			return f
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("%s is %s, want %s: %+v", name, f.Result, want, f)
		}
	}
}

// statements are those of a mend, one after the other.
func statements(mend string) []string {
	for _, words := range []string{", or ", "; or "} { // what follows a statement is advice
		mend, _, _ = strings.Cut(mend, words)
	}
	return strings.Split(mend, "; ")
}

// judge runs one check on what is known already.
func judge(ctx context.Context, name string, l *look) Finding {
	for _, side := range append(sides(), bothSides()) {
		for _, c := range side {
			if c.name == name {
				return c.run(ctx, l)
			}
		}
	}
	return Finding{}
}
