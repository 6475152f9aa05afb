package api_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
)

// FuzzCreateUser sends whatever a client might to a service whose database is away: a request that is taken ends there, with 503, every
// other one with a problem of the client's.
func FuzzCreateUser(f *testing.F) {
	server := away(f, "")
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	f.Add([]byte(`{"email": "ada@example.com", "first_name": "Ada", "last_name": "Lovelace"}`), "application/json", "key", parent)
	f.Add([]byte(`{"email": "ada@example.com", "email": 1, "EMAIL": null}`), "application/json; charset=utf-8", "", "00-x")
	f.Add([]byte(`[]`), "text/plain", "a b", "")
	f.Add([]byte("{\"email\": \"\xff\\u0000\"}"), "", "\x00", parent)
	f.Add([]byte(`{"a":{"b":[[[[[[`), "application/json", "é", parent)
	f.Fuzz(func(t *testing.T, body []byte, kind, key, trace string) {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/users", bytes.NewReader(body))
		req.Host = "localhost:8080"
		req.Header.Set("Content-Type", kind)
		req.Header.Set("traceparent", trace)
		if key != "" {
			req.Header.Set("Idempotency-Key", key)
		}
		w := httptest.NewRecorder()
		server.ServeHTTP(w, req)
		var problem struct{ Status int }
		if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || problem.Status != w.Code {
			t.Errorf("answer %d %s: %v", w.Code, w.Body, err)
		}
		switch w.Code {
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		case http.StatusServiceUnavailable:
			var user api.NewUser
			if err := json.Unmarshal(body, &user); err != nil || user.Email == "" || user.FirstName == "" || user.LastName == "" {
				t.Errorf("taken: %q, %v", body, err)
			}
		default:
			t.Errorf("answer %d %s", w.Code, w.Body)
		}
	})
}

// away is a service whose database is away.
func away(f *testing.F, keys string) http.Handler {
	f.Helper()
	pool, err := pgxpool.New(f.Context(), "postgres://u@127.0.0.1:1/db")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(pool.Close)
	server, err := api.New(pool, api.Config{Environment: "test", Keys: cli.NewCredential(keys), Log: zerolog.Nop()})
	if err != nil {
		f.Fatal(err)
	}
	return server
}

// FuzzRead sends whatever path, query and key a client might: without one of the keys nothing is looked at, and what is not understood is
// a problem of the client's.
func FuzzRead(f *testing.F) {
	server := away(f, "key,other-key")
	f.Add("", "cursor=MTo3&limit=2", "Bearer key")
	f.Add("/7", "", "bearer other-key")
	f.Add("/-1", "limit=0&limit=1", "Bearer")
	f.Add("/9223372036854775808", "cursor=%00", "Basic key")
	f.Add("/%2e%2e/x", "a;b", "")
	f.Fuzz(func(t *testing.T, id, query, authorization string) {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/users", nil)
		req.URL.Path, req.URL.RawQuery = "/users"+id, query
		req.Header.Set("Authorization", authorization)
		w := httptest.NewRecorder()
		server.ServeHTTP(w, req)
		scheme, key, _ := strings.Cut(authorization, " ")
		known := strings.EqualFold(scheme, "bearer") && (key == "key" || key == "other-key")
		switch {
		case w.Code == http.StatusUnauthorized:
			if known {
				t.Errorf("%q is refused", authorization)
			}
		case w.Code == http.StatusNotFound: // no such path
		case !known || w.Code != http.StatusBadRequest && w.Code != http.StatusUnprocessableEntity && w.Code != http.StatusServiceUnavailable:
			t.Errorf("/users%s?%s with %q: answer %d %s", id, query, authorization, w.Code, w.Body)
		}
		var problem struct{ Status int }
		if err := json.Unmarshal(w.Body.Bytes(), &problem); err != nil || problem.Status != w.Code {
			t.Errorf("answer %d %s: %v", w.Code, w.Body, err)
		}
	})
}
