package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/api"
)

// TestUserReachesClickHouse goes the whole line: a user is created over HTTP, and its event reaches ClickHouse with exactly that
// context.
func TestUserReachesClickHouse(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.start(t)
	settings := api.Settings{Environment: "staging"}
	service, err := api.New(l.pg, settings.Config(zerolog.Nop()))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)

	body := `{"email": "zoe@example.com", "first_name": "Zoë", "last_name": "O'Neill \"Z\" 🦆"}`
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/users", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusCreated {
		t.Fatalf("the API answered %s", response.Status)
	}
	l.allMarked(t)

	var kind, environment, content string
	var version uint32
	err = l.ch.QueryRow(context.WithoutCancel(t.Context()), `SELECT event_type, environment, event_context, metadata_version FROM event_log`).
		Scan(&kind, &environment, &content, &version)
	if err != nil {
		t.Fatal(err)
	}
	if kind != "user has been created" || environment != "staging" || version != 1 {
		t.Errorf("event is %q, %q, version %d", kind, environment, version)
	}
	var want, got map[string]any
	if err := json.Unmarshal([]byte(body), &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(content), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event_context (-sent +arrived): %s", diff)
	}
}
