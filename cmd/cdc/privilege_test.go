package main

import (
	"context"
	"net/url"
	"strings"
	"testing"
)

// leastPrivileged makes the roles that the README lists, with the rights that it lists, and returns the name of the one for SQL and
// the URLs of both.
func (l *line) leastPrivileged(t *testing.T) (sql, sqlURL, replicationURL string) {
	t.Helper()
	sql = strings.Replace(l.slot, "slot", "sql", 1)
	replication := strings.Replace(l.slot, "slot", "repl", 1)
	const password = "least-privilege"
	for _, statement := range []string{
		`CREATE ROLE ` + sql + ` LOGIN PASSWORD '` + password + `'`,
		`CREATE ROLE ` + replication + ` LOGIN REPLICATION PASSWORD '` + password + `'`,
		`CREATE PUBLICATION sluicebox FOR TABLE event_outbox WITH (publish = 'insert', publish_via_partition_root = true)`, // as cdc migrate does
		`GRANT SELECT, UPDATE (processed, processed_at) ON event_outbox TO ` + sql,
		`GRANT USAGE ON SCHEMA sluicebox TO ` + sql,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sluicebox TO ` + sql,
		`GRANT ` + replication + ` TO ` + sql, // to end the walsender of a daemon that hangs
	} {
		l.exec(t, statement)
	}
	t.Cleanup(func() {
		for _, role := range []string{sql, replication} {
			if _, err := l.pg.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil { //nolint:usetesting // cleaning up
				t.Error(err)
			}
		}
	})
	as := func(role string) string {
		u, err := url.Parse(l.db.PostgresURL)
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(role, password)
		return u.String()
	}
	return sql, as(sql), as(replication)
}

// TestLeastPrivilege runs the daemon and the commands of operators with the rights that the README lists, and no more.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	_, sql, replication := l.leastPrivileged(t)
	l.write(t, 100, 10)
	d := l.start(t, "DATABASE_URL="+sql, "REPLICATION_DATABASE_URL="+replication)
	l.allMarked(t)
	l.write(t, 100, 10)
	l.allMarked(t)
	l.exec(t, `ALTER PUBLICATION sluicebox DROP TABLE event_outbox`)
	l.write(t, 10, 10)
	l.exec(t, `ALTER PUBLICATION sluicebox ADD TABLE event_outbox`)
	l.allMarked(t) // the slot was dropped and created again with these rights
	l.exec(t, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal) VALUES ($1, 1, 'planted', '0/0', 0)`, l.slot)
	for _, args := range []string{
		"status", "quarantine list", "quarantine show 1", "quarantine drop 1 --yes", "quarantine retry 1 --wait 0s",
	} {
		cmd := l.operator(t, strings.Fields(args)...)
		cmd.Env = append(cmd.Env, "DATABASE_URL="+sql)
		if out, err := cmd.CombinedOutput(); err != nil || args == "status" && !strings.HasPrefix(string(out), "streaming") {
			t.Errorf("cdc %s: %v\n%s", args, err, out)
		}
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}

	t.Run("a replication credential without REPLICATION is told of, with code 3", func(t *testing.T) {
		d := l.start(t, "DATABASE_URL="+sql, "REPLICATION_DATABASE_URL="+sql)
		if code := d.end(t); code != 3 || !strings.Contains(d.text(), "REPLICATION") {
			t.Errorf("code %d:\n%s", code, d.text())
		}
	})
}
