package api_test

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/sluicebox/sluicebox/internal/api"
)

// Not parallel, so that no other test's goroutines are seen.
func TestServeDrains(t *testing.T) {
	url := database(t)
	ignored := goleak.IgnoreCurrent()
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	server, err := api.New(pool, api.Config{Environment: "test", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		defer close(served)
		served <- server.Serve(ctx, listener)
	}()

	// A request that has begun waits for this lock.
	lock, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `LOCK TABLE users`); err != nil {
		t.Fatal(err)
	}
	s := &service{url: "http://" + listener.Addr().String()}
	begun := make(chan reply, 1)
	go func() { begun <- s.create(t, "drain@example.com") }()
	for waits := false; !waits; {
		const query = `SELECT count(*) > 0 FROM pg_locks WHERE relation = 'users'::regclass AND NOT granted`
		if err := lock.QueryRow(t.Context(), query).Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}

	stop()
	for { // until the listener is closed
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String())
		if err != nil {
			break
		}
		_ = conn.Close()
	}
	select {
	case err := <-served:
		t.Errorf("Serve returned %v before the request was answered", err)
	default:
	}
	if err := lock.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := <-begun; r.status != http.StatusCreated {
		t.Errorf("the request that had begun: answer %d %s", r.status, r.body)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	pool.Close()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(ignored); err != nil {
		t.Error(err)
	}
}
