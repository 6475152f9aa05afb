package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/testdb"
)

// patience bounds every wait of these tests. It is not a claim about speed: a machine that is busy with other tests may take
// long, and a test that fails takes this long to say so.
const patience = 90 * time.Second

func TestMain(m *testing.M) { testdb.Main(m) }

// binary builds the daemon once, with failpoints, and apiBinary the service.
//
//nolint:gochecknoglobals // built once a test binary
var (
	binary    = sync.OnceValues(func() (string, error) { return build(".") })
	apiBinary = sync.OnceValues(func() (string, error) { return build("../api") })
)

func build(pkg string) (string, error) {
	dir, err := os.MkdirTemp("", "cdc")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "program")
	out, err := exec.CommandContext(context.Background(), "go", "build", raceFlag, "-tags", "failpoints", "-o", path, pkg).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w: %s", pkg, err, out)
	}
	return path, nil
}

// line is everything that a test of the daemon needs: both databases, migrated, and settings.
type line struct {
	db    *testdb.DB
	pg    *pgxpool.Pool
	ch    driver.Conn
	slot  string
	extra []string // settings, NAME=value
}

func newLine(t *testing.T) *line {
	t.Helper()
	return lineOn(t, testdb.Migrated(t))
}

// lineOn is a line on databases that are there.
func lineOn(t *testing.T, db *testdb.DB) *line {
	t.Helper()
	return &line{db: db, pg: db.Postgres(t), ch: db.ClickHouse(t), slot: db.Slot(t)}
}

// daemon is a running `cdc run`, or api.
type daemon struct {
	cmd    *exec.Cmd
	url    string // of what it serves, without a path
	mu     sync.Mutex
	log    []string
	exited chan struct{}
	code   int
	heard  chan struct{} // closed and replaced at each line of log
}

// start starts `cdc run` against the line. It returns once the admin address is served, or the process has ended.
func (l *line) start(t *testing.T, settings ...string) *daemon {
	t.Helper()
	own := slices.Concat(l.extra, settings)
	d := startCDC(t, slices.Concat(l.credentials(own), []string{
		"CDC_SLOT=" + l.slot, "CDC_ADMIN_ADDR=127.0.0.1:0", "CDC_BATCH_MAX_DELAY=50ms",
	}, own), "run")
	d.wait(t, "serving the status page, metrics and health")
	return d
}

// credentials are those of least privilege, but for databases that the settings name themselves.
func (l *line) credentials(settings []string) (env []string) {
	named := func(name string) bool {
		return slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	}
	if !named("DATABASE_URL") {
		env = append(env, "DATABASE_URL="+l.db.Daemon, "REPLICATION_DATABASE_URL="+l.db.Replication)
	}
	if !named("CLICKHOUSE_URL") {
		env = append(env, "CLICKHOUSE_URL="+l.db.Warehouse)
	}
	return env
}

func startCDC(t *testing.T, env []string, args ...string) *daemon {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	return start(t, path, env, args...)
}

// startAPI starts the service on the database of the line. It returns once it serves.
func (l *line) startAPI(t *testing.T, settings ...string) *daemon {
	t.Helper()
	path, err := apiBinary()
	if err != nil {
		t.Fatal(err)
	}
	d := start(t, path, append([]string{"DATABASE_URL=" + l.db.API, "API_ADDR=127.0.0.1:0"}, settings...))
	d.wait(t, `"message":"serving"`)
	return d
}

func start(t *testing.T, path string, env []string, args ...string) *daemon {
	t.Helper()
	d := &daemon{exited: make(chan struct{}), heard: make(chan struct{})}
	d.cmd = exec.CommandContext(t.Context(), path, args...)
	d.cmd.Cancel = func() error { return nil } // the cleanup ends it
	d.cmd.Env = append(os.Environ(), env...)
	out, err := d.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			d.add(lines.Text())
		}
		var exit *exec.ExitError
		if err := d.cmd.Wait(); err != nil && !errors.As(err, &exit) {
			d.add(err.Error())
		}
		d.code = d.cmd.ProcessState.ExitCode()
		close(d.exited)
	}()
	t.Cleanup(func() {
		_ = d.cmd.Process.Signal(syscall.SIGCONT)
		d.kill(t)
		if strings.Contains(d.text(), "DATA RACE") {
			t.Error("the race detector has found something in the program")
		}
		if t.Failed() {
			t.Logf("log of pid %d:\n%s", d.cmd.Process.Pid, d.text())
		}
	})
	return d
}

func (d *daemon) add(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, text)
	var entry struct{ Addr, Message string }
	if json.Unmarshal([]byte(text), &entry) == nil && strings.HasPrefix(entry.Message, "serving") {
		d.url = "http://" + entry.Addr
	}
	close(d.heard)
	d.heard = make(chan struct{})
}

func (d *daemon) text() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Join(d.log, "\n")
}

// wait waits for one of some texts in the log, or the end of the process.
func (d *daemon) wait(t *testing.T, texts ...string) {
	t.Helper()
	said := func(log string) bool {
		return slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(log, text) })
	}
	limit := time.After(patience)
	for {
		d.mu.Lock()
		found, heard := said(strings.Join(d.log, "\n")), d.heard
		d.mu.Unlock()
		if found {
			return
		}
		select {
		case <-heard:
		case <-d.exited:
			if !said(d.text()) {
				t.Fatalf("it ended with code %d before it said %q:\n%s", d.code, texts, d.text())
			}
		case <-limit:
			t.Fatalf("it did not say %q:\n%s", texts, d.text())
		}
	}
}

// end waits for the process to end and returns its exit code.
func (d *daemon) end(t *testing.T) int {
	t.Helper()
	select {
	case <-d.exited:
		return d.code
	case <-time.After(patience):
		t.Fatalf("it did not end:\n%s", d.text())
		return 0
	}
}

func (d *daemon) kill(t *testing.T) {
	t.Helper()
	_ = d.cmd.Process.Kill()
	d.end(t)
}

func (d *daemon) stop(t *testing.T) int {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	return d.end(t)
}

func (d *daemon) get(t *testing.T, path string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

// write commits n events, perTx in each transaction.
func (l *line) write(t *testing.T, n, perTx int) {
	t.Helper()
	for n > 0 {
		now := min(n, perTx)
		l.exec(t, insertEvents, now)
		n -= now
	}
}

const insertEvents = `
INSERT INTO event_outbox (event_type, environment, event_context)
SELECT 'thing has happened', 'test', jsonb_build_object('n', n, 'text', repeat('x', 50)) FROM generate_series(1, $1) n`

// keepWriting commits transactions of 1 to most events until stop is called, while fewer than 10,000 wait: a daemon that is slow, as
// under the race detector, has to deliver all of them in the end.
func (l *line) keepWriting(t *testing.T, most int) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		for n := 0; ctx.Err() == nil; n++ {
			_, err := l.pg.Exec(ctx, insertEvents+` WHERE (SELECT count(*) FROM event_outbox WHERE NOT processed) < 10000`, 1+n%most)
			if err != nil && ctx.Err() == nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
}

func (l *line) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := l.pg.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (l *line) execClickHouse(t *testing.T, sql string) {
	t.Helper()
	if err := l.ch.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (l *line) count(t *testing.T, sql string, args ...any) (n int64) {
	t.Helper()
	if err := l.pg.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// eventually waits until check gives an empty string.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for {
		problem := check()
		if problem == "" {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal(problem)
		}
	}
}

// allMarked waits until no row is unprocessed, and then holds both sides against each other.
func (l *line) allMarked(t *testing.T) {
	t.Helper()
	l.noneWaits(t)
	l.same(t)
}

// noneWaits waits until no row is unprocessed.
func (l *line) noneWaits(t *testing.T) {
	t.Helper()
	eventually(t, func() string {
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE NOT processed`); n > 0 {
			return fmt.Sprintf("%d rows are not processed", n)
		}
		return ""
	})
}

// event is what must be the same on both sides.
type event struct {
	ID          uint64
	Type        string
	At          time.Time
	Environment string
	Context     string
	Version     uint32
}

// same fails unless ClickHouse holds each committed, processed row exactly once and as it is, and nothing else.
func (l *line) same(t *testing.T) {
	t.Helper()
	want := l.eventsInPostgres(t)
	got := l.eventsInClickHouse(t)
	if len(want) != len(got) {
		t.Errorf("Postgres has %d processed events, ClickHouse %d rows", len(want), len(got))
	}
	if diff := firstDiff(want, got); diff != "" {
		t.Errorf("events differ (-Postgres +ClickHouse): %s", diff)
	}
}

func firstDiff(want, got []event) string {
	for i := range min(len(want), len(got)) {
		if diff := cmp.Diff(want[i], got[i]); diff != "" {
			return fmt.Sprintf("at %d: %s", i, diff)
		}
	}
	return ""
}

func (l *line) eventsInPostgres(t *testing.T) []event {
	t.Helper()
	rows, err := l.pg.Query(t.Context(), `
SELECT id, event_type, event_date_time, environment, event_context::text, metadata_version FROM event_outbox WHERE processed ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	events := scanEvents(t, rows)
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return events
}

func (l *line) eventsInClickHouse(t *testing.T) []event {
	t.Helper()
	rows, err := l.ch.Query(t.Context(), `
SELECT id, event_type, event_date_time, environment, event_context, metadata_version FROM event_log WHERE source = ? ORDER BY id`, l.slot)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	events := scanEvents(t, rows)
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return events
}

// scanEvents reads the rows of either database. The caller looks at their Err.
func scanEvents(t *testing.T, rows interface {
	Next() bool
	Scan(dest ...any) error
},
) (events []event) {
	t.Helper()
	for rows.Next() {
		var e event
		if err := rows.Scan(&e.ID, &e.Type, &e.At, &e.Environment, &e.Context, &e.Version); err != nil {
			t.Fatal(err)
		}
		e.At = e.At.UTC()
		events = append(events, e)
	}
	return events
}

// notRead waits until the server has ended the session that read the slot.
func (l *line) notRead(t *testing.T) {
	t.Helper()
	eventually(t, func() string {
		if l.count(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND active`, l.slot) > 0 {
			return "the slot is still read although the daemon has ended"
		}
		return ""
	})
}
