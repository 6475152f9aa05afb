package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// service is the API on a fresh database, behind a real HTTP server.
type service struct {
	api   *api.API
	pool  *pgxpool.Pool // its own, with the rights of its role
	admin *pgxpool.Pool
	url   string
	logs  *logs
}

// logs are lines of a log that several requests write.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func database(tb testing.TB) string {
	tb.Helper()
	db := testdb.New(tb)
	if _, err := migrations.Postgres(tb.Context(), db.Owner); err != nil {
		tb.Fatal(err)
	}
	conn, err := pgx.Connect(tb.Context(), db.Owner)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(tb.Context())) }()
	if _, err := migrations.Grant(tb.Context(), conn, "public", "event_outbox"); err != nil {
		tb.Fatal(err)
	}
	return db.PostgresURL
}

func start(tb testing.TB, keys ...string) *service {
	tb.Helper()
	return startOn(tb, database(tb), api.Config{Environment: "test", Keys: cli.NewCredential(strings.Join(keys, ","))})
}

func startOn(tb testing.TB, url string, config api.Config) *service {
	tb.Helper()
	admin, err := pgxpool.New(tb.Context(), url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(admin.Close)
	own := admin.Config()
	if own.ConnConfig.RuntimeParams["role"] == "" {
		own.ConnConfig.RuntimeParams["role"] = migrations.APIRole
	}
	pool, err := pgxpool.NewWithConfig(tb.Context(), own)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(pool.Close)
	s := &service{pool: pool, admin: admin, logs: &logs{}}
	config.Log = zerolog.New(s.logs).Level(zerolog.DebugLevel)
	if s.api, err = api.New(pool, config); err != nil {
		tb.Fatal(err)
	}
	server := httptest.NewServer(s.api)
	tb.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

// do sends a request. Headers are pairs of name and value.
func (s *service) do(tb testing.TB, method, path, body string, headers ...string) reply {
	tb.Helper()
	request, err := http.NewRequestWithContext(tb.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for pair := range slices.Chunk(headers, 2) {
		if pair[0] == "Content-Type" {
			request.Header.Del(pair[0])
		}
		if pair[1] != "-" {
			request.Header[http.CanonicalHeaderKey(pair[0])] = append(request.Header[http.CanonicalHeaderKey(pair[0])], pair[1])
		}
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		tb.Errorf("%s %s: %v", method, path, err)
		return reply{header: http.Header{}}
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		tb.Errorf("%s %s: %v", method, path, err)
	}
	return reply{response.StatusCode, response.Header, string(text)}
}

func (s *service) create(tb testing.TB, email string, headers ...string) reply {
	tb.Helper()
	return s.do(tb, http.MethodPost, "/users", userJSON(tb, email), headers...)
}

func userJSON(tb testing.TB, email string) string {
	tb.Helper()
	body, err := json.Marshal(api.NewUser{Email: email, FirstName: "Ada", LastName: "Lovelace"})
	if err != nil {
		tb.Fatal(err)
	}
	return string(body)
}

// count returns the one number that a query gives.
func (s *service) count(tb testing.TB, sql string) (n int) {
	tb.Helper()
	if err := s.admin.QueryRow(context.WithoutCancel(tb.Context()), sql).Scan(&n); err != nil {
		tb.Fatal(err)
	}
	return n
}

// problem is an answer as in RFC 9457.
type problem struct {
	Title, Detail string
	Status        int
	Errors        []struct{ Location, Message string }
}

// wantProblem checks that a reply is a problem document with this status, and returns it.
func wantProblem(tb testing.TB, r reply, status int) (p problem) {
	tb.Helper()
	if r.status != status || r.header.Get("Content-Type") != "application/problem+json" {
		tb.Errorf("answer %d %s, want %d application/problem+json: %s", r.status, r.header.Get("Content-Type"), status, r.body)
	}
	if err := json.Unmarshal([]byte(r.body), &p); err != nil {
		tb.Errorf("%v in %s", err, r.body)
	}
	if strings.Contains(r.body, `"value"`) {
		tb.Errorf("the problem repeats what the client sent: %s", r.body)
	}
	if p.Status != status || p.Title == "" || p.Detail == "" {
		tb.Errorf("problem %+v lacks status, title or detail", p)
	}
	return p
}

// fields are the bad fields that a problem names, with the reason for each.
func (p problem) fields() []string {
	var all []string
	for _, e := range p.Errors {
		all = append(all, e.Location+": "+e.Message)
	}
	return all
}
