package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/migrations"
)

// slot is the replication slot of the daemons.
const slot = "sluicebox"

// stage is everything that takes part in a run.
type stage struct {
	o       options
	means   *means
	pg      *embedded.Postgres
	ch      *embedded.ClickHouse
	admin   *pgxpool.Pool // straight, as superuser: for the oracle and the faults
	click   driver.Conn   // the same for ClickHouse
	links   map[string]*link
	journal *journal
	oracle  *oracle
	load    *load
	api     *seat
	daemons []*seat
	runs    context.CancelFunc // ends the seats
	seats   sync.WaitGroup

	secrets  []string
	password atomic.Pointer[string] // of the daemons' role
	ungrant  atomic.Int64           // lines of logs in which ClickHouse says that a grant is missing
	denied   atomic.Int32           // faults that are active now and let a daemon end with code 3

	mu       sync.Mutex
	found    []string // violations
	happened map[string]int
	recovery []time.Duration
	peak     peaks
	timeline io.WriteCloser
	columns  []addedColumn

	probing sync.WaitGroup
}

// Roles of the daemons and of what writes.
const (
	daemonRole = "cdc"
	writerRole = "app"
	reader     = "reader" // of ClickHouse, who may not insert
)

const (
	postgresSettings = `shared_buffers=128MB max_connections=200 max_wal_size=2GB deadlock_timeout=200ms log_lock_waits=on checkpoint_timeout=30s`
	apiKey           = "planted-api-key-7c0ffee"
	firstPassword    = "planted-cdc-password"
	writerPassword   = "planted-app-password"
	clickPassword    = "planted-clickhouse-password"
)

// openStage builds the programs, starts everything, and returns once events flow.
func openStage(ctx context.Context, o options, m *means) (_ *stage, err error) {
	registerToxics()
	s := &stage{o: o, means: m, links: map[string]*link{}, journal: newJournal(), happened: map[string]int{}, runs: func() {}}
	s.secrets = []string{apiKey, firstPassword, writerPassword, clickPassword, personal}
	defer func() {
		if err != nil {
			s.close(ctx)
		}
	}()
	if s.timeline, err = os.Create(filepath.Join(o.logs, "timeline.log")); err != nil {
		return nil, err
	}
	if err := build(ctx, o.root, o.logs, o.race); err != nil {
		return nil, err
	}
	if err := s.openStores(ctx); err != nil {
		return nil, err
	}
	if err := s.openLinks(ctx); err != nil {
		return nil, err
	}
	s.oracle = &oracle{pg: s.admin, ch: s.click, slot: slot, journal: s.journal, report: s.violate}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.runs = stop
	s.api = s.seat("api", "api", nil, s.apiSettings)
	for _, name := range []string{"cdc-a", "cdc-b", "cdc-c"} {
		s.daemons = append(s.daemons, s.seat(name, "cdc", []string{"run"}, s.daemonSettings))
	}
	for _, seat := range append([]*seat{s.api}, s.daemons...) {
		s.seats.Go(func() { seat.keep(running) })
	}
	s.api.want(true)
	s.daemons[0].want(true)
	s.daemons[1].want(true)
	if !poll(ctx, time.Minute, func() bool { return s.api.url() != "" && s.leader(ctx) != nil }) {
		return nil, errors.New("no daemon streams after a minute")
	}
	s.load = newLoad(s)
	return s, nil
}

func (s *stage) openStores(ctx context.Context) (err error) {
	settings := map[string]string{}
	for pair := range strings.FieldsSeq(postgresSettings) {
		name, value, _ := strings.Cut(pair, "=")
		settings[name] = value
	}
	log, err := os.Create(filepath.Join(s.o.logs, "postgres.log"))
	if err != nil {
		return err
	}
	// It is killed often, which it survives without fsync: only the death of the operating system needs that.
	s.pg, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{
		Dir: s.means.postgresDisk.directory(), NoSync: true, Settings: settings, Log: log, Env: s.means.clock.environment(),
	})
	if err != nil {
		return err
	}
	s.ch, err = embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{
		Dir: s.means.clickHouseDisk.directory(), Password: clickPassword, Users: map[string][]string{reader: {"GRANT SELECT ON *.*"}},
	})
	if err != nil {
		return err
	}
	if _, err := migrations.Apply(ctx, s.pg.URL("postgres"), s.ch.URL("default"), migrations.Single); err != nil {
		return err
	}
	if s.admin, err = pgxpool.New(ctx, s.pg.URL("postgres")+"&pool_max_conns=16&connect_timeout=5&synchronous_commit=local"); err != nil {
		return err
	}
	if u, err := url.Parse(s.pg.URL("")); err == nil {
		superuser, _ := u.User.Password()
		s.secrets = append(s.secrets, superuser)
	}
	first := firstPassword
	s.password.Store(&first)
	for _, statement := range []string{
		`CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert')`, // as cdc migrate does
		`CREATE ROLE cdc LOGIN REPLICATION PASSWORD '` + firstPassword + `'`,
		`GRANT SELECT, UPDATE (processed, processed_at) ON event_outbox TO cdc`,
		`GRANT USAGE ON SCHEMA sluicebox TO cdc`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sluicebox TO cdc`,
		`CREATE ROLE app LOGIN PASSWORD '` + writerPassword + `'`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON users, idempotency_key, event_outbox TO app`,
	} {
		if err := s.sql(ctx, statement); err != nil {
			return err
		}
	}
	options, err := clickhouse.ParseDSN(s.ch.URL("default"))
	if err != nil {
		return err
	}
	options.DialTimeout, options.ReadTimeout = 5*time.Second, 30*time.Second
	s.click, err = clickhouse.Open(options)
	return err
}

func (s *stage) openLinks(ctx context.Context) error {
	const lowest, room = 20_000, 2_000 // below the range from which the kernel takes ports for outgoing connections
	port := lowest + rand.IntN(room)*5 //nolint:gosec // no secret
	for name, target := range map[string]string{
		linkSQL: s.pg.URL(""), linkReplication: s.pg.URL(""), linkClickHouse: s.ch.URL(""), linkWriters: s.pg.URL(""),
	} {
		l, err := openLink(ctx, name, target, port)
		if err != nil {
			return err
		}
		s.links[name] = l
		port += 100
	}
	return nil
}

func (s *stage) close(ctx context.Context) {
	s.runs()
	s.seats.Wait()
	for _, l := range s.links {
		l.down()
		l.hop.close()
	}
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
	if s.timeline != nil {
		_ = s.timeline.Close()
	}
}

// as is the URL of Postgres through a link, for a role.
func (s *stage) as(role, password, through string) string {
	u, err := url.Parse(s.links[through].through(s.pg.URL("postgres")))
	if err != nil {
		return ""
	}
	u.User = url.UserPassword(role, password)
	return u.String()
}

func (s *stage) daemonSettings() []string {
	password := *s.password.Load()
	return []string{
		"DATABASE_URL=" + s.as(daemonRole, password, linkSQL),
		"REPLICATION_DATABASE_URL=" + s.as(daemonRole, password, linkReplication),
		"CLICKHOUSE_URL=" + s.links[linkClickHouse].through(s.ch.URL("default")),
		"CDC_SLOT=" + slot, "CDC_ADMIN_ADDR=127.0.0.1:0", "CDC_BATCH_MAX_DELAY=100ms", "CDC_BATCH_MAX_ROWS=2000",
		"CDC_TAKEOVER_AFTER=3s", "CDC_SHUTDOWN_TIMEOUT=5s", "LOG_LEVEL=debug",
	}
}

func (s *stage) apiSettings() []string {
	return []string{
		"DATABASE_URL=" + s.as(writerRole, writerPassword, linkWriters), "API_ADDR=127.0.0.1:0", "API_KEYS=" + apiKey,
		"ENVIRONMENT=" + environment, "LOG_LEVEL=debug",
	}
}

// sql runs a statement as superuser. While Postgres is away it tries again, for some seconds.
func (s *stage) sql(ctx context.Context, statement string) error {
	return again(ctx, func(ctx context.Context) error {
		_, err := s.admin.Exec(ctx, statement)
		return err
	})
}

// scan reads one row in the same way.
func (s *stage) scan(ctx context.Context, into []any, query string, args ...any) error {
	return again(ctx, func(ctx context.Context) error { return s.admin.QueryRow(ctx, query, args...).Scan(into...) })
}

// again calls do until it succeeds, or fails for a reason that does not go by itself.
func again(ctx context.Context, do func(context.Context) error) error {
	const once = 10 * time.Second
	return againFor(ctx, once, do)
}

// againFor does the same with what may take some time.
func againFor(ctx context.Context, once time.Duration, do func(context.Context) error) error {
	limit := 2 * once
	end := time.Now().Add(limit)
	for {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, once)
			defer cancel()
			return do(ctx)
		}()
		if err == nil || ctx.Err() != nil || time.Now().After(end) || !passes(err) {
			return err
		}
		if !sleep(ctx, 100*time.Millisecond) {
			return err
		}
	}
}

// passes tells whether an error of Postgres or ClickHouse goes by itself.
func passes(err error) bool {
	var refused *pgconn.PgError
	var exception *clickhouse.Exception
	switch {
	case errors.As(err, &refused):
		return slices.Contains([]string{"57P01", "57P02", "57P03", "53100", "53300", "58030", "55006", "40P01", "55P03"}, refused.Code)
	case errors.As(err, &exception):
		return false
	}
	return true
}

// inClickHouse runs a statement there, and tries again while it is away.
func (s *stage) inClickHouse(ctx context.Context, statement string) error {
	return again(ctx, func(ctx context.Context) error { return s.click.Exec(ctx, statement) })
}

// leader is the seat whose daemon leads; nil: none says so.
func (s *stage) leader(ctx context.Context) *seat {
	var holder string
	if err := s.admin.QueryRow(ctx, `SELECT coalesce(holder, '') FROM sluicebox.stream WHERE slot = $1`, slot).Scan(&holder); err != nil {
		return nil
	}
	parts := strings.Split(holder, ":") // host:pid:nonce
	if len(parts) < 3 {
		return nil
	}
	for _, seat := range s.daemons {
		if p := seat.process(); p != nil && !p.ended() && strconv.Itoa(p.cmd.Process.Pid) == parts[1] {
			return seat
		}
	}
	return nil
}

// violate notes that an invariant did not hold.
func (s *stage) violate(what string) {
	s.tell("VIOLATION " + what)
	s.mu.Lock()
	defer s.mu.Unlock()
	const most = 1000 // one broken run can find the same thing over and over
	if len(s.found) < most && !slices.ContainsFunc(s.found, func(found string) bool { return strings.HasSuffix(found, " "+what) }) {
		s.found = append(s.found, time.Now().UTC().Format("15:04:05.000")+" "+what)
	}
}

// tell writes a line into the timeline.
func (s *stage) tell(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.timeline, "%s %s\n", time.Now().UTC().Format(time.RFC3339Nano), what) // a full disk shows elsewhere
}

func (s *stage) violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.found)
}

// inspect looks for what must not be in a log or in an answer.
func (s *stage) inspect(source, text string) {
	if strings.Contains(text, "code: 497") {
		s.ungrant.Add(1)
	}
	for _, secret := range s.secrets {
		if strings.Contains(text, secret) {
			s.violate(fmt.Sprintf("secret: %s says %q: %.300s", source, secret, text))
		}
	}
	for _, word := range []string{"panic: ", "DATA RACE", "fatal error: "} {
		if strings.Contains(text, word) {
			s.violate(fmt.Sprintf("crash: %s: %.300s", source, text))
		}
	}
}

// get asks a program over HTTP.
func (s *stage) get(ctx context.Context, seat *seat, path string) (status int, body string) {
	base := seat.url()
	if base == "" {
		return 0, ""
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
	if err != nil {
		return 0, ""
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, ""
	}
	s.inspect(seat.name+path, string(text))
	return response.StatusCode, string(text)
}
