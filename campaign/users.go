package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// userCall is what the callers of the API know of one user.
type userCall struct {
	created bool // some answer was 201
}

// callAPI creates users over HTTP, each with a key of its own, and asks again under the same key when there is no answer.
func (l *load) callAPI(ctx context.Context, random *rand.Rand) {
	for ctx.Err() == nil {
		l.gate.RLock()
		l.createUser(context.WithoutCancel(ctx), 3)
		l.gate.RUnlock()
		sleep(ctx, time.Duration(20+random.IntN(60))*time.Millisecond)
	}
}

// newUser enters a user that is about to be created.
func (l *load) newUser() uint64 {
	return l.s.journal.add(func(key uint64) event {
		return event{hash: contentHash("user has been created", environment, userContext(key), 1), kind: user}
	})
}

// createUser creates a user, in some tries.
func (l *load) createUser(ctx context.Context, tries int) {
	key := l.newUser()
	for range tries {
		status, body := l.postUser(ctx, key)
		if status == http.StatusCreated {
			l.ended(key, true)
			return
		}
		if status != 0 && status < http.StatusInternalServerError {
			l.s.violate(fmt.Sprintf("api: a user that is new was answered with %d: %.300s", status, body))
		}
		if !sleep(ctx, 100*time.Millisecond) {
			break
		}
	}
	l.ended(key, false)
}

// ended enters what is known of a user: there for certain, or not known.
func (l *load) ended(key uint64, created bool) {
	l.users.Store(key, userCall{created: created})
	if created {
		l.s.journal.end([]uint64{key}, committed, 0)
		l.count("user")
	} else {
		l.s.journal.end([]uint64{key}, maybe, 0)
	}
}

// postUser asks once; status 0: there was no answer.
func (l *load) postUser(ctx context.Context, key uint64) (status int, body string) {
	base := l.s.api.url()
	if base == "" {
		return 0, ""
	}
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	user := fmt.Sprintf(`{"email": "%s", "first_name": "Ada", "last_name": "%s"}`, emailOf(key), personal)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/users", strings.NewReader(user))
	if err != nil {
		return 0, ""
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+apiKey)
	request.Header.Set("Idempotency-Key", fmt.Sprintf("key-%d", key))
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, ""
	}
	return response.StatusCode, string(text)
}

// checkUsers holds that an answer 201 means a user and its event, and everything else both or neither.
func (s *stage) checkUsers(ctx context.Context) error {
	rows, err := s.admin.Query(ctx, `
SELECT coalesce(u.email, e.event_context->>'email'), count(DISTINCT u.id), count(DISTINCT e.id)
FROM users u FULL JOIN (SELECT id, event_context FROM event_outbox WHERE event_type = 'user has been created') e
     ON e.event_context->>'email' = u.email GROUP BY 1`)
	if err != nil {
		return fmt.Errorf("compare users: %w", err)
	}
	defer rows.Close()
	there := map[string]bool{}
	for rows.Next() {
		var email string
		var users, events int
		if err := rows.Scan(&email, &users, &events); err != nil {
			return fmt.Errorf("compare users: %w", err)
		}
		if users != 1 || events != 1 {
			s.violate(fmt.Sprintf("api: %s is %d users and %d events", email, users, events))
		}
		there[email] = true
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("compare users: %w", err)
	}
	s.load.users.Range(func(key, call any) bool {
		if email := emailOf(key.(uint64)); call.(userCall).created && !there[email] {
			s.violate("api: " + email + " was answered with 201, and is not there")
		}
		return true
	})
	return nil
}
