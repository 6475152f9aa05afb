package api_test

import (
	"bytes"
	"errors"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

// nowhere is a database that refuses connections: nothing listens on port 1.
const nowhere = "postgres://user:canary@127.0.0.1:1/db"

func TestWithoutPostgres(t *testing.T) {
	t.Parallel()
	s := startOn(t, nowhere, api.Config{Environment: "test", OpenMetrics: true})

	t.Run("the service lives", func(t *testing.T) {
		t.Parallel()
		for _, path := range []string{"/livez", "/healthz", "/metrics", "/openapi.json", "/docs"} {
			if r := s.do(t, http.MethodGet, path, ""); r.status != http.StatusOK {
				t.Errorf("%s: answer %d %s", path, r.status, r.body)
			}
		}
	})

	t.Run("it is not ready, and says why without telling where Postgres is", func(t *testing.T) {
		t.Parallel()
		r := s.do(t, http.MethodGet, "/readyz", "")
		if p := wantProblem(t, r, http.StatusServiceUnavailable); p.Detail != "Postgres does not answer" || strings.Contains(r.body, "127.0.0.1") {
			t.Errorf("answer %s", r.body)
		}
	})

	t.Run("requests are told to come again", func(t *testing.T) {
		t.Parallel()
		for _, r := range []reply{
			s.create(t, "a@example.com"), s.create(t, "a@example.com", "Idempotency-Key", "k"),
			s.do(t, http.MethodGet, "/users", ""), s.do(t, http.MethodGet, "/users/1", ""),
		} {
			wantProblem(t, r, http.StatusServiceUnavailable)
			if r.header.Get("Retry-After") == "" {
				t.Errorf("no Retry-After: %v", r.header)
			}
		}
	})
}

func TestAnExhaustedPoolIsToldEarly(t *testing.T) {
	t.Parallel()
	s := startOn(t, withParameter(t, database(t), "pool_max_conns", "1"), api.Config{Environment: "test"})
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r, probe := s.create(t, "a@example.com"), s.do(t, http.MethodGet, "/readyz", "")
	conn.Release()
	wantProblem(t, r, http.StatusServiceUnavailable)
	if p := wantProblem(t, probe, http.StatusServiceUnavailable); p.Detail != "every connection to Postgres is in use" {
		t.Errorf("not ready because %q", p.Detail)
	}
	if again := s.create(t, "a@example.com"); again.status != http.StatusCreated {
		t.Errorf("later: answer %d %s", again.status, again.body)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	s := start(t)
	if r := s.do(t, http.MethodGet, "/readyz", ""); r.status != http.StatusOK {
		t.Errorf("answer %d %s", r.status, r.body)
	}
	if _, err := s.admin.Exec(t.Context(), `ALTER TABLE idempotency_key RENAME TO elsewhere`); err != nil {
		t.Fatal(err)
	}
	if p := wantProblem(t, s.do(t, http.MethodGet, "/readyz", ""), http.StatusServiceUnavailable); p.Detail != "the database has no table idempotency_key" {
		t.Errorf("reason %q", p.Detail)
	}
}

func TestOpen(t *testing.T) {
	t.Parallel()
	open := func(t *testing.T, url string) error {
		t.Helper()
		pool, err := api.Open(t.Context(), api.Settings{DatabaseURL: cli.NewCredential(url)}, zerolog.Nop())
		if err == nil {
			pool.Close()
		}
		return err
	}
	address := database(t)

	t.Run("a database with all tables is taken", func(t *testing.T) {
		t.Parallel()
		if err := open(t, address); err != nil {
			t.Error(err)
		}
	})

	t.Run("a Postgres that does not answer is waited for", func(t *testing.T) {
		t.Parallel()
		if err := open(t, nowhere); err != nil {
			t.Error(err)
		}
	})

	t.Run("a connection over a network that may not be encrypted is warned of", func(t *testing.T) {
		t.Parallel()
		for parameters, want := range map[string]bool{"": true, "?sslmode=verify-full": false} {
			var log bytes.Buffer
			pool, err := api.Open(t.Context(), api.Settings{DatabaseURL: cli.NewCredential("postgres://u:canary@db.invalid/db" + parameters)}, zerolog.New(&log))
			if err != nil {
				t.Fatal(err)
			}
			pool.Close()
			if text := log.String(); strings.Contains(text, "may not be encrypted") != want || strings.Contains(text, "canary") {
				t.Errorf("%q: the log says\n%s", parameters, text)
			}
		}
	})

	t.Run("there are connections for commits that wait together, or as many as the URL says", func(t *testing.T) {
		t.Parallel()
		for parameters, want := range map[string]int32{"": int32(max(16, runtime.NumCPU())), "?pool_max_conns=3": 3} {
			pool, err := api.Open(t.Context(), api.Settings{DatabaseURL: cli.NewCredential("postgres://u@db.invalid/db" + parameters)}, zerolog.Nop())
			if err != nil {
				t.Fatal(err)
			}
			pool.Close()
			if got := pool.Config().MaxConns; got != want {
				t.Errorf("%q: %d connections, want %d", parameters, got, want)
			}
		}
	})

	t.Run("what an operator has to mend is exit code 3 with a hint", func(t *testing.T) {
		t.Parallel()
		for name, test := range map[string]struct{ url, reason, hint string }{
			"no tables":   {testdb.New(t).PostgresURL, "the database has no table users", `create the tables with "cdc migrate"`},
			"no database": {with(t, address, func(u *url.URL) { u.Path = "/nosuch" }), "the database does not exist", "correct its name in DATABASE_URL, or create it"},
			"no role":     {with(t, address, func(u *url.URL) { u.User = url.UserPassword("nosuch", "canary") }), "", ""},
			"no right":    {withoutRights(t, address), "the database role may not SELECT users", "GRANT SELECT ON users TO that role"},
		} {
			err := open(t, test.url)
			exit := new(cli.Exit)
			if !errors.As(err, &exit) || exit.Code != cli.CodePreflight || exit.Hint == "" {
				t.Errorf("%s: error %v", name, err)
				continue
			}
			if !strings.HasPrefix(err.Error(), test.reason) || test.hint != "" && exit.Hint != test.hint || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: error %v, hint %q", name, err, exit.Hint)
			}
		}
	})
}

func with(t *testing.T, address string, change func(*url.URL)) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	change(u)
	return u.String()
}

// withoutRights returns the address for sessions that act as a role which may do nothing.
func withoutRights(t *testing.T, address string) string {
	t.Helper()
	// Every Postgres has this role. One made for the test would belong to the whole server, and outlive a test that is killed.
	return withParameter(t, address, "role", "pg_signal_backend")
}

func withParameter(t *testing.T, address, name, value string) string {
	t.Helper()
	return with(t, address, func(u *url.URL) {
		q := u.Query()
		q.Set(name, value)
		u.RawQuery = q.Encode()
	})
}
