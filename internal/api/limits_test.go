package api_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
)

const (
	busy    = "more requests are in hand than this service can take; try again"
	tooMany = "this client sends too many requests; wait as long as Retry-After says"
)

func TestTooManyRequestsOfAClientAreRefused(t *testing.T) {
	t.Parallel()
	// So slow a rate that no token comes back during the test.
	s := startOn(t, database(t), api.Config{Environment: "test", Keys: cli.NewCredential("one,two"), OpenMetrics: true, RateLimit: 0.001, RateBurst: 3})
	one, two := []string{"Authorization", "Bearer one"}, []string{"Authorization", "Bearer two"}
	for range 5 {
		wantProblem(t, s.do(t, http.MethodGet, "/users", "", "Authorization", "Bearer other"), http.StatusUnauthorized)
		for _, path := range []string{"/openapi.json", "/docs", "/metrics", "/livez", "/readyz"} {
			if r := s.do(t, http.MethodGet, path, "", one...); r.status != http.StatusOK {
				t.Errorf("%s: answer %d %s", path, r.status, r.body)
			}
		}
	}

	s.create(t, "a@example.com", one...)
	s.do(t, http.MethodGet, "/users/1", "", one...)
	if r := s.do(t, http.MethodGet, "/users", "", one...); r.status != http.StatusOK {
		t.Errorf("the third request: answer %d %s", r.status, r.body)
	}
	for _, r := range []reply{
		s.create(t, "b@example.com", one...), s.do(t, http.MethodGet, "/users", "", one...),
		s.do(t, http.MethodGet, "/users", "", "Authorization", "bearer one", "X-Forwarded-For", "192.0.2.7"),
	} {
		if p := wantProblem(t, r, http.StatusTooManyRequests); p.Detail != tooMany {
			t.Errorf("reason %q", p.Detail)
		}
		if after, err := strconv.Atoi(r.header.Get("Retry-After")); err != nil || after < 1 || after > 1000 {
			t.Errorf("Retry-After %q", r.header.Get("Retry-After"))
		}
	}
	if r := s.do(t, http.MethodGet, "/users", "", two...); r.status != http.StatusOK {
		t.Errorf("the other key: answer %d %s", r.status, r.body)
	}
	for _, path := range []string{"/openapi.json", "/docs", "/metrics", "/livez", "/readyz"} {
		if r := s.do(t, http.MethodGet, path, "", one...); r.status != http.StatusOK {
			t.Errorf("%s: answer %d %s", path, r.status, r.body)
		}
	}
	wantRefused(t, s, "rate", 3)
}

func TestTooManyRequestsInHandAreRefused(t *testing.T) {
	t.Parallel()
	s := startOn(t, withParameter(t, database(t), "pool_max_conns", "4"), api.Config{Environment: "test", OpenMetrics: true, MaxRequests: 2})

	// What is in hand waits for this lock.
	lock := locked(t, s)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	begun := make(chan reply, 2)
	go func() { begun <- s.create(t, "a@example.com") }()
	left := make(chan error, 1)
	go func() { left <- s.abandoned(ctx) }()
	wantWaiting(t, lock, 2)

	// None of these would be answered before the lock is gone, were it not refused.
	answers := inParallel(20, func(i int) string {
		send := func() reply { return s.do(t, http.MethodGet, "/users", "") }
		if i%2 == 0 {
			send = func() reply { return s.create(t, "c@example.com") }
		}
		r := send()
		return wantProblem(t, r, http.StatusServiceUnavailable).Detail + ", after " + r.header.Get("Retry-After")
	})
	if answers[busy+", after 1"] != 20 {
		t.Errorf("answers %v", answers)
	}
	for _, path := range []string{"/livez", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"} {
		if r := s.do(t, http.MethodGet, path, ""); r.status != http.StatusOK {
			t.Errorf("%s: answer %d %s", path, r.status, r.body)
		}
	}
	wantRefused(t, s, "busy", 20)

	// A client that goes away leaves its place to another.
	leave()
	if err := <-left; err == nil {
		t.Error("the request of a client that went away was answered")
	}
	go func() {
		r := s.create(t, "b@example.com")
		for r.status == http.StatusServiceUnavailable {
			r = s.create(t, "b@example.com")
		}
		begun <- r
	}()
	wantWaiting(t, lock, 2)

	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := <-begun; r.status != http.StatusCreated {
			t.Errorf("a request that was in hand: answer %d %s", r.status, r.body)
		}
	}
	for range 5 { // one after the other, more of them than there are places
		if r := s.do(t, http.MethodGet, "/users", ""); r.status != http.StatusOK {
			t.Errorf("afterwards: answer %d %s", r.status, r.body)
		}
	}
	if n := s.count(t, `SELECT count(*) FROM users WHERE email IN ('a@example.com', 'b@example.com')`); n != 2 {
		t.Errorf("%d users", n)
	}
}

// locked keeps every request for users waiting until the transaction ends.
func locked(t *testing.T, s *service) pgx.Tx {
	t.Helper()
	lock, err := s.admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lock.Rollback(context.WithoutCancel(t.Context())) })
	if _, err := lock.Exec(t.Context(), `LOCK TABLE users`); err != nil {
		t.Fatal(err)
	}
	return lock
}

// wantWaiting returns once so many requests wait for the lock.
func wantWaiting(t *testing.T, lock pgx.Tx, want int) {
	t.Helper()
	for waiting := -1; waiting != want; {
		const query = `SELECT count(*) FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted`
		if err := lock.QueryRow(t.Context(), query).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
}

// abandoned sends a request whose client goes away when ctx is done.
func (s *service) abandoned(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/users", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// wantRefused checks how many requests the metrics count as refused.
func wantRefused(t *testing.T, s *service, reason string, want int) {
	t.Helper()
	line := fmt.Sprintf("sluicebox_api_requests_refused_total{reason=%q} %d\n", reason, want)
	if text := s.do(t, http.MethodGet, "/metrics", "").body; !strings.Contains(text, line) {
		t.Errorf("no %s", line)
	}
}
