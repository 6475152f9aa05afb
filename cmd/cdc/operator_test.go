package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/testdb"
)

// operator is a command of an operator on the line, ready to run. It knows of Postgres alone.
func (l *line) operator(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), "DATABASE_URL="+l.db.Daemon, "CLICKHOUSE_URL=", "CDC_SLOT="+l.slot)
	return cmd
}

// ended is a command that has run to its end.
type ended struct {
	stdout, stderr string
	code           int
}

// operate runs a command of an operator to its end.
func (l *line) operate(t *testing.T, args ...string) ended {
	t.Helper()
	cmd := l.operator(t, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return ended{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want fails unless the command ended with the code, and said all of the texts on either output. The widths of columns do not matter.
func (e ended) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	if e.code != code {
		t.Errorf("exit code %d, want %d", e.code, code)
	}
	said := regexp.MustCompile(` +`).ReplaceAllString(e.stdout+e.stderr, " ")
	for _, text := range texts {
		if !strings.Contains(said, text) {
			t.Errorf("it does not say %q", text)
		}
	}
	if t.Failed() {
		t.Fatalf("standard output:\n%sstandard error:\n%s", e.stdout, e.stderr)
	}
}

// decode reads JSON of standard output.
func decode[T any](t *testing.T, e ended) (value T) {
	t.Helper()
	e.want(t, 0)
	if err := json.Unmarshal([]byte(e.stdout), &value); err != nil {
		t.Fatalf("%v in:\n%s", err, e.stdout)
	}
	return value
}

// lead makes the session of a test look like a daemon that leads the stream, until the test ends.
func (l *line) lead(t *testing.T, phase string) {
	t.Helper()
	l.exec(t, `INSERT INTO sluicebox.stream (slot, phase, epoch, holder, heartbeat_at)
		VALUES ($1, $2, 1, 'somebody', clock_timestamp()) ON CONFLICT (slot) DO UPDATE
		SET phase = excluded.phase, holder = excluded.holder, heartbeat_at = excluded.heartbeat_at`, l.slot, phase)
	conn, err := l.pg.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Release)
	if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock(1936487785, hashtext($1))`, l.slot); err != nil {
		t.Fatal(err)
	}
}

func TestOperatorErrors(t *testing.T) {
	t.Parallel()
	t.Run("a database that is not migrated is told of, with code 3", func(t *testing.T) {
		t.Parallel()
		l := lineOn(t, testdb.New(t))
		for _, args := range [][]string{{"status"}, {"quarantine", "list"}} {
			l.operate(t, args...).want(t, 3, "run `cdc migrate`")
		}
	})
	t.Run("rows are to be named, or all of them meant", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		for _, args := range []string{"retry", "drop --yes", "retry 1 --all", "drop 1 --all --yes"} {
			l.operate(t, append([]string{"quarantine"}, strings.Fields(args)...)...).want(t, 2, "one of the two")
		}
		l.operate(t, "quarantine", "drop", "1", "--reason-like", "x", "--yes").want(t, 2, "pass --all with it")
	})
}
