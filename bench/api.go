package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// script is what one request does, for pgbench.
const script = `\set n random(1, 2000000000)
BEGIN;
INSERT INTO users (email, first_name, last_name) VALUES ('b' || :n::bigint || '-' || random() || '@example.com', 'Ada', 'Lovelace');
INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('user has been created', 'production',
    jsonb_build_object('user_id', :n::bigint, 'email', 'b' || :n::bigint || '@example.com', 'first_name', 'Ada', 'last_name', 'Lovelace'));
COMMIT;
`

// api measures POST /users beside pgbench, which makes the same two inserts in one transaction; both over TCP.
func (s *stage) api(ctx context.Context) error {
	if err := s.fresh(ctx); err != nil {
		return err
	}
	p, err := launch(ctx, "api", filepath.Join(s.dir, "api"), nil, []string{"DATABASE_URL=" + s.pg.URL("postgres"), "API_ADDR=127.0.0.1:0"})
	if err != nil {
		return err
	}
	defer p.kill()
	base, err := p.serves(ctx)
	if err != nil {
		return err
	}
	length := max(time.Duration(s.o.seconds)*time.Second/6, time.Second)
	for range s.o.runs {
		for _, clients := range []int{1, 8, 64} {
			figure := fmt.Sprintf("API, %d clients", clients)
			rate, err := s.pgbench(ctx, clients, length)
			if err != nil {
				return err
			}
			s.table.add(figure, "pgbench", "requests/s", rate)
			before, err := s.used(ctx, p)
			if err != nil {
				return err
			}
			if rate, err = post(ctx, strings.TrimPrefix(base, "http://"), clients, length); err != nil {
				return err
			}
			after, err := s.used(ctx, p)
			if err != nil {
				return err
			}
			s.table.add(figure, "api", "requests/s", rate)
			s.table.shares(figure, "CPU s / 1,000 requests", 1000/(rate*length.Seconds()), after.since(before))
			s.table.against(figure, "api", "requests/s", "pgbench", "≥ 0.7")
		}
	}
	return p.stop()
}

func (s *stage) pgbench(ctx context.Context, clients int, length time.Duration) (float64, error) {
	path, err := find("pgbench", "apt-get install postgresql")
	if err != nil {
		return 0, err
	}
	file := filepath.Join(s.dir, "users.sql")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		return 0, fmt.Errorf("pgbench: %w", err)
	}
	out, err := command(ctx, s.dir, path, "--no-vacuum", "--file", file, "--client", strconv.Itoa(clients), "--jobs", strconv.Itoa(min(clients, 2)),
		"--time", strconv.Itoa(int(length.Seconds())), "--protocol", "prepared", s.pg.URL("postgres"))
	if err != nil {
		return 0, err
	}
	match := regexp.MustCompile(`tps = ([0-9.]+)`).FindStringSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("pgbench tells no rate: %s", out)
	}
	return strconv.ParseFloat(match[1], 64)
}

// post creates users from so many connections and returns how many were created a second. Any other answer than 201 is an error. It writes
// requests as they are: Go's HTTP client takes more than half of what the service does, where pgbench takes little.
func post(ctx context.Context, host string, clients int, length time.Duration) (float64, error) {
	began := time.Now()
	var done atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for c := range clients {
		group.Go(func() error {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", host)
			if err != nil {
				return fmt.Errorf("post: %w", err)
			}
			defer func() { _ = conn.Close() }()
			answers := bufio.NewReader(conn)
			for n := 0; time.Since(began) < length && ctx.Err() == nil; n++ {
				body := fmt.Sprintf(`{"email":"a%d-%d-%d@example.com","first_name":"Ada","last_name":"Lovelace"}`, began.UnixNano(), c, n)
				if err := postOne(conn, answers, host, body); err != nil {
					return err
				}
				done.Add(1)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return float64(done.Load()) / time.Since(began).Seconds(), nil
}

func postOne(conn net.Conn, answers *bufio.Reader, host, body string) error {
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return fmt.Errorf("post: %w", err)
	}
	const request = "POST /users HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
	if _, err := fmt.Fprintf(conn, request, host, len(body), body); err != nil {
		return fmt.Errorf("post: %w", err)
	}
	response, err := http.ReadResponse(answers, nil)
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusCreated {
		return fmt.Errorf("post: status %d, %s: %w", response.StatusCode, text, err)
	}
	return nil
}
