package api_test

import (
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
)

func TestRoutesThatAreNotThere(t *testing.T) {
	t.Parallel()
	s := startOn(t, nowhere, api.Config{Environment: "test"})
	for _, path := range []string{"/", "/nosuch", "/users/", "/docs/", "/schemas/User.json"} {
		wantProblem(t, s.do(t, http.MethodGet, path, ""), http.StatusNotFound)
	}
	for path, allow := range map[string]string{"/users": "GET POST", "/users/1": "GET", "/livez": "GET"} {
		r := s.do(t, http.MethodDelete, path, "")
		wantProblem(t, r, http.StatusMethodNotAllowed)
		if got := strings.Join(r.header.Values("Allow"), " "); got != allow {
			t.Errorf("%s allows %q, want %q", path, got, allow)
		}
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	t.Parallel()
	s := startOn(t, nowhere, api.Config{Environment: "test", Keys: cli.NewCredential("key")})
	for _, path := range []string{"/livez", "/readyz", "/users", "/nosuch"} {
		r := s.do(t, http.MethodGet, path, "", "X-Request-Id", "given-by.a_proxy1")
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "X-Request-Id": "given-by.a_proxy1",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
	}
	for _, given := range []string{"", "a b", "ä", strings.Repeat("x", 65)} {
		if got := s.do(t, http.MethodGet, "/livez", "", "X-Request-Id", given).header.Get("X-Request-Id"); got == given || len(got) < 20 {
			t.Errorf("request id %q for %q", got, given)
		}
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	// The third is known by its digest alone: printf %s third-key | sha256sum
	const digest = "sha256:c3459480502070372835c7c5cc038c81d457d1fe08de10d76fb5bbb4b7d6af8c"
	s := start(t, "first-key", "second-key", digest)

	t.Run("each key opens the service", func(t *testing.T) {
		t.Parallel()
		for _, authorization := range []string{"Bearer first-key", "Bearer second-key", "bearer first-key", "Bearer third-key"} {
			for _, path := range []string{"/users", "/metrics", "/openapi.json", "/docs"} {
				if r := s.do(t, http.MethodGet, path, "", "Authorization", authorization); r.status != http.StatusOK {
					t.Errorf("%s with %q: answer %d %s", path, authorization, r.status, r.body)
				}
			}
		}
	})

	t.Run("nothing else does", func(t *testing.T) {
		t.Parallel()
		for _, authorization := range []string{
			"-", "", "Bearer", "Bearer ", "Bearer first", "Bearer first-keys", "Bearer first-key,second-key", "Basic first-key", "first-key",
			"Bearer " + digest, "Bearer " + strings.TrimPrefix(digest, "sha256:"),
		} {
			for _, r := range []reply{
				s.create(t, "a@example.com", "Authorization", authorization),
				s.do(t, http.MethodGet, "/users", "", "Authorization", authorization),
				s.do(t, http.MethodGet, "/metrics", "", "Authorization", authorization),
			} {
				wantProblem(t, r, http.StatusUnauthorized)
				if r.header.Get("WWW-Authenticate") != "Bearer" {
					t.Errorf("%q: no WWW-Authenticate", authorization)
				}
			}
		}
	})

	t.Run("the log tells which of the keys was used, so that one that nobody uses any more can be taken away", func(t *testing.T) {
		t.Parallel()
		for authorization, want := range map[string]string{"Bearer second-key": `"key":2,`, "Bearer third-key": `"key":3,`, "Bearer none": ""} {
			id := rand.Text()
			s.do(t, http.MethodGet, "/users", "", "Authorization", authorization, "X-Request-Id", id)
			line := regexp.MustCompile(`.*"request_id":"` + id + `".*`).FindString(s.logs.String())
			if line == "" || strings.Contains(line, `"key":`) != (want != "") || !strings.Contains(line, want) {
				t.Errorf("%s: log %s", authorization, line)
			}
		}
	})

	t.Run("probes need none", func(t *testing.T) {
		t.Parallel()
		for _, path := range []string{"/livez", "/readyz", "/healthz"} {
			if r := s.do(t, http.MethodGet, path, ""); r.status != http.StatusOK {
				t.Errorf("%s: answer %d %s", path, r.status, r.body)
			}
		}
	})
}

func TestWithoutKeysOnlyThisMachineIsServed(t *testing.T) {
	t.Parallel()
	s := start(t)
	for host, want := range map[string]int{"localhost:8080": http.StatusOK, "127.0.0.1": http.StatusOK, "[::1]:80": http.StatusOK, "evil.example.com:8080": http.StatusMisdirectedRequest, "192.0.2.1": http.StatusMisdirectedRequest} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/users", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if s.api.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%s: answer %d %s, want %d", host, w.Code, w.Body, want)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	s := startOn(t, database(t), api.Config{Environment: "test", Keys: cli.NewCredential("key"), OpenMetrics: true})
	s.create(t, "a@example.com", "Authorization", "Bearer key")
	s.do(t, http.MethodGet, "/users/7", "", "Authorization", "Bearer key")
	s.do(t, http.MethodGet, "/secret@example.com", "")
	s.do(t, "INVENTED", "/nosuch", "")

	r := s.do(t, http.MethodGet, "/metrics", "")
	for _, want := range []string{
		`sluicebox_api_requests_total{code="201",method="POST",route="/users"} 1`,
		`sluicebox_api_requests_total{code="404",method="GET",route="/users/{id}"} 1`,
		`sluicebox_api_requests_total{code="404",method="GET",route="none"} 1`,
		`sluicebox_api_requests_total{code="405",method="other",route="none"} 1`,
		`sluicebox_api_request_duration_seconds_count{code="201",method="POST",route="/users"} 1`,
		`sluicebox_api_requests_in_flight 1`, `sluicebox_api_pool_connections_max `, `sluicebox_build_info{`, `go_goroutines `, `process_start_time_seconds `,
	} {
		if !strings.Contains(r.body, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(r.body, "secret") || strings.Contains(r.body, "INVENTED") {
		t.Error("clients can invent time series")
	}
}

func TestTheLogHasNoPayloadAndNoSecret(t *testing.T) {
	t.Parallel()
	s := start(t, "canary-key")
	auth := []string{"Authorization", "Bearer canary-key", "Idempotency-Key", "canary", "X-Request-Id", "the-id"}
	for range 2 {
		s.do(t, http.MethodPost, "/users", `{"email":"canary@example.com","first_name":"canary","last_name":"canary"}`, auth...)
	}
	s.create(t, "canary@example.com", auth[:2]...)
	s.do(t, http.MethodPost, "/users", `{"email":"canary","canary":"canary"`, auth...)
	s.do(t, http.MethodGet, "/users?cursor=canary", "", auth...)
	s.do(t, http.MethodGet, "/canary", "", "Authorization", "Bearer canary")
	if _, err := s.admin.Exec(t.Context(), `ALTER TABLE event_outbox ADD CHECK (event_context->>'first_name' <> 'canary') NOT VALID`); err != nil {
		t.Fatal(err)
	}
	r := s.do(t, http.MethodPost, "/users", `{"email":"canary2@example.com","first_name":"canary","last_name":"canary"}`, auth[:2]...)
	wantProblem(t, r, http.StatusInternalServerError)

	log := s.logs.String()
	if lines := strings.Count(log, "\n"); lines != 7 || strings.Contains(log, "canary") {
		t.Errorf("%d lines:\n%s", lines, log)
	}
	for _, want := range []string{`"request_id":"the-id"`, `"route":"/users"`, `"method":"POST"`, `"status":201`, `"level":"error"`, "SQLSTATE 23514"} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in\n%s", want, log)
		}
	}
	if strings.Contains(r.body, "SQLSTATE") || strings.Contains(r.body, "event_outbox") {
		t.Errorf("the answer tells about our insides: %s", r.body)
	}
}
