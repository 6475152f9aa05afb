package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/doctor"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
)

// doctor runs `cdc doctor` with the least privileges, and settings.
func (l *line) doctor(t *testing.T, settings []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return runCDC(t, append([]string{"DATABASE_URL=" + l.db.PostgresURL, "CLICKHOUSE_URL=" + l.db.Warehouse, "CDC_SLOT=" + l.slot}, settings...),
		append([]string{"doctor"}, args...)...)
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	roles := []string{"DATABASE_URL=" + l.db.Daemon, "REPLICATION_DATABASE_URL=" + l.db.Replication, "CDC_MAX_SLOT_WAL=10GB"}
	d := l.start(t, roles...)
	l.write(t, 10, 10)
	l.allMarked(t)
	t.Run("beside a daemon that delivers, nothing fails", func(t *testing.T) {
		code, stdout, stderr := l.doctor(t, roles, "--json")
		var report doctor.Report
		if err := json.Unmarshal([]byte(stdout), &report); err != nil {
			t.Fatalf("%v:\n%s%s", err, stdout, stderr)
		}
		for _, f := range report.Findings {
			// Tests run without fsync, on whatever host this is, and beside other tests that use the same servers.
			if f.Result == doctor.Fail || f.Result == doctor.Warn && f.Check != "postgres.fsync" && !strings.HasPrefix(f.Check, "host.") && f.Check != "postgres.old_transaction" {
				t.Errorf("%s %s: %s", f.Result, f.Check, f.Seen)
			}
		}
		if code != 1 || report.Result != doctor.Warn { // for fsync
			t.Errorf("code %d, result %s:\n%s", code, report.Result, stderr)
		}
	})
	t.Run("a failure comes first, with what mends it, and gives code 3", func(t *testing.T) {
		code, stdout, stderr := l.doctor(t, append(roles, "CDC_PUBLICATION=other"))
		ended{stdout, stderr, code}.want(t, 3, "fail: 1 failed, ", "fail publication.exists\n there is no such publication in this database\n wanted: publication other\n"+
			" mend: run `cdc migrate` as the owner of the outbox\n", "\nwarn postgres.fsync\n", "ok postgres.wal_level logical\n", "cdc: 1 check failed")
		if strings.Index(stdout, "publication.exists") > strings.Index(stdout, "postgres.wal_level") {
			t.Errorf("the failure does not come first:\n%s", stdout)
		}
		if strings.Contains(stdout, "\x1b") {
			t.Errorf("colours where there is no terminal:\n%q", stdout)
		}
	})
	t.Run("wrong settings give code 2", func(t *testing.T) {
		code, stdout, stderr := l.doctor(t, []string{"CDC_RETENTION=1s"})
		ended{stdout, stderr, code}.want(t, 2, "CDC_RETENTION")
	})
	t.Run("secrets that everybody may read are found", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "url")
		if err := os.WriteFile(path, []byte(l.db.Daemon), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o604); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := runCDC(t, []string{"DATABASE_URL=", "DATABASE_URL_FILE=" + path, "CLICKHOUSE_URL=" + l.db.ClickHouseURL, "CDC_SLOT=" + l.slot}, "doctor")
		if !strings.Contains(stdout, "settings.secret_files") || !strings.Contains(stdout, "chmod o= "+path) {
			t.Errorf("code %d:\n%s%s", code, stdout, stderr)
		}
	})
	t.Run("a daemon that starts logs what is not as it should be, and delivers", func(t *testing.T) {
		if code := d.stop(t); code != 0 {
			t.Fatalf("code %d", code)
		}
		l.exec(t, `CREATE INDEX slows_marks ON event_outbox (id) WHERE NOT processed`)
		d := l.start(t, roles...)
		d.wait(t, "slows_marks")
		if text := d.text(); !strings.Contains(text, `"check":"outbox.processed_index"`) || !strings.Contains(text, "DROP INDEX CONCURRENTLY slows_marks") {
			t.Errorf("the log does not say what mends it:\n%s", text)
		}
		l.write(t, 10, 10)
		l.allMarked(t)
		if n := strings.Count(d.text(), `"check":"outbox.processed_index"`); n != 1 {
			t.Errorf("it is logged %d times:\n%s", n, d.text())
		}
	})
}

// TestExaminedLater has ClickHouse down when the daemon starts.
func TestExaminedLater(t *testing.T) {
	t.Parallel()
	l, server := newOwnSinkLine(t)
	l.execClickHouse(t, `ALTER TABLE event_log MODIFY SETTING fsync_after_insert = 0`)
	server.Kill()
	d := l.start(t)
	d.wait(t, "is ClickHouse up, and CLICKHOUSE_URL right?")
	if strings.Contains(d.text(), "not as it should be") {
		t.Errorf("it tells of what it could not look at:\n%s", d.text())
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.wait(t, `"check":"target.fsync"`)
}

// TestDoctorOfHiddenViews has the grants of the daemon's role, by which ClickHouse shows neither a view nor what it fills.
func TestDoctorOfHiddenViews(t *testing.T) {
	t.Parallel()
	server := testdb.OwnClickHouse(t, migrations.ClickHouseGrants(migrations.DaemonRole, "default")...)
	l := newLine(t)
	l.db = l.db.OnClickHouse(t, server)
	l.ch = l.db.ClickHouse(t)
	if _, err := migrations.Apply(t.Context(), l.db.PostgresURL, l.db.ClickHouseURL, migrations.Single); err != nil {
		t.Fatal(err)
	}
	l.execClickHouse(t, `CREATE TABLE filled (id UInt64) ENGINE = MergeTree ORDER BY id`)
	l.execClickHouse(t, `CREATE MATERIALIZED VIEW v TO filled AS SELECT id FROM event_log`)
	for address, want := range map[string]string{l.db.ClickHouseURL: "warn", l.db.Warehouse: "skip"} {
		_, out, _ := runCDC(t, []string{"DATABASE_URL=" + l.db.Daemon, "CLICKHOUSE_URL=" + address, "CDC_SLOT=" + l.slot}, "doctor", "--json")
		var report struct {
			Findings []struct{ Check, Result, Seen string }
		}
		if err := json.Unmarshal([]byte(out), &report); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, f := range report.Findings {
			if f.Check == "target.views" && f.Result != want {
				t.Errorf("%s: %s, want %s", f.Result, f.Seen, want)
			}
		}
	}
}
