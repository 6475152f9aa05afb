package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// clients is how many users are created at once.
const clients = 8

// load creates users and remembers when each was answered for, which is after its commit.
type load struct {
	created atomic.Int64

	mu        sync.Mutex
	committed map[string]time.Time // by email; removed once the event was seen in ClickHouse
}

// createUsers creates users over HTTP, watches their events arrive, and waits until the last one has been marked.
func (d *demo) createUsers(ctx context.Context, users, rate int) (*result, error) {
	d.step("creating %d users over HTTP: POST %s/users", users, d.api.url)
	l := &load{committed: make(map[string]time.Time, users)}
	w, err := d.newWatcher(ctx, l)
	if err != nil {
		return nil, err
	}
	defer w.close()
	began := time.Now()
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	watched := make(chan error, 1)
	go func() { watched <- w.run(watching, users) }()

	if err := d.post(ctx, l, users, rate); err != nil {
		return nil, err
	}
	posted := time.Since(began)
	if err := w.settled(ctx); err != nil {
		return nil, err
	}
	stopWatching()
	if err := <-watched; err != nil {
		return nil, err
	}
	if err := w.poll(ctx); err != nil { // the last events, now that nobody else polls
		return nil, err
	}
	d.done()
	r, err := w.result(ctx)
	if err != nil {
		return nil, err
	}
	r.Users, r.CreateSeconds = l.created.Load(), posted.Seconds()
	r.judge(users)
	return r, nil
}

// post creates the users, several at once.
func (d *demo) post(ctx context.Context, l *load, users, rate int) error {
	group, ctx := errgroup.WithContext(ctx)
	numbers := make(chan int)
	group.Go(func() error {
		defer close(numbers)
		began := time.Now()
		for n := range users {
			if rate > 0 {
				due := time.NewTimer(time.Until(began.Add(time.Duration(n) * time.Second / time.Duration(rate))))
				select {
				case <-due.C:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			select {
			case numbers <- n:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	client := &http.Client{Timeout: startTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	for range clients {
		group.Go(func() error {
			for n := range numbers {
				if err := d.postOne(ctx, client, l, n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func (d *demo) postOne(ctx context.Context, client *http.Client, l *load, n int) error {
	user := map[string]string{
		"email": fmt.Sprintf("user-%d@example.com", n), "first_name": fmt.Sprintf("First %d", n), "last_name": fmt.Sprintf("Last %d", n),
	}
	body, err := json.Marshal(user)
	if err != nil {
		return fmt.Errorf("create user %d: %w", n, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.api.url+"/users", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("create user %d: %w", n, err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("create user %d: %w", n, err)
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("create user %d: %w", n, err)
	}
	if response.StatusCode != http.StatusCreated {
		return fmt.Errorf("create user %d: %s: %s", n, response.Status, answer)
	}
	l.mu.Lock()
	l.committed[user["email"]] = time.Now()
	l.mu.Unlock()
	l.created.Add(1)
	return nil
}
