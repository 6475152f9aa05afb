package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
)

const (
	soon  = 50 * time.Millisecond
	never = time.Hour
)

// slowService serves with these time-outs, and without a database, until the test ends.
func slowService(t *testing.T, times timeouts, change func(*API)) net.Addr {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), "postgres://u@127.0.0.1:1/db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	a, err := New(pool, Config{Environment: "test", MaxRequests: 1, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	a.timeouts = times
	change(a)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return listener.Addr()
}

// slowClient is connected, and has given up, as a failure of the test, a minute later.
func slowClient(t *testing.T, service net.Addr) *net.TCPConn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", service.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

func send(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
}

// wantClosed fails unless the service closes the connection, and says nothing before.
func wantClosed(t *testing.T, from io.Reader) {
	t.Helper()
	if rest, err := io.ReadAll(from); len(rest) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("not closed: %q, error %v", rest, err)
	}
}

// wantStatus reads one answer.
func wantStatus(t *testing.T, from *bufio.Reader, status int) (detail string) {
	t.Helper()
	response, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	var problem struct{ Detail string }
	if err := json.NewDecoder(response.Body).Decode(&problem); err != nil || response.StatusCode != status {
		t.Errorf("answer %d %+v, want %d; error %v", response.StatusCode, problem, status, err)
	}
	return problem.Detail
}

const bodyBegins = "POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 60000\r\n\r\n{"

func TestSlowClientsAreLetGo(t *testing.T) {
	t.Parallel()
	unchanged := func(*API) {}

	t.Run("one that says nothing", func(t *testing.T) {
		t.Parallel()
		wantClosed(t, slowClient(t, slowService(t, timeouts{header: soon, body: never, whole: never, idle: never}, unchanged)))
	})

	t.Run("one that stops in the middle of the header", func(t *testing.T) {
		t.Parallel()
		conn := slowClient(t, slowService(t, timeouts{header: soon, body: never, whole: never, idle: never}, unchanged))
		send(t, conn, "GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
		wantClosed(t, conn)
	})

	for name, pace := range map[string]time.Duration{"one that stops in the middle of the body": never, "one that sends the body byte by byte": soon / 10} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := slowClient(t, slowService(t, timeouts{header: never, body: soon, whole: never, idle: never}, unchanged))
			send(t, conn, bodyBegins)
			go func() {
				for ticks := time.Tick(pace); ; {
					select {
					case <-t.Context().Done():
						return
					case <-ticks:
					}
					if _, err := io.WriteString(conn, " "); err != nil {
						return
					}
				}
			}()
			answers := bufio.NewReader(conn)
			if detail := wantStatus(t, answers, http.StatusRequestTimeout); detail != "the body did not arrive in time" {
				t.Errorf("reason %q", detail)
			}
			wantClosed(t, answers)
		})
	}

	t.Run("one whose body is of no use and does not come", func(t *testing.T) {
		t.Parallel()
		conn := slowClient(t, slowService(t, timeouts{header: never, body: soon, whole: never, idle: never}, unchanged))
		send(t, conn, strings.Replace(bodyBegins, "application/json", "text/plain", 1))
		answers := bufio.NewReader(conn)
		wantStatus(t, answers, http.StatusUnsupportedMediaType)
		wantClosed(t, answers)
	})

	t.Run("one that has no other request", func(t *testing.T) {
		t.Parallel()
		conn := slowClient(t, slowService(t, timeouts{header: never, body: never, whole: never, idle: soon}, unchanged))
		send(t, conn, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
		answers := bufio.NewReader(conn)
		wantStatus(t, answers, http.StatusOK)
		wantClosed(t, answers)
	})

	t.Run("one that does not read its answers", func(t *testing.T) {
		t.Parallel()
		conn := slowClient(t, slowService(t, timeouts{header: never, body: never, whole: soon, idle: never}, unchanged))
		var err error
		for err == nil {
			_, err = io.WriteString(conn, "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
		}
		if network, ok := errors.AsType[net.Error](err); ok && network.Timeout() {
			t.Errorf("still connected: %v", err)
		}
	})
}

// TestSlowBodiesTakeNoPlace holds that clients whose bodies are on their way keep nobody else out, until there are too many of them.
func TestSlowBodiesTakeNoPlace(t *testing.T) {
	t.Parallel()
	const body = `{"email": "ada@example.com", "first_name": "Ada", "last_name": "Lovelace"}`
	whole := fmt.Sprintf("POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	var arriving places
	service := slowService(t, timeouts{header: never, body: never, whole: never, idle: never}, func(a *API) {
		a.arriving = make(places, 3)
		arriving = a.arriving
	})
	fast := slowClient(t, service)
	answers := bufio.NewReader(fast)
	for n := range cap(arriving) {
		send(t, fast, whole)
		if detail := wantStatus(t, answers, http.StatusServiceUnavailable); detail != "the database is not available; try again" {
			t.Errorf("beside %d slow clients: %q", n, detail)
		}
		send(t, slowClient(t, service), bodyBegins)
		for len(arriving) <= n { // until the service waits for it
			send(t, fast, "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
			wantStatus(t, answers, http.StatusOK)
		}
	}
	send(t, fast, whole)
	if detail := wantStatus(t, answers, http.StatusServiceUnavailable); detail != errBusy.reason {
		t.Errorf("beside %d slow clients: %q", cap(arriving), detail)
	}
}
