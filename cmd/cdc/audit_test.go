package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/sluicebox/sluicebox/internal/audit"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

// audit runs `cdc audit` and returns its exit code, what it prints and what it says.
func (l *line) audit(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return runCDC(t, []string{"DATABASE_URL=" + l.db.Daemon, "CLICKHOUSE_URL=" + l.db.Warehouse, "CDC_SLOT=" + l.slot},
		append([]string{"audit"}, args...)...)
}

func runCDC(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), &out, &said
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	if strings.Contains(said.String(), "DATA RACE") {
		t.Error("the race detector has found something")
	}
	return cmd.ProcessState.ExitCode(), out.String(), said.String()
}

// wantAudit fails unless an audit ends with a code and a result.
func (l *line) wantAudit(t *testing.T, code int, result string, args ...string) *audit.Report {
	t.Helper()
	got, stdout, stderr := l.audit(t, append(args, "--json")...)
	report := &audit.Report{}
	if err := json.Unmarshal([]byte(stdout), report); err != nil {
		t.Fatalf("%v: code %d\n%s%s", err, got, stdout, stderr)
	}
	if got != code || report.Result != result {
		t.Fatalf("code %d, result %q, want %d, %q:\n%s%s", got, report.Result, code, result, stdout, stderr)
	}
	return report
}

func TestAudit(t *testing.T) {
	t.Parallel()
	t.Run("what the daemon delivered is the same to the byte", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		l.write(t, 500, 50)
		for _, trace := range []string{
			"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", "",
			"00-4bf92f3577b34da6a3ce929d0e0e4736", "no trace at all", "00-too-short-01", "-éééééééééééééééé-", "-éééééééééééééééééééééééééééééééé-", "--",
		} {
			l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context, metadata_version, trace_context) VALUES
				('user has been created', '1931-03-14 15:09:26.535897+05', 'zoë', '{"email": "zoë@example.com", "n": 1e400, "deep": [[[]]], "text": "\\ \" \n 🦆 שלום"}', 7, $1),
				(E'odd \x1f type''', '2261-12-31 23:59:59.999999+00', '', '"text"', 2147483647, $1),
				('thing', '1970-01-01 00:00:00+00', E'\\', 'null', 1, $1), ('thing', '1969-12-31 23:59:59.999999+00', 'x', '[1.10, -0.0]', 1, $1)`, trace)
		}
		l.allMarked(t)
		report := l.wantAudit(t, 0, "same")
		if report.Postgres != 536 || report.ClickHouse != 536 || len(report.NotCompared) > 0 {
			t.Errorf("%d and %d events, not compared: %q; want 536", report.Postgres, report.ClickHouse, report.NotCompared)
		}
	})
	t.Run("differences are named for people and end with code 6", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		l.write(t, 100, 100)
		l.allMarked(t)
		d.stop(t)
		l.execClickHouse(t, `DELETE FROM event_log WHERE id IN (11, 12, 13, 20)`)
		l.execClickHouse(t, `INSERT INTO event_log SELECT * FROM event_log WHERE id = 30 SETTINGS insert_deduplicate = 0`)
		var day string // of the events: it may be tomorrow by now
		if err := l.pg.QueryRow(t.Context(), `SELECT (max(event_date_time) AT TIME ZONE 'UTC')::date::text FROM event_outbox`).Scan(&day); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := l.audit(t)
		if code != 6 {
			t.Errorf("code %d, want 6", code)
		}
		for _, want := range []string{"ids 11-13, 20\n", "ids 30 (2 times)\n", "differs: 100 events in Postgres, 97 in ClickHouse, over 1 days", day} {
			if !strings.Contains(stdout, want) {
				t.Errorf("the report does not say %q:\n%s", want, stdout)
			}
		}
		if strings.Contains(stdout, "\x1b") {
			t.Errorf("colour, although nobody watches: %q", stdout)
		}
		if !strings.Contains(stderr, "4 missing, 1 duplicated") || !strings.Contains(stderr, "--repair") {
			t.Errorf("standard error: %s", stderr)
		}
		if code, stdout, _ := l.audit(t, "--until", "24h"); code != 0 || !strings.Contains(stdout, "same: 0 events in Postgres, 0 in ClickHouse") {
			t.Errorf("code %d for the time before:\n%s", code, stdout)
		}
		report := l.wantAudit(t, 6, "differs", "--repair")
		if r := report.Repair; r == nil || r.Requested != 4 || r.Stopped != audit.StoppedNoDaemon {
			t.Errorf("a repair without a daemon: %+v", r)
		}
	})
	t.Run("what can't be compared ends with code 3 or 1, and never with 0", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		clickhouse, err := url.Parse(l.db.ClickHouseURL)
		if err != nil {
			t.Fatal(err)
		}
		clickhouse.User = url.UserPassword(clickhouse.User.Username(), "not-the-password")
		l.exec(t, `INSERT INTO sluicebox.stream (slot) VALUES ($1)`, l.slot)
		for _, c := range []struct {
			code int
			want string
			args []string
		}{
			{3, "no daemon has ever run with slot nobody", []string{"--slot", "nobody"}},
			{3, "run `cdc migrate`", []string{"--database-url", testdb.New(t).PostgresURL}},
			{3, "check user and password in CLICKHOUSE_URL", []string{"--clickhouse-url", clickhouse.String()}},
			{1, "is Postgres up", []string{"--database-url", "postgres://127.0.0.1:1/x"}},
			{1, "look at table event_log", []string{"--clickhouse-url", "clickhouse://127.0.0.1:1/x"}},
			{2, "is not before --until", []string{"--since", "2026-02-01", "--until", "2026-01-01"}},
			{2, "is not a date", []string{"--since", "yesterday"}},
		} {
			code, stdout, stderr := l.audit(t, c.args...)
			if code != c.code || !strings.Contains(stderr, c.want) || stdout != "" {
				t.Errorf("%q: code %d, want %d and %q:\n%s%s", c.args, code, c.code, c.want, stdout, stderr)
			}
			if strings.Contains(stderr, "not-the-password") {
				t.Errorf("a password is told: %s", stderr)
			}
		}
	})
	t.Run("it needs no more than to read, and a repair no more than to ask", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		l.write(t, 100, 100)
		l.allMarked(t)
		d.stop(t)
		l.execClickHouse(t, `DELETE FROM event_log WHERE id = 7`)
		role := strings.Replace(l.slot, "slot", "audit", 1)
		for _, statement := range []string{
			`CREATE ROLE ` + role + ` LOGIN PASSWORD 'audit'`,
			`GRANT SELECT ON event_outbox TO ` + role,
			`GRANT USAGE ON SCHEMA sluicebox TO ` + role,
			`GRANT SELECT ON ALL TABLES IN SCHEMA sluicebox TO ` + role,
		} {
			l.exec(t, statement)
		}
		t.Cleanup(func() {
			if _, err := l.pg.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil { //nolint:usetesting // cleaning up
				t.Error(err)
			}
		})
		as, err := url.Parse(l.db.PostgresURL)
		if err != nil {
			t.Fatal(err)
		}
		as.User = url.UserPassword(role, "audit")
		l.wantAudit(t, 6, "differs", "--database-url", as.String())
		if _, _, stderr := l.audit(t, "--database-url", as.String()); !strings.Contains(stderr, "GRANT INSERT, UPDATE ON sluicebox.audit") {
			t.Errorf("it does not say that its result is not kept:\n%s", stderr)
		}
		l.exec(t, `GRANT INSERT, UPDATE ON sluicebox.audit TO `+role)
		if _, _, stderr := l.audit(t, "--database-url", as.String()); strings.Contains(stderr, "sluicebox.audit") {
			t.Errorf("the role that docs/audit.md lists may not keep its result:\n%s", stderr)
		}
		if code, stdout, stderr := l.audit(t, "--repair", "--database-url", as.String()); code != 3 || !strings.Contains(stderr, "redelivery") {
			t.Errorf("code %d for a repair by a role that may not ask:\n%s%s", code, stdout, stderr)
		}
		l.exec(t, `GRANT INSERT ON sluicebox.redelivery TO `+role)
		report := l.wantAudit(t, 6, "differs", "--repair", "--database-url", as.String())
		if r := report.Repair; r == nil || r.Requested != 1 {
			t.Errorf("repair: %+v", r)
		}
	})
	t.Run("an audit that is stopped does not end with 0", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.exec(t, `INSERT INTO sluicebox.stream (slot) VALUES ($1)`, l.slot)
		l.write(t, 10, 10)
		lock, err := l.pg.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = lock.Rollback(context.Background()) }) //nolint:usetesting // cleaning up
		if _, err := lock.Exec(t.Context(), `LOCK TABLE event_outbox IN ACCESS EXCLUSIVE MODE`); err != nil {
			t.Fatal(err)
		}
		d := startCDC(t, []string{"DATABASE_URL=" + l.db.Daemon, "CLICKHOUSE_URL=" + l.db.Warehouse, "CDC_SLOT=" + l.slot}, "audit")
		eventually(t, func() string {
			if l.count(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'`, "sluicebox audit "+l.slot) == 0 {
				return "the audit does not wait for the lock"
			}
			return ""
		})
		if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		if code := d.end(t); code != 1 || !strings.Contains(d.text(), "stopped before the end of the audit") {
			t.Errorf("code %d:\n%s", code, d.text())
		}
	})
}

// TestAuditWhileDelivering audits again and again while events are written and delivered: each must find both sides the same.
func TestAuditWhileDelivering(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	d := l.start(t)
	l.write(t, 1000, 100)
	l.allMarked(t)
	stop := l.keepWriting(t, 50)
	audits := 10
	if testing.Short() {
		audits = 3
	}
	last := uint64(0)
	for range audits {
		eventually(t, func() string { // one batch may take longer than an audit
			if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); uint64(n) <= last {
				return fmt.Sprintf("%d events are delivered, as before", n)
			}
			return ""
		})
		report := l.wantAudit(t, 0, "same")
		if report.Postgres <= last {
			t.Errorf("%d events, %d before: nothing was delivered meanwhile", report.Postgres, last)
		}
		last = report.Postgres
	}
	stop()
	d.kill(t) // rows may be between write and settle now: no difference either
	l.wantAudit(t, 0, "same")
}

func TestAuditRepair(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	d := l.start(t)
	l.write(t, 2000, 100)
	l.allMarked(t)
	l.execClickHouse(t, `DELETE FROM event_log WHERE id % 10 = 0`)
	report := l.wantAudit(t, 6, "differs")
	if n := report.Differences[audit.Missing].Count; n != 200 {
		t.Fatalf("%d missing, want 200", n)
	}
	l.write(t, 100, 10) // delivery goes on beside the repair
	report = l.wantAudit(t, 0, "same", "--repair")
	if r := report.Repair; r == nil || r.Requested != 200 || r.Restored != 200 || r.Stopped != "" {
		t.Errorf("repair: %+v", r)
	}
	l.allMarked(t)
	l.wantAudit(t, 0, "same")
	if n := l.count(t, `SELECT count(*) FROM sluicebox.redelivery`); n != 0 {
		t.Errorf("%d requests are left", n)
	}

	t.Run("requests that are stored without a daemon are delivered by the next one", func(t *testing.T) {
		d.stop(t)
		l.execClickHouse(t, `DELETE FROM event_log WHERE id IN (1, 2, 3)`)
		report := l.wantAudit(t, 6, "differs", "--repair")
		if r := report.Repair; r == nil || r.Stopped != audit.StoppedNoDaemon {
			t.Errorf("repair: %+v", r)
		}
		l.start(t)
		eventually(t, func() string {
			if n := l.count(t, `SELECT count(*) FROM sluicebox.redelivery`); n > 0 {
				return "requests are left"
			}
			return ""
		})
		l.wantAudit(t, 0, "same")
	})
}

// TestAuditOfANewSlot audits a stream that carries an outbox after another one, under a new slot name, as docs/scaling.md tells: the events
// that came by the first are there, too.
func TestAuditOfANewSlot(t *testing.T) {
	t.Parallel()
	old := newLine(t)
	d := old.start(t)
	old.write(t, 100, 10)
	old.allMarked(t)
	d.stop(t)
	next := lineOn(t, old.db)
	next.start(t)
	next.write(t, 10, 10)
	next.noneWaits(t)
	next.wantAudit(t, 0, "same")
	next.execClickHouse(t, `DELETE FROM event_log WHERE id = 7`)
	if report := next.wantAudit(t, 6, "differs"); report.Differences[audit.Missing].Count != 1 {
		t.Errorf("%d are missing, want 1", report.Differences[audit.Missing].Count)
	}
	report := next.wantAudit(t, 0, "same", "--repair")
	if report.Postgres != 110 || report.ClickHouse != 110 {
		t.Errorf("same: %d events in Postgres, %d in ClickHouse", report.Postgres, report.ClickHouse)
	}
	var rows, ids uint64
	if err := old.ch.QueryRow(t.Context(), `SELECT count(), uniqExact(id) FROM event_log`).Scan(&rows, &ids); err != nil || rows != 110 || ids != 110 {
		t.Errorf("%d rows of %d events, %v; want 110 of each", rows, ids, err)
	}
}

// TestAuditWithoutRightOnIncidents repairs as a role that may not end an incident.
func TestAuditWithoutRightOnIncidents(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.start(t)
	l.write(t, 100, 100)
	l.allMarked(t)
	l.execClickHouse(t, `DELETE FROM event_log WHERE id = 7`)
	role := l.createRole(t, "audit", `LOGIN PASSWORD 'audit-password'`)
	for _, grant := range []string{
		`SELECT ON event_outbox`, `USAGE ON SCHEMA sluicebox`, `SELECT ON ALL TABLES IN SCHEMA sluicebox`, `INSERT, UPDATE ON sluicebox.audit`,
		`INSERT ON sluicebox.redelivery`,
	} {
		l.exec(t, `GRANT `+grant+` TO `+role)
	}
	u, err := url.Parse(l.db.PostgresURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "audit-password")
	code, stdout, stderr := l.audit(t, "--repair", "--database-url", u.String())
	if code != 0 || !strings.Contains(stdout, "same") || !strings.Contains(stderr, "GRANT UPDATE ON sluicebox.incident") {
		t.Errorf("code %d\n%s%s", code, stdout, stderr)
	}
}
