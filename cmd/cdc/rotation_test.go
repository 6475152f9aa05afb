package main

import (
	"context"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

// secret is a URL in a file, as programs get it from a secret store. Its first password is one.
type secret struct {
	path string
	url  *url.URL
}

func newSecret(t *testing.T, address, user string) *secret {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	s := &secret{path: filepath.Join(t.TempDir(), "url"), url: u}
	u.User = url.User(user)
	s.change(t, "one")
	return s
}

// change puts another password into the file, in one step.
func (s *secret) change(t *testing.T, password string) {
	t.Helper()
	s.url.User = url.UserPassword(s.url.User.Username(), password)
	if err := os.WriteFile(s.path+".new", []byte(s.url.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.path+".new", s.path); err != nil {
		t.Fatal(err)
	}
}

// role makes a role with the rights of the daemon, its replication and the API, and returns its name.
func (l *line) role(t *testing.T, kind, password string) string {
	t.Helper()
	return l.createRole(t, kind, `LOGIN REPLICATION PASSWORD '`+password+`' IN ROLE sluicebox_daemon, sluicebox_api`)
}

// createRole makes a role, for as long as the test lasts, and returns its name.
func (l *line) createRole(t *testing.T, kind, options string) string {
	t.Helper()
	name := strings.Replace(l.slot, "slot", kind, 1)
	l.exec(t, `CREATE ROLE `+name+` `+options)
	t.Cleanup(func() {
		if _, err := l.pg.Exec(context.Background(), `DROP OWNED BY `+name+`; DROP ROLE `+name); err != nil { //nolint:usetesting // cleaning up
			t.Error(err)
		}
	})
	return name
}

// rotate gives a role another password and ends its sessions.
func (l *line) rotate(t *testing.T, role, password string) {
	t.Helper()
	l.exec(t, `ALTER ROLE `+role+` PASSWORD '`+password+`'`)
	l.exec(t, `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1`, role)
}

func startClickHouse(t *testing.T, options embedded.ClickHouseOptions) *embedded.ClickHouse {
	t.Helper()
	server, err := embedded.StartClickHouse(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil { //nolint:usetesting // cleaning up
			t.Error(err)
		}
	})
	return server
}

func port(t *testing.T, address string) int {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRotatedPasswords(t *testing.T) {
	t.Parallel()
	t.Run("the daemon takes up those of Postgres, SQL and replication, and leads again", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		sql, replication := l.role(t, "sql", "one"), l.role(t, "repl", "one")
		sqlURL, replicationURL := newSecret(t, l.db.PostgresURL, sql), newSecret(t, l.db.PostgresURL, replication)
		d := l.start(t, "DATABASE_URL=", "DATABASE_URL_FILE="+sqlURL.path, "REPLICATION_DATABASE_URL_FILE="+replicationURL.path)
		l.write(t, 100, 10)
		l.allMarked(t)

		for role, file := range map[string]*secret{sql: sqlURL, replication: replicationURL} {
			l.write(t, 100, 10)
			l.rotate(t, role, "two")
			d.wait(t, `failed to connect to `+"`user="+role)
			l.write(t, 100, 10)
			file.change(t, "two")
			l.write(t, 100, 10)
			l.allMarked(t)
		}
		if _, page := d.get(t, "/readyz"); !strings.Contains(page, "streaming") {
			t.Errorf("it is not streaming:\n%s", page)
		}
		if code := d.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	})
	for protocol, address := range map[string]func(*embedded.ClickHouse, string) string{
		"the native protocol": (*embedded.ClickHouse).URL,
		"HTTP":                (*embedded.ClickHouse).HTTPURL,
	} {
		t.Run("the daemon takes up that of ClickHouse, by "+protocol, func(t *testing.T) {
			t.Parallel()
			options := embedded.ClickHouseOptions{Dir: t.TempDir(), Password: "one"}
			server := startClickHouse(t, options)
			db := testdb.New(t).OnClickHouse(t, server)
			db.Warehouse = db.ClickHouseURL // the one user that this server has
			l := migratedLineOn(t, db)
			file := newSecret(t, address(server, "default"), "sluicebox")
			d := l.start(t, "CLICKHOUSE_URL=", "CLICKHOUSE_URL_FILE="+file.path)
			l.write(t, 100, 10)
			l.allMarked(t)

			if err := server.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			options.Password, options.TCPPort, options.HTTPPort = "two", port(t, server.URL("")), port(t, server.HTTPURL(""))
			l.db.ClickHouseURL = startClickHouse(t, options).URL("default")
			l.ch = l.db.ClickHouse(t)
			l.write(t, 100, 10)
			d.wait(t, "check user and password in CLICKHOUSE_URL")
			file.change(t, "two")
			l.allMarked(t)
			if n := strings.Count(d.text(), "leading the stream"); n != 1 {
				t.Errorf("it took the lead %d times, want once: Postgres had no part in this", n)
			}
		})
	}
	t.Run("the API takes up that of Postgres", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		role := l.role(t, "api", "one")
		file := newSecret(t, l.db.PostgresURL, role)
		api := l.startAPI(t, "DATABASE_URL=", "DATABASE_URL_FILE="+file.path)
		ready := func(want int) {
			t.Helper()
			eventually(t, func() string {
				if code, body := api.get(t, "/readyz"); code != want {
					return body
				}
				return ""
			})
		}
		ready(http.StatusOK)
		l.rotate(t, role, "two")
		ready(http.StatusServiceUnavailable)
		file.change(t, "two")
		ready(http.StatusOK)
		api.post(t, "ada@example.com", "")
	})
}
