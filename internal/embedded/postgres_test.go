//go:build linux

package embedded

import (
	"context"
	"errors"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func startPostgres(t *testing.T, options PostgresOptions) *Postgres {
	t.Helper()
	options.NoSync = true
	pg, err := StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := pg.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return pg
}

// ask runs one statement on a connection of its own and returns the only value of its answer.
func ask(t *testing.T, address, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	rows, err := conn.Query(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	defer rows.Close()
	var text string
	for rows.Next() {
		if values := rows.RawValues(); len(values) > 0 {
			text = string(values[0])
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return text
}

func TestPostgres(t *testing.T) {
	temp := tempDir(t)
	var log lines
	pg := startPostgres(t, PostgresOptions{Settings: map[string]string{"work_mem": "5MB", "application_name": `it's a \`}, Log: &log})
	tcp, socket := pg.URL("postgres"), pg.SocketURL("postgres")

	t.Run("it answers over TCP and over its socket", func(t *testing.T) {
		if got := ask(t, tcp, "SELECT host(inet_server_addr())"); got != "127.0.0.1" {
			t.Errorf("over TCP the server's address is %q", got)
		}
		if got := ask(t, socket, "SELECT inet_server_addr() IS NULL"); got != "t" {
			t.Error("SocketURL does not lead to a socket")
		}
	})
	t.Run("the superuser needs the password", func(t *testing.T) {
		for _, address := range []string{tcp, socket} {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			u.User = url.UserPassword(superuser, "wrong")
			if conn, err := pgx.Connect(t.Context(), u.String()); err == nil {
				_ = conn.Close(t.Context())
				t.Error("a wrong password is let in")
			}
		}
	})
	t.Run("settings are in force and can be altered", func(t *testing.T) {
		for name, want := range map[string]string{"wal_level": "logical", "work_mem": "5MB", "application_name": `it's a \`, "max_replication_slots": "32"} {
			if got := ask(t, tcp, "SELECT setting || coalesce(replace(unit, 'kB', ''), '') FROM pg_settings WHERE name = '"+name+"'"); got != want && got != "5120" {
				t.Errorf("%s = %s, want %s", name, got, want)
			}
		}
		ask(t, tcp, "ALTER SYSTEM SET work_mem = '6MB'")
		if err := pg.Restart(t.Context(), "fast"); err != nil {
			t.Fatal(err)
		}
		if got := ask(t, tcp, "SHOW work_mem"); got != "6MB" {
			t.Errorf("work_mem = %s after ALTER SYSTEM", got)
		}
	})
	t.Run("logical decoding works", func(t *testing.T) {
		ask(t, tcp, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
		ask(t, tcp, "SELECT pg_drop_replication_slot('s')")
	})
	t.Run("committed rows survive", func(t *testing.T) {
		ask(t, tcp, "CREATE TABLE kept (how text)")
		for name, down := range map[string]func() error{
			"a fast restart":       func() error { return pg.Restart(t.Context(), "fast") },
			"an immediate restart": func() error { return pg.Restart(t.Context(), "immediate") },
			"a kill": func() error {
				pg.Kill()
				return pg.Start(t.Context())
			},
			"a kill of a paused server": func() error {
				pg.Pause()
				pg.Kill()
				pg.Kill()
				return pg.Restart(t.Context(), "fast")
			},
		} {
			ask(t, tcp, "INSERT INTO kept VALUES ('"+name+"')")
			if err := down(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := ask(t, tcp, "SELECT count(*) FROM kept WHERE how = '"+name+"'"); got != "1" {
				t.Errorf("%s: %s rows, want 1", name, got)
			}
		}
	})
	t.Run("a kill with clients at work is recovered from", func(t *testing.T) {
		conn, err := pgx.Connect(t.Context(), tcp)
		if err != nil {
			t.Fatal(err)
		}
		asleep := make(chan error, 1)
		go func() {
			_, err := conn.Exec(t.Context(), "SELECT pg_sleep(3600)")
			asleep <- errors.Join(err, conn.Close(t.Context()))
		}()
		eventually(t, "the client sleeps", func() bool {
			return ask(t, socket, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == "1"
		})
		pg.Kill()
		if err := <-asleep; err == nil {
			t.Error("a client of a killed server got an answer")
		}
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a paused server does not answer and a resumed one does", func(t *testing.T) {
		pg.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := pg.ping(ctx); err == nil {
			t.Error("it answers while paused")
		}
		pg.Resume()
		if err := pg.ping(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("misuse is an error", func(t *testing.T) {
		if err := pg.Start(t.Context()); err == nil {
			t.Error("a running server can be started")
		}
		if err := pg.Restart(t.Context(), "smart"); err == nil {
			t.Error("restart takes any mode")
		}
	})
	t.Run("stopping leaves nothing", func(t *testing.T) {
		pid := pg.server.cmd.Process.Pid
		if !sharedMemory(t, pid) {
			t.Error("a running server has no shared memory; the test proves nothing")
		}
		pg.Kill() // an orderly stop is in every other test
		for range 2 {
			if err := pg.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		pg.Kill()
		if sharedMemory(t, pid) {
			t.Error("its shared memory is left behind")
		}
		if left := leftovers(t, temp); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if err := pg.Start(t.Context()); err == nil {
			t.Error("a server whose data are gone can be started")
		}
		if !strings.Contains(log.String(), "database system is ready to accept connections") {
			t.Errorf("the given log has:\n%s", log.String())
		}
	})
}

func TestPostgresInADirectoryOfTheCaller(t *testing.T) {
	dir := t.TempDir()
	pg := startPostgres(t, PostgresOptions{Dir: dir})
	ask(t, pg.URL("postgres"), "CREATE TABLE kept AS SELECT 1 AS n")
	for range 2 {
		if err := pg.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := pg.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := ask(t, pg.SocketURL("postgres"), "SELECT n FROM kept"); got != "1" {
			t.Errorf("after a stop and a start: %q", got)
		}
	}
	if err := pg.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := startPostgres(t, PostgresOptions{Dir: dir})
	if got := ask(t, other.URL("postgres"), "SELECT n FROM kept"); got != "1" {
		t.Errorf("a new server on the same directory: %q", got)
	}
	_, err := StartPostgres(t.Context(), PostgresOptions{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "postmaster.pid") {
		t.Errorf("a second server on the same directory: %v", err)
	}
}

func TestPostgresThatCannotStartSaysWhy(t *testing.T) {
	temp := tempDir(t)
	for name, options := range map[string]PostgresOptions{
		`invalid value for parameter "wal_level"`: {Settings: map[string]string{"wal_level": "nonsense"}},
		"Address already in use":                  {Port: startPostgres(t, PostgresOptions{}).port},
	} {
		options.NoSync = true
		if _, err := StartPostgres(t.Context(), options); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q: %v", name, err)
		}
	}
	if left := leftovers(t, temp); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
}

// sharedMemory tells whether there is a segment that a process made.
func sharedMemory(t *testing.T, pid int) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == strconv.Itoa(pid) {
			return true
		}
	}
	return false
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
